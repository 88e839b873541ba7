"""The agent's command in a devbox, watched by a process that may be the second to do so."""

import os
import re
import subprocess
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agentkit.agent import ExecResult
from orchestrator.core.errors import DevboxLost, Missing, Unavailable, WorldError
from orchestrator.core.ledger import Attempt
from orchestrator.core.records import Devbox, Execution
from orchestrator.engine.redact import NO_SECRETS, Redactor
from orchestrator.engine.workspace import NOT_THERE, NOT_WRITTEN, DevboxWorkspace, files_check
from orchestrator.testing.clock import run_virtually
from orchestrator.testing.fakes import MemoryEndpoint, Script

DEVBOX = Devbox(id="dbx_1", status="running")
OUTPUT = "first line\nsecond line\nthird line\n"


class Watcher:
    """One process's view of an attempt: what it was told to keep, and how often it started something."""

    def __init__(
        self, folder: Path, endpoint: MemoryEndpoint, left: Attempt | None = None, redactor: Redactor = NO_SECRETS
    ) -> None:
        self.log = folder / "agent.log"
        self.announced: list[str] = []
        self.kept: list[tuple[int, int]] = []
        self.endpoint = endpoint

        self.workspace = DevboxWorkspace(
            endpoint,
            DEVBOX,
            working_directory="/home/user",
            key=lambda step: f"key {step}",
            announce=self.announced.append,
            keep=lambda offset, length: self.kept.append((offset, length)),
            log=self.log,
            left=left,
            redactor=redactor,
        )

    def exec(self, command: str) -> ExecResult:
        return run_virtually(lambda: self.workspace.exec(command))

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
def test_the_log_is_cut_to_the_noted_offset_and_continues_from_there(watch: Watch, torn: str) -> None:
    """Output after the last note is asked for again, so it is neither missing nor doubled."""
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
    assert len({command.splitlines()[-1] for command in watcher.endpoint.executions.values()}) == 1
    assert watcher.workspace.is_log_incomplete, "what it had printed may be lost, and the result says so"


def test_output_that_the_endpoint_does_not_give_is_said_to_be_missing(watch: Watch) -> None:
    watcher = watch()
    watcher.endpoint.script.faults["output"] = [Missing("no such execution")]
    assert watcher.run().exit_status == 0
    assert watcher.announced == ["exec_1"]
    assert watcher.workspace.is_log_incomplete


def test_an_execution_that_is_forgotten_again_and_again_is_the_worlds_failure(watch: Watch) -> None:
    watcher = watch()
    watcher.endpoint.script.faults["wait_completed"] = [Missing("no such execution")] * 99
    with pytest.raises(DevboxLost):
        watcher.run()


def test_a_command_that_was_begun_is_not_written_again_under_its_shell(watch: Watch) -> None:
    """Killed between the call and its answer: the same key finds the execution, and its files are left alone."""
    watch().run()
    files = watch().endpoint.files
    files["dbx_1", "/home/user/.sweep/agent/marker/pid"] = b"1\n"
    files["dbx_1", "/home/user/.sweep/agent/command"] = b"as it runs"
    watcher = watch(left(execution=None))
    watcher.run()
    assert files["dbx_1", "/home/user/.sweep/agent/command"] == b"as it runs"
    assert watcher.announced == ["exec_1"]


def test_the_command_is_written_if_nothing_was_begun(watch: Watch) -> None:
    watcher = watch(left(execution=None))
    watcher.run()
    assert watcher.endpoint.files["dbx_1", "/home/user/.sweep/agent/command"] == b"work"


def test_an_agent_that_was_ended_unrecorded_is_the_worlds_failure(watch: Watch) -> None:
    """Its process is found gone: that is no crash of the agent's, whatever the wrapper ends with."""
    watcher = watch()
    watcher.endpoint.script.exit_status = 125
    watcher.endpoint.script.unrecorded = 1
    with pytest.raises(DevboxLost):
        watcher.run()


def test_an_end_counts_only_with_the_record_in_the_devbox(watch: Watch) -> None:
    """Somebody said in the endpoint's place that the agent has ended: it is waited for."""
    watcher = watch()
    watcher.endpoint.script.unrecorded = 1
    assert watcher.run().exit_status == 0
    assert watcher.announced == ["exec_1", "exec_2"]


class Swallowing(MemoryEndpoint):
    """Says that files were written, so many of which never arrive; commands find out."""

    swallows = 0

    async def write_file(self, devbox_id: str, path: str, data: bytes) -> None:
        if self.swallows:
            self.swallows -= 1
            return
        await super().write_file(devbox_id, path, data)

    async def wait_completed(self, devbox_id: str, execution_id: str) -> Execution:
        needed = re.findall(r"wc -c <(\S+?)\)", self.executions[execution_id])
        if all((devbox_id, path) in self.files for path in needed):
            return await super().wait_completed(devbox_id, execution_id)
        return Execution(
            id=execution_id, devbox_id=devbox_id, is_completed=True, exit_status=NOT_WRITTEN, stderr=f"{NOT_THERE}\n"
        )


