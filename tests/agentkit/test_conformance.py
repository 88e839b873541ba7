"""The promises of every kind of agent: one suite, run on each of them with a real workspace."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import pytest

from orchestrator.agentkit.file.command import as_bytes
from orchestrator.agentkit.loader import check, load
from tests.processes import is_alive, living_children, open_files
from tests.waiting import until

from .at_work import at_work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from orchestrator.agentkit.agent import Agent
    from tests.agentkit.conftest import LocalWorkspace, MakeTask

pytestmark = pytest.mark.anyio

#: Each behaviour in each language. `pids` in the working directory tells who must be gone afterwards.
SHELL: Final = {
    "solves": """
        cat > got; cmp got "$SWEEP_PROBLEM_FILE" || exit
        printf %s "$SWEEP_MODEL" > model; printf %s "$SWEEP_SCENARIO" > scenario
    """,
    "fails": "echo its last words >&2; exit 3",
    "hangs": "echo $$ >> pids; sleep 600 & echo $! >> pids; echo ready >> pids; wait",
    "breeds": """
        setsid sh -c 'echo $$ >> pids; exec sleep 600' &
        (setsid sh -c 'echo $$ >> pids; sleep 600; true' &) &
        echo $$ >> pids
        until [ $(wc -l < pids) = 3 ]; do sleep 0.05; done
        echo ready >> pids; wait; sleep 600
    """,
}
BODY: Final = {
    "solves": """
        self.workspace.write("got", self.prompt)
        self.workspace.write("model", self.model or "")
        self.workspace.write("scenario", self.scenario.name)
    """,
    "fails": """
        sys.stderr.write("its last words\\n")
        sys.exit(3)
    """,
    "hangs": """
        pids = open(os.path.join(self.workspace.working_directory, "pids"), "a")
        daemon = subprocess.Popen(["sleep", "600"], start_new_session=True)
        print(os.getpid(), daemon.pid, "ready", sep="\\n", file=pids, flush=True)
        time.sleep(600)
    """,
    "breeds": """
        path = os.path.join(self.workspace.working_directory, "pids")
        script = "import os, time; os.setsid(); os.fork(); os.fork();"
        script += f"print(os.getpid(), file=open({path!r}, 'a'), flush=True); time.sleep(600)"
        pids = open(path, "a")
        subprocess.Popen([sys.executable, "-c", script])
        print(os.getpid(), os.getppid(), sep="\\n", file=pids, flush=True)
        while len(open(path).readlines()) < 6: time.sleep(0.05)
        print("ready", file=pids, flush=True)
        time.sleep(600)
    """,
}
CLASS: Final = """
import os, subprocess, sys, time
class MyAgent:
    def __init__(self, prompt, workspace, model, scenario):
        self.prompt, self.workspace, self.model, self.scenario = prompt, workspace, model, scenario
    {define} run(self):{body}
