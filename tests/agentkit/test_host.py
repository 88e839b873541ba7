"""Programs of this machine as agents: their input, their collected files, and their end."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING

import pytest

from orchestrator.agentkit.host.host_agent import HostCommandAgent
from orchestrator.agentkit.loader import load
from orchestrator.core.errors import Conflicted, DevboxLost, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.agentkit.conftest import LocalWorkspace, MakeTask

pytestmark = pytest.mark.anyio


def ignore(chunk: bytes) -> None:
    pass


def make(folder: Path, run: str, more: str = "", environ: Mapping[str, str] = os.environ) -> HostCommandAgent:
    (folder / "mine.toml").write_text(f"where = 'host'\nrun = '''{textwrap.dedent(run)}'''\n{textwrap.dedent(more)}")
    agent = load(str(folder / "mine.toml"), python=None, search=(), settings={}, environ=environ, model="m-1")
    assert isinstance(agent, HostCommandAgent)
    return agent


async def test_a_program_gets_its_devboxs_address_and_a_key_of_its_own(
    tmp_path: Path, workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    heard, task = bytearray(), make_task("Mend it.", model="m-1")
    environ = {"PATH": os.environ["PATH"], "MINE": "1", "TOKEN": "t-1", "RUNLOOP_API_KEY": "the-users"}
    agent = make(
        tmp_path,
        """
        echo "$SWEEP_DEVBOX_ID|$SWEEP_MODEL|$SWEEP_SCENARIO|$MINE|$TOKEN|$FLAG|$(cat "$SWEEP_PROBLEM_FILE")|$(cat)"
        case $RUNLOOP_BASE_URL in http://127.0.0.1:*) echo near; esac
        case $RUNLOOP_API_KEY in devbox_*) echo own key; esac
        pwd; ls -A; command -v sweep
        """,
        "env = { secret = ['TOKEN'], set = { FLAG = 'on' } }",
        environ,
    )
    assert (await agent.solve(task, workspace, heard.extend)).exit_status == 0
    folder = task.folder
    assert heard.decode().splitlines() == [
        "dbx_1|m-1|csv-quoted-newlines|1|t-1|on|Mend it.|Mend it.",
        "near",
        "own key",
        str(folder / "work"),
        str(folder / "bin" / "sweep"),
    ]
    assert agent.secrets == {"TOKEN": "t-1"}
    assert "t-1" not in repr(agent)


async def test_a_second_try_in_the_same_folder_finds_it_fresh(
    tmp_path: Path, workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    agent, task = make(tmp_path, "mkdir mine"), make_task()
    assert [(await agent.solve(task, workspace, ignore)).exit_status for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(("run", "status"), [("exit 3", 3), ("kill -9 $$", 137), ("kill -SEGV $$", 139), ("exit 0", 0)])
async def test_a_programs_exit_status_is_its_result(
    tmp_path: Path, workspace: LocalWorkspace, make_task: MakeTask, run: str, status: int
) -> None:
    result = await make(tmp_path, f"echo last words\n{run}").solve(make_task(), workspace, ignore)
    assert (result.exit_status, result.message) == (status, "last words" if status else "")


async def test_a_program_that_writes_to_nobody_ends_as_in_a_shell(
    tmp_path: Path, workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    """Python ignores SIGPIPE; what it starts must not."""
    heard = bytearray()
    await make(tmp_path, 'yes | head -1\necho "${PIPESTATUS[0]}"').solve(make_task(), workspace, heard.extend)
    assert heard.decode() == "y\n141\n"


async def test_files_that_the_agents_file_names_are_collected_through_the_devbox(
    tmp_path: Path, workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    agent = make(
        tmp_path,
        """
        mkdir -p logs/a; echo '{"n": 1}' > logs/a/one.jsonl; echo report > report.md; echo '{"used": 7}' > usage.json
        """,
        """
        usage = { from = "usage.json", format = "json", input_tokens = "$.used" }
        trajectory = { from = "logs/**/*.jsonl", format = "claude-code" }
        gather = { files = ["*.md", "none*"] }
        """,
    )
    await agent.solve(make_task(), workspace, ignore)
    host = f"{workspace.home}/.sweep-host"
    assert await workspace.read(f"{host}/artifacts/report.md", at_most=100) == b"report\n"
    assert await workspace.read(f"{host}/trajectory/one.jsonl", at_most=100) == b'{"n": 1}\n'
    assert agent.outputs.trajectory == ("~/.sweep-host/trajectory/*",)
    assert agent.outputs.artifacts == ("~/.sweep-host/artifacts/*",)


async def test_a_file_that_cannot_be_copied_costs_no_other_file_and_not_the_agents_work(
    tmp_path: Path, workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    """One can be seen and not read, another cannot be looked at."""
    agent = make(
        tmp_path,
        "echo report > report.md; ln -s $(printf %0300d) long.md",
        'gather = { files = ["/proc/self/mem", "*.md"] }',
    )
    assert (await agent.solve(make_task(), workspace, ignore)).exit_status == 0
    copied = [path.rpartition("/")[2].rpartition("-")[2] for path in workspace.written]
    assert copied == ["report.md"]


async def test_a_devbox_that_refuses_a_file_does_not_undo_the_agents_work(
    tmp_path: Path, workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    agent = make(tmp_path, "echo report > report.md", 'gather = { files = ["*.md"] }')
    workspace.fault = Conflicted("the disk is full")
    assert (await agent.solve(make_task(), workspace, ignore)).exit_status == 0


@pytest.mark.parametrize("fault", [DevboxLost("it died"), Unauthorized("bad key")])
async def test_a_lost_devbox_or_a_bad_key_is_seen_while_files_are_copied(
    tmp_path: Path, workspace: LocalWorkspace, make_task: MakeTask, fault: Exception
) -> None:
    agent = make(tmp_path, "echo report > report.md", 'gather = { files = ["*.md"] }')
    workspace.fault = fault
    with pytest.raises(type(fault), match=str(fault)):
        await agent.solve(make_task(), workspace, ignore)
