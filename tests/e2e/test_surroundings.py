"""Odd surroundings: nothing that lies in the folder sweep is started in is run unless it is asked for."""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.waiting import wait_until

if TYPE_CHECKING:
    from .conftest import Desk

pytestmark = pytest.mark.slow

#: As people call their files; Python, our dependencies and we import modules of these names, or could.
SHADOWS = (
    *("types", "json", "random", "queue", "typing", "logging", "asyncio", "socket", "secrets", "email", "token"),
    *("sitecustomize", "usercustomize", "anyio", "httpx", "runloop_api_client", "structlog", "rich", "uvicorn"),
)
SWEEP = str(Path(sys.executable).with_name("sweep"))


def lay_traps(folder: Path) -> Path:
    """Modules that say so when they are run; returns the file that they say it in."""
    told = folder / "told"
    trap = f"open({str(told)!r}, 'a').write(__name__ + '\\n')\nraise SystemExit('a trap')\n"
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(trap)
    package = folder / "orchestrator"
    package.mkdir()
    for name in ("__init__", "__main__", "errors"):
        (package / f"{name}.py").write_text(trap)
    return told


def isolation(desk: "Desk") -> tuple[str, ...]:
    return ("--isolation", "none") if desk.isolation == "none" else ()


def said(told: Path) -> str:
    return told.read_text() if told.exists() else ""


def test_modules_in_the_folder_that_a_sweep_is_started_in_are_not_run(desk: "Desk") -> None:
    """Neither by it nor by the service that it starts."""
    told = lay_traps(desk.folder)
    words = ("run", "bugfix-mini", "--agent", "oracle", "--limit", "1", "--name", "mine", *isolation(desk))
    ended = desk.spawn([SWEEP, *words]).end()
    assert (ended.status, said(told)) == (0, ""), str(ended)
    assert [result["score"] for result in desk.results("runs/mine")] == [1.0]


def test_a_sweep_that_is_detached_runs_none_of_them_either(desk: "Desk") -> None:
    told = lay_traps(desk.folder)
    words = ("run", "bugfix-mini", "--agent", "nop", "--limit", "1", "--name", "mine", "--detach", *isolation(desk))
    ended = desk.spawn([SWEEP, *words]).end()
    assert ended.status == 0, str(ended)
    wait_until(lambda: desk.journal("runs/mine", "sweep.ended"), lambda: str(ended) + said(told))
    assert said(told) == ""


def test_an_agent_on_this_machine_reaches_its_devbox_from_a_folder_full_of_them(served: "Desk") -> None:
    """Its helper is a process of ours, started in a folder of the agent's."""
    agents = served.folder / "agents"
    agents.mkdir()
    traps = served.folder / "traps"
    traps.mkdir()
    told = lay_traps(traps)
    (agents / "mine.toml").write_text(f'where = "host"\nrun = "cd {traps} && sweep workspace exec touch done"\n')
    served.sweep("run", "six", "--agent", "mine", "--limit", "1", "--name", "mine")
    assert [result["score"] for result in served.results("runs/mine")] == [1.0]
    assert said(told) == ""


def test_a_module_of_the_folder_that_is_named_as_the_agent_is_run_and_no_other(served: "Desk") -> None:
    told = lay_traps(served.folder)
    package = served.folder / "mine"
    package.mkdir()
    (package / "agents.py").write_text("def agent(prompt, workspace):\n    workspace.exec('touch done')\n")
    words = ("run", "six", "--agent", "mine.agents:agent", "--limit", "1", "--name", "mine")
    assert served.service is not None
    ended = served.spawn([SWEEP, *words], served.service.environment).end()
    assert (ended.status, said(told)) == (0, ""), str(ended)
    assert [result["score"] for result in served.results("runs/mine")] == [1.0]


@pytest.mark.parametrize(("before", "status"), [("", 0), ("echo 0 >/proc/sys/user/max_user_namespaces; ", 2)])
def test_root_of_a_namespace_with_one_user_sweeps_or_gets_advice(
    desk: "Desk", sandboxes: None, before: str, status: int
) -> None:
    """Like a container that maps one user; sandboxes need no other."""
    enter = ["unshare", "-Ur", "sh", "-c", f'{before}exec "$0" "$@"']
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    words = ("run", "bugfix-mini", "--agent", "oracle", "--limit", "1", "--name", "mine")
    ended = desk.spawn([*enter, SWEEP, *words]).end()
    assert ended.status == status, str(ended)
    if status:
        assert "sysctl -w user.max_user_namespaces=65536" in ended.err
        assert "--isolation none" in ended.err
    else:
        assert [result["score"] for result in desk.results("runs/mine")] == [1.0]
