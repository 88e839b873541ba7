"""Boxes of every provider that this machine permits, and what a scorer may need there."""

import subprocess
import uuid
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.service.environments.pythons import Interpreters
from orchestrator.service.records import FunctionResult
from orchestrator.service.sandbox.base_provider import BaseProvider
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.process_provider import ProcessProvider
from orchestrator.service.sandbox.provider import Box, BoxSpec, Command, ImageRoot, Provider, shell
from orchestrator.service.scoring.scoring import InPlace, Scoring
from orchestrator.service.store import Document
from tests.boxes import lent
from tests.sandbox.conftest import image  # noqa: F401

APP = "/app"
Boot = Callable[..., Awaitable[Box]]
Score = Callable[..., Awaitable[FunctionResult]]


@pytest.fixture(scope="module", params=["local", "process", "image"])
def kind(request: pytest.FixtureRequest, obstacle: str) -> str:
    """Every kind of box that this machine permits."""
    if request.param != "process" and obstacle:
        pytest.skip(obstacle)
    return str(request.param)


@pytest.fixture(scope="module")
async def shared(kind: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BaseProvider[Any]]:
    state = tmp_path_factory.mktemp("devboxes")
    provider = ProcessProvider(state) if kind == "process" else BwrapProvider(state)
    yield provider
    await provider.close()


@pytest.fixture
async def provider(shared: BaseProvider[Any]) -> AsyncIterator[Provider]:
    async with lent(shared):
        yield shared


@pytest.fixture(scope="session")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Scoring:
    """One cache of Python environments for all tests."""
    return Scoring(cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def root(request: pytest.FixtureRequest, kind: str) -> ImageRoot | None:
    """The image of the boxes, where they have one."""
    return request.getfixturevalue("image") if kind == "image" else None


@pytest.fixture
def boot(provider: Provider, root: ImageRoot | None, scoring: Scoring) -> Boot:
    """Start a box that has what a contract needs."""

    async def start(contract: Document, **environment: str) -> Box:
        spec = BoxSpec(
            id=f"dbx_{uuid.uuid4().hex[:12]}",
            working_directory=APP,
            environment=environment,
            binds=await scoring.binds(contract, is_image=root is not None),
            image=root,
        )
        return await provider.start(spec)

    return start


@pytest.fixture
def score(boot: Boot, scoring: Scoring) -> Score:
    """Score one function in a fresh box, after an agent (a shell script) worked in it: the function's result."""

    async def one(
        scorer: Document, *, agent: str = "true", custom: str | None = None, **environment: str
    ) -> FunctionResult:
        async def find_custom(_: str) -> str | None:
            return custom

        contract = {"scoring_function_parameters": [{"name": "f", "weight": 1.0, "scorer": scorer}]}
        box = await boot(contract, **environment)
        worked = await run(box, shell(agent), timeout=30)
        assert worked.status == 0, worked.output
        place = InPlace(box=box, working_directory=APP)
        result = await scoring.score(contract, place, timeout=30, custom=find_custom)
        left = await run(box, Command(argv=("ls", "-A", box.path("/tmp"))), timeout=30)
        assert b"scorer" not in left.stdout, "the private folder of the script is gone"
        (only,) = result.scoring_function_results
        assert result.score == only.score
        return only

    return one


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of `tinyscore` 1.0: a module with a `SCORE` of 0.25, and a program that prints it."""
    folder = tmp_path_factory.mktemp("wheels")
    info = "tinyscore-1.0.dist-info"
    files = {
        "tinyscore.py": "SCORE = 0.25\ndef main():\n    print(SCORE)\nif __name__ == '__main__':\n    main()\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinyscore\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntinyscore = tinyscore:main\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / "tinyscore-1.0-py3-none-any.whl", "w") as archive:
        for name, contents in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, contents)
    return folder


@pytest.fixture(scope="session")
def other_python() -> str:
    """The version of an interpreter that is not the service's own and can make environments; skips if there is none."""
    for each in Interpreters().installed()[1:]:
        if subprocess.run([each.program, "-I", "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return each.version
    pytest.skip("this machine has no second Python")
