"""The agent's command in a devbox, watched by a process that may be the second to do so."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.agentkit.contract import ExecResult
from orchestrator.engine.workspace import DevboxWorkspace
from orchestrator.errors import DevboxLost, Missing
from orchestrator.ledger import Attempt
from orchestrator.model import Devbox
from orchestrator.testing import MemoryEndpoint, Script, run_virtually

DEVBOX = Devbox(id="dbx_1", status="running")
OUTPUT = "first line\nsecond line\nthird line\n"


class Watcher:
    """One process's view of an attempt: what it was told to keep, and how often it started something."""

    def __init__(self, folder: Path, endpoint: MemoryEndpoint, left: Attempt | None = None) -> None:
        self.log = folder / "agent.log"
        self.announced: list[str] = []
        self.kept: list[tuple[int, int]] = []
        self.endpoint = endpoint

        async def announce(execution: str) -> None:
            self.announced.append(execution)

        self.workspace = DevboxWorkspace(
            endpoint,
            DEVBOX,
            working_directory="/home/user",
            key=lambda step: f"key {step}",
            announce=announce,
            keep=lambda offset, length: self.kept.append((offset, length)),
            log=self.log,
            left=left,
        )

    def run(self) -> ExecResult:
        return run_virtually(lambda: self.workspace.run("work", time_limit=100))


@pytest.fixture
def endpoint() -> MemoryEndpoint:
    endpoint = MemoryEndpoint((), Script(output=OUTPUT))
    endpoint.devboxes["dbx_1"] = DEVBOX
    return endpoint


Watch = Callable[..., Watcher]


@pytest.fixture
def watch(tmp_path: Path, endpoint: MemoryEndpoint) -> Watch:
    return lambda left=None: Watcher(tmp_path, endpoint, left)


def left(*, execution: str | None = "exec_1", offset: int = 0, length: int = 0) -> Attempt:
    return Attempt(number=1, execution=execution, offset=offset, length=length)


def test_the_output_goes_to_the_log(watch: Watch) -> None:
    watcher = watch()
    watcher.run()
    assert watcher.log.read_text() == OUTPUT
    assert watcher.announced == ["exec_1"]


@pytest.mark.parametrize("torn", ["", "second l", "something that power loss left"])
def test_the_log_is_cut_to_what_was_noted_and_goes_on_from_there(watch: Watch, torn: str) -> None:
    """What came after the last note is asked for again, so it is neither missing nor doubled."""
    watch().run()
    noted = len("first line\n")
    watcher = watch(left(offset=noted, length=noted))
    watcher.log.write_text("first line\n" + torn)
    watcher.run()
    assert watcher.log.read_text() == OUTPUT
    assert watcher.announced == [], "it was waited for, not started"


def test_a_log_that_lost_what_was_noted_is_read_again_from_the_start(watch: Watch) -> None:
    watch().run()
    watcher = watch(left(offset=11, length=11))
    watcher.log.write_text("fir")
    watcher.run()
    assert watcher.log.read_text() == OUTPUT


def test_an_execution_that_the_endpoint_forgets_is_waited_for_by_another(watch: Watch) -> None:
    """The second finds the first's marker in the devbox, so the agent does not run twice."""
    watcher = watch()
    watcher.endpoint.script.faults["wait_completed"] = [Missing("no such execution")] * 2
    assert watcher.run().exit_status == 0
    assert watcher.announced == ["exec_1", "exec_2", "exec_3"]
    assert len(set(watcher.endpoint.executions.values())) == 1
    assert watcher.workspace.is_log_incomplete, "what it had printed may be lost, and the result says so"


def test_an_execution_that_is_forgotten_again_and_again_is_the_worlds_failure(watch: Watch) -> None:
    watcher = watch()
    watcher.endpoint.script.faults["wait_completed"] = [Missing("no such execution")] * 99
    with pytest.raises(DevboxLost):
        watcher.run()


def test_a_command_that_was_begun_is_not_written_anew_under_its_shell(watch: Watch) -> None:
    """Killed between the call and its answer: the same key finds the execution, and its files are left alone."""
    watch().run()
    files = watch().endpoint.files
    files["dbx_1", "/home/user/.sweep/agent/marker/pid"] = b"1\n"
    files["dbx_1", "/home/user/.sweep/agent/command"] = b"as it runs"
    watcher = watch(left(execution=None))
    watcher.run()
    assert files["dbx_1", "/home/user/.sweep/agent/command"] == b"as it runs"
    assert watcher.announced == ["exec_1"]


def test_where_nothing_was_begun_the_command_is_written(watch: Watch) -> None:
    watcher = watch(left(execution=None))
    watcher.run()
    assert watcher.endpoint.files["dbx_1", "/home/user/.sweep/agent/command"] == b"work"


def test_an_agent_that_was_ended_unrecorded_is_the_worlds_failure(watch: Watch) -> None:
    """Whoever waited for it finds its process gone: no crash of the agent's, whatever the wrapper ends with."""
    watcher = watch()
    watcher.endpoint.script.exit_status = 125
    with pytest.raises(DevboxLost):
        watcher.run()


def test_an_agent_may_end_with_the_same_status_itself(watch: Watch) -> None:
    watcher = watch()
    watcher.endpoint.script.exit_status = 125
    watcher.endpoint.files["dbx_1", "/home/user/.sweep/agent/status"] = b"125\n"
    assert watcher.run().exit_status == 125
