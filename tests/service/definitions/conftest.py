"""Builders of folders, stores and providers for the tests of what is read from disk."""

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.process_provider import ProcessProvider
from orchestrator.service.store import Store
from tests.boxes import lent

Write = Callable[[Path, Mapping[str, str | bytes]], Path]

TASK = """\
version = "1.0"
[metadata]
difficulty = "easy"
[environment]
allow_internet = false
"""
TEST = "echo 1 > /logs/verifier/reward.txt\n"
BASE: Mapping[str, str] = {
    "task.toml": TASK,
    "instruction.md": "Mend it.\n",
    "environment/main.py": "print('hello')\n",
    "solution/solve.sh": "echo solved > answer.txt\n",
    "tests/test.sh": TEST,
}


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files below a folder; names that end with .sh are executable."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o755 if name.endswith(".sh") else 0o644)
    return folder


@pytest.fixture
def write() -> Write:
    return write_files


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[..., Path]:
    """Makes a scenario folder that is right, with some files replaced, added, or (None) left out."""

    def make(
        files: Mapping[str, str | bytes | None] | None = None, *, name: str = "first", benchmark: str = "bench"
    ) -> Path:
        whole = {**BASE, **(files or {})}
        given = {path: content for path, content in whole.items() if content is not None}
        return write_files(tmp_path / benchmark / name, given)

    return make


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "service.sqlite") as opened:
        yield opened


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[ProcessProvider]:
    provider = ProcessProvider(tmp_path / "devboxes")
    yield provider
    await provider.close()


@pytest.fixture(scope="module")
async def shared_local(tmp_path_factory: pytest.TempPathFactory, sandboxes: None) -> AsyncIterator[BwrapProvider]:
    provider = BwrapProvider(tmp_path_factory.mktemp("devboxes"))
    yield provider
    await provider.close()


@pytest.fixture
async def local(shared_local: BwrapProvider) -> AsyncIterator[BwrapProvider]:
    async with lent(shared_local):
        yield shared_local