@pytest.mark.parametrize("swallows", [1, 2, 3, 4, 6])
def test_files_that_did_not_arrive_are_written_again_before_the_agent_begins(tmp_path: Path, swallows: int) -> None:
    endpoint = Swallowing((), Script(output=OUTPUT))
    endpoint.devboxes["dbx_1"] = DEVBOX
    endpoint.swallows = swallows
    watcher = Watcher(tmp_path, endpoint)
    assert watcher.run().exit_status == 0
    assert endpoint.files["dbx_1", "/home/user/.sweep/agent/command"] == b"work"
    endpoint.swallows = swallows
    assert watcher.exec("true").exit_status == 0


def test_a_devbox_in_which_nothing_arrives_is_the_worlds_failure(tmp_path: Path) -> None:
    endpoint = Swallowing((), Script(output=OUTPUT))
    endpoint.devboxes["dbx_1"] = DEVBOX
    endpoint.swallows = 1000
    with pytest.raises(WorldError):
        Watcher(tmp_path, endpoint).run()
    with pytest.raises(Unavailable, match="does not arrive"):
        Watcher(tmp_path, endpoint).exec("true")


@pytest.mark.parametrize("path", [None, "/nowhere"], ids=["with sha256sum", "without"])
def test_a_command_runs_only_on_the_files_that_were_written_for_it(tmp_path: Path, path: str | None) -> None:
    """In a real shell; where the devbox has nothing that tells content, by size."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "wc").symlink_to("/usr/bin/wc")
    files = {str(tmp_path / "it's command"): b"work\n", str(tmp_path / "env"): b"export A=1\n"}

    def run() -> int:
        environment = {"PATH": str(tools) if path else os.environ["PATH"]}
        return subprocess.run(
            ["/bin/bash", "-c", files_check(files) + "exit 7"], env=environment, check=False
        ).returncode

    assert run() == NOT_WRITTEN
    for name, data in files.items():
        Path(name).write_bytes(data)
    assert run() == 7
    for name, data in files.items():
        Path(name).write_bytes(data[:-1])
        assert run() == NOT_WRITTEN
        Path(name).write_bytes(data)
    Path(next(iter(files))).write_bytes(b"wOrk\n")
    assert run() == (7 if path else NOT_WRITTEN)


def test_an_agent_may_end_with_the_same_status_itself(watch: Watch) -> None:
    watcher = watch()
    watcher.endpoint.script.exit_status = 125
    watcher.endpoint.files["dbx_1", "/home/user/.sweep/agent/status"] = b"125\n"
    assert watcher.run().exit_status == 125


class Piecemeal(MemoryEndpoint):
    """Hands output on in pieces of a few bytes."""

    SIZE = 5

    async def output(self, devbox_id: str, execution_id: str, offset: int = 0) -> AsyncGenerator[tuple[str, int], None]:
        async for text, _ in super().output(devbox_id, execution_id, offset):
            for at in range(0, len(text), self.SIZE):
                piece = text[at : at + self.SIZE]
                yield piece, offset + at + len(piece)


def test_no_secret_gets_into_the_log_at_any_point_of_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that may be the start of a secret is asked for again: the noted offset is before it."""
    monkeypatch.setattr("orchestrator.engine.workspace.NOTE_EVERY_S", 0.0)
    endpoint = Piecemeal((), Script(output="the key is hunter2hunter2, hunter too, and hunter2hunter2"))
    endpoint.devboxes["dbx_1"] = DEVBOX
    known = Redactor([("KEY", "hunter2hunter2")])
    expected = endpoint.script.output.replace("hunter2hunter2", "*" * 14)
    first = Watcher(tmp_path, endpoint, redactor=known)
    first.run()
    assert first.log.read_text() == expected
    assert len(first.kept) > 3
    for offset, length in first.kept:
        second = Watcher(tmp_path, endpoint, left(offset=offset, length=length), redactor=known)
        second.log.write_text(expected[:length] + "torn")
        second.run()
        assert second.log.read_text() == expected, (offset, length)


def test_the_environment_is_taken_back_from_a_command_that_could_not_be_started(watch: Watch) -> None:
    for call in ("run", "exec"):
        watcher = watch()
        watcher.endpoint.script.faults["execute"] = [Unavailable("nobody answers")]
        options: dict[str, Any] = {"time_limit": 100.0} if call == "run" else {}
        starting = partial(getattr(watcher.workspace, call), "work", environment={"KEY": "hunter2hunter2"}, **options)
        with pytest.raises(Unavailable):
            run_virtually(starting)
        files = watcher.endpoint.files
        assert any(path.endswith("/env") for _, path in files)
        assert not any(b"hunter2" in data for data in files.values())


def test_a_command_of_a_later_process_is_another_one(watch: Watch) -> None:
    """Its key is its own: an endpoint that knows it would answer with what an earlier process had asked for."""
    watch().exec("echo one")
    watch(left()).exec("echo two")
    assert len(watch().endpoint.executions) == 2
