"""Real programs in real sandboxes, typed as a user would; their model is a script on loopback.

What they are installed from is the tester's package index, with the tester's settings for it. Installs are kept where
`SWEEP_CACHE` says, else in the tests' own cache folder, for the next run of the tests.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from tests.e2e.conftest import Desk, new_desk

from .models import BUGFIX_MINI, Script, Server, serving, solutions

#: The scenario that agents are given, and a key to look for in everything that is written.
SCENARIO: Final = "csv-quoted-newlines"
KEY: Final = "sk-scripted-0123456789abcdef"
#: Seconds that a package index has to answer.
PATIENCE: Final = 30
#: Seconds for a whole sweep of one scenario, which may download half a gigabyte first.
INSTALLING: Final = 900.0
#: What of the tester's environment and home speaks of package indexes.
_VARIABLES: Final = re.compile(
    r"(npm_config|pip|uv)_.*|(http|https|no|all)_proxy|ssl_cert_(file|dir)|requests_ca_bundle|curl_ca_bundle"
    r"|node_extra_ca_certs",
    re.IGNORECASE,
)
_FILES: Final = (".npmrc", ".pip", ".config/pip", ".config/uv")


@pytest.fixture
def server() -> Iterator[Server]:
    """The model: it fixes every scenario of bugfix-mini."""
    with serving(Script(fixes=solutions(BUGFIX_MINI))) as server:
        yield server


@pytest.fixture
def real_desk(tmp_path: Path, sandboxes: None) -> Iterator[Desk]:
    """An empty folder and a home with nothing but the tester's settings for package indexes.

    Agents are installed once for all devboxes only where these are sandboxes.
    """
    desk = new_desk(tmp_path, "local")
    for name in _FILES:
        if (Path.home() / name).exists():
            (desk.home / name).parent.mkdir(parents=True, exist_ok=True)
            (desk.home / name).symlink_to(Path.home() / name)
    yield desk
    desk.clear()


def is_answered(*command: str) -> bool:
    """Tell if a package manager's question to its index is answered, soon."""
    try:
        return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def settings() -> dict[str, str]:
    """The tester's settings for package indexes, and the place where installs are kept."""
    found = {name: value for name, value in os.environ.items() if _VARIABLES.fullmatch(name)}
    return {**found, "SWEEP_CACHE": os.environ["SWEEP_CACHE"]}


def run_real(
    desk: Desk,
    agent: str,
    *words: str,
    environment: dict[str, str],
    benchmark: str = "bugfix-mini",
    scenario: str = SCENARIO,
) -> dict[str, Any]:
    """Run an agent on a scenario; the line of its result, once it is scored."""
    command = ("run", benchmark, "--include", scenario, "--agent", agent, "--name", "mine", *words)
    ended = desk.start(*command, environment=settings() | environment).end(INSTALLING)
    assert ended.status == 0, str(ended)
    (result,) = desk.results("runs/mine")
    assert result["outcome"] == "scored", f"{ended}\n{result}"
    return result


def trajectory(desk: Desk, result: dict[str, Any]) -> dict[str, Any]:
    """The ATIF document of a result, which must have the steps that the script makes an agent take."""
    (file,) = (desk.folder / "runs" / "mine").rglob("trajectory.json")
    document: dict[str, Any] = orjson.loads(file.read_bytes())
    called, *_, ended = [step for step in document["steps"] if step["source"] == "agent"]
    (call,) = called["tool_calls"]
    assert any(f"/tmp/solution-{SCENARIO}" in str(value) for value in call["arguments"].values()), call
    assert [each["source_call_id"] for each in called["observation"]["results"]] == [call["tool_call_id"]]
    assert ended["message"], ended
    return document


def written_with(word: str, folder: Path) -> list[str]:
    """The files below a folder that have this word."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if word.encode() in path.read_bytes()]