"""
FUNCTION: Final = """
import os, subprocess, sys, time
from types import SimpleNamespace
{define} solve(prompt, workspace, model, scenario):
        self = SimpleNamespace(prompt=prompt, workspace=workspace, model=model, scenario=scenario){body}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A way to write an agent; `write` writes one with a behaviour into a folder and returns its reference."""

    name: str
    write: Callable[[str, Path], str]
    is_here: bool = True
    """Whether its processes are this machine's and not a devbox's."""


def command(behaviour: str, folder: Path) -> str:
    return f"command:{SHELL[behaviour]}"


def definition(behaviour: str, folder: Path) -> str:
    (folder / f"{behaviour}.sh").write_text(SHELL[behaviour])
    (folder / f"{behaviour}.toml").write_text(f"install = 'touch installed'\nrun = '. {folder}/{behaviour}.sh'")
    return f"{folder}/{behaviour}.toml"


def host(behaviour: str, folder: Path) -> str:
    """Like `definition`; a program of this machine finds this workspace, which is a folder here, by its name."""
    (folder / f"{behaviour}.sh").write_text(f'cd "$SWEEP_WORKING_DIRECTORY" || exit\n{SHELL[behaviour]}')
    (folder / f"{behaviour}.toml").write_text(f"where = 'host'\nrun = '. {folder}/{behaviour}.sh'")
    return f"{folder}/{behaviour}.toml"


def python(template: str, define: str, entry: str) -> Callable[[str, Path], str]:
    def write(behaviour: str, folder: Path) -> str:
        (folder / f"{behaviour}.py").write_text(template.format(define=define, body=BODY[behaviour]))
        return f"{folder}/{behaviour}.py:{entry}"

    return write


KINDS: Final = (
    Kind(name="command", write=command, is_here=False),
    Kind(name="definition", write=definition, is_here=False),
    Kind(name="host command", write=host),
    Kind(name="class", write=python(CLASS, "def", "MyAgent")),
    Kind(name="async class", write=python(CLASS, "async def", "MyAgent")),
    Kind(name="function", write=python(FUNCTION, "def", "solve")),
    Kind(name="async function", write=python(FUNCTION, "async def", "solve")),
)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
async def make_agent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[str], Agent]]:
    kind: Kind = request.param
    agents: list[Agent] = []

    def make(behaviour: str) -> Agent:
        reference = kind.write(behaviour, tmp_path)
        agents.append(load(reference, python=Path(sys.executable), search=(), settings={}, environ=os.environ))
        return agents[-1]

    yield make
    for agent in agents:
        await agent.aclose()


def ignore(chunk: bytes) -> None:
    pass


def pids(workspace: LocalWorkspace) -> list[int]:
    """Those who have said so; none if the agent was stopped before it could."""
    file = workspace.root / "pids"
    return [int(line) for line in file.read_text().split() if line != "ready"] if file.exists() else []


def is_ready(workspace: LocalWorkspace) -> Callable[[], bool]:
    file = workspace.root / "pids"
    return lambda: file.exists() and "ready" in file.read_text()


async def test_an_agent_that_has_done_its_work_ends_with_0_and_no_message(
    make_agent: Callable[[str], Agent], workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    agent = make_agent("solves")
    await check(agent)
    await agent.prepare(make_task(), workspace)
    result = await agent.solve(make_task(model="gpt-x"), workspace, ignore)
    await agent.aclose()
    assert (result.exit_status, result.is_timed_out, result.message) == (0, False, "")
    assert (workspace.root / "model").read_text() == "gpt-x"
    assert (workspace.root / "scenario").read_text() == "csv-quoted-newlines"


@pytest.mark.parametrize(
    "prompt",
    ["", "'\"`$HOME\\ $(touch x)\r\n\t\n", "naïve 🎉 \u2028", "caf\udce9", "half \ud83c", "x" * 200_000],
    ids=["empty", "quotes", "unicode", "latin", "half", "long"],
)
async def test_the_problem_statement_arrives_byte_for_byte(
    make_agent: Callable[[str], Agent], workspace: LocalWorkspace, make_task: MakeTask, prompt: str
) -> None:
    await make_agent("solves").solve(make_task(prompt), workspace, ignore)
    assert (workspace.root / "got").read_bytes() == as_bytes(prompt)


async def test_an_agent_that_fails_is_a_result_with_its_status_and_last_words(
    make_agent: Callable[[str], Agent], workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    heard = bytearray()
    result = await make_agent("fails").solve(make_task(), workspace, heard.extend)
    assert (result.exit_status, result.is_timed_out) == (3, False)
    assert result.message.endswith("its last words")
    assert b"its last words" in bytes(heard) + workspace.log


async def test_an_agent_out_of_time_is_a_result_and_leaves_no_process(
    make_agent: Callable[[str], Agent], workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    result = await make_agent("hangs").solve(make_task(time_limit=1.0), workspace, ignore)
    assert result.is_timed_out
    await until(lambda: not any(is_alive(pid) for pid in pids(workspace)), "some of its processes are left")


async def test_an_agent_that_is_cancelled_leaves_no_process(
    make_agent: Callable[[str], Agent], workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    agent = make_agent("hangs")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(agent.solve, make_task(), workspace, ignore)
        await until(is_ready(workspace), "it does not work")
        tasks.cancel_scope.cancel()
    await until(lambda: not any(is_alive(pid) for pid in pids(workspace)), "some of its processes are left")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.is_here], ids=lambda kind: kind.name)
async def test_an_agent_on_this_machine_dies_with_a_sweep_that_is_killed(
    kind: Kind, workspace: LocalWorkspace, tmp_path: Path
) -> None:
    """SIGKILL to the sweep leaves nothing of it, daemons included."""
    async with at_work(kind.write("breeds", tmp_path), tmp_path, workspace):
        await until(is_ready(workspace), "it does not work")
        alive = pids(workspace)
        assert all(is_alive(pid) for pid in alive)
    await until(lambda: not any(is_alive(pid) for pid in alive), "some of its processes are left")


async def test_one_agent_serves_many_attempts_at_once(
    make_agent: Callable[[str], Agent], make_workspace: Callable[[], LocalWorkspace], make_task: MakeTask
) -> None:
    agent = make_agent("solves")
    workspaces = [make_workspace() for _ in range(6)]
    async with anyio.create_task_group() as tasks:
        for number, workspace in enumerate(workspaces):
            tasks.start_soon(agent.solve, make_task(f"problem {number}"), workspace, ignore)
    got = [(workspace.root / "got").read_text() for workspace in workspaces]
    assert got == [f"problem {number}" for number in range(6)]


async def test_preparing_twice_is_as_good_as_once(
    make_agent: Callable[[str], Agent], workspace: LocalWorkspace, make_task: MakeTask
) -> None:
    agent = make_agent("solves")
    await agent.prepare(make_task(), workspace)
    await agent.prepare(make_task(), workspace)


async def test_the_digest_is_the_definitions(make_agent: Callable[[str], Agent]) -> None:
    solves = make_agent("solves")
    assert solves.digest == make_agent("solves").digest
    assert solves.digest != make_agent("fails").digest


async def test_attempts_leave_no_child_and_no_descriptor(
    make_agent: Callable[[str], Agent], make_workspace: Callable[[], LocalWorkspace], make_task: MakeTask
) -> None:
    solves, hangs = make_agent("solves"), make_agent("hangs")
    await solves.solve(make_task(), make_workspace(), ignore)
    files, children = open_files(), living_children()
    for _ in range(3):
        assert (await solves.solve(make_task(), make_workspace(), ignore)).exit_status == 0
        assert (await hangs.solve(make_task(time_limit=0.2), make_workspace(), ignore)).is_timed_out
    await solves.aclose()
    await hangs.aclose()
    assert open_files() == files
    assert living_children() == children
