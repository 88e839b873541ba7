"""The devbox as an agent uses it, and the small script in the devbox that makes an agent run at most once.

The script takes a marker folder first: whoever finds it taken waits for the first run instead of starting another, so
that no endpoint can start an agent twice. It ends the agent at its time limit with all it started, whether we watch or
not, and records how it ended. Environment values travel in a file that the script reads and removes, never in argv.
"""

import os
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Final

import anyio
import structlog

from orchestrator.agentkit.contract import ExecResult
from orchestrator.engine.disk import persist
from orchestrator.errors import AgentTimedOut, Conflicted, DevboxLost, Missing, Unavailable, leaf
from orchestrator.ledger import Attempt
from orchestrator.model import Devbox
from orchestrator.runloop.contract import Endpoint

#: Seconds that our own timer leaves the script to end the agent itself.
BACKSTOP: Final = 60.0
TAIL: Final = 20_000
#: Seconds that the output of an ended agent may take to arrive.
LAST_WORDS: Final = 15.0
_TIMED_OUT: Final = 124

WRAPPER: Final = r"""#!/bin/bash
# Runs ./command once: its standard input is the file $2, its time limit is $1 seconds. Records the end in ./status.
cd "$(dirname "$0")" || exit 125
here=$PWD
if ! mkdir marker 2>/dev/null; then
    until [ -e status ]; do
        if [ -e marker/pid ] && ! kill -0 "$(cat marker/pid)" 2>/dev/null && [ ! -e status ]; then exit 125; fi
        sleep 0.2
    done
    read -r status <status
    [ "$status" = timed-out ] && exit 124
    exit "$status"
fi
echo $$ >marker/pid
leftovers() { # every process that carries our mark, or that the agent orphaned to our own parent
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        [ "$pid" = $$ ] && continue
        if tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qxF "SWEEP_ATTEMPT=$here"; then
            echo "$pid"
        elif [ "$PPID" != 1 ] && grep -qx "PPid:[[:space:]]*$PPID" "$process/status" 2>/dev/null; then
            echo "$pid"
        fi
    done
}
started=$SECONDS
(
    if [ -e env ]; then . ./env; rm -f env; fi
    cd "$3" || exit 125
    SWEEP_ATTEMPT=$here exec timeout -k 5 "$1" bash -l "$here/command" <"$2" 2>&1
)
status=$?
if [ $((SECONDS - started)) -ge "${1%.*}" ] && { [ $status = 124 ] || [ $status = 137 ]; }; then
    for _ in 1 2 3 4 5; do
        pids=$(leftovers)
        [ -z "$pids" ] && break
        kill -KILL $pids 2>/dev/null
        sleep 0.1
    done
    echo timed-out >status.new && mv status.new status
    exit 124
fi
echo $status >status.new && mv status.new status
exit $status
"""

#: What the wrapper ends with where the agent was ended with it, unrecorded.
_VANISHED: Final = 125
#: How often an agent's execution may be lost sight of.
_SIGHTS: Final = 5
#: Seconds between two notes of how far the log has come.
NOTE_EVERY: Final = 5.0

Announce = Callable[[str], Awaitable[None]]
Keep = Callable[[int, int], None]


class DevboxWorkspace:
    """Implements `agentkit.contract.Workspace` for one attempt.

    `key` names the attempt and its steps on the endpoint; `announce` is told the id of the agent's execution and
    returns when that is durable; `log` is the attempt's agent.log, and `keep` is told now and then from which byte of
    the output on to read, and how long the log is that has all before it. `left` is what an earlier process knew.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        devbox: Devbox,
        *,
        working_directory: str,
        key: Callable[[str], str],
        announce: Announce,
        keep: Keep,
        log: Path,
        left: Attempt | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._devbox = devbox
        self._working_directory = working_directory
        self._key = key
        self._announce = announce
        self._keep = keep
        self._log = log
        self._execution = left.execution if left else None
        self._is_again = left is not None
        #: The next byte of the output to ask for, and the length of the log that has all before it.
        self._offset, self._length = (left.offset, left.length) if left else (0, 0)
        self._calls = 0
        #: Whether an execution vanished with what the agent had printed and was not in the log yet.
        self.is_log_incomplete = False

    @property
    def working_directory(self) -> str:
        return self._working_directory

    @property
    def scratch(self) -> str:
        return f"{self._devbox.home}/.sweep"

    async def exec(
        self,
        command: str,
        *,
        timeout: float = 600.0,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> ExecResult:
        self._calls += 1
        folder = f"{self.scratch}/exec-{self._calls}"
        await self.write(f"{folder}/env", _exports(environment or {}))
        await self.write(f"{folder}/command", command.encode())
        quoted = shlex.quote(folder)
        line = f". {quoted}/env; rm -f {quoted}/env; cd {shlex.quote(self._absolute(cwd or '.'))} && . {quoted}/command"
        execution = await self._endpoint.execute(self._devbox.id, line, key=self._key(f"exec-{self._calls}"))
        with anyio.move_on_after(timeout):
            try:
                ended = await self._endpoint.wait_completed(self._devbox.id, execution.id)
            except Missing as error:
                raise DevboxLost(f"devbox {self._devbox.id} forgot a command: {error}") from None
            return ExecResult(exit_status=ended.exit_status, stdout=ended.stdout, stderr=ended.stderr)
        await self._kill(execution.id)
        return ExecResult(exit_status=None, stdout="", stderr=f"ended after {timeout:g} s")

    async def run(
        self,
        command: str,
        *,
        time_limit: float,
        environment: Mapping[str, str] | None = None,
        stdin_file: str | None = None,
    ) -> ExecResult:
        folder = f"{self.scratch}/agent"
        stdin = self._absolute(stdin_file) if stdin_file else "/dev/null"
        words = ("bash", f"{folder}/run", f"{time_limit:g}", stdin, self._absolute("."))
        if self._execution is None:
            if not (self._is_again and await self._is_begun()):
                await self.write(f"{folder}/env", _exports(environment or {}))
                await self.write(f"{folder}/command", command.encode())
                await self.write(f"{folder}/run", WRAPPER.encode())
            await self._execute(words, 1)
        with anyio.move_on_after(time_limit + BACKSTOP):
            return await self._watch(words)
        await self._kill(str(self._execution))
        raise AgentTimedOut(
            f"the agent was still there {BACKSTOP:g} s after its limit of {time_limit:g} s and was killed"
        )

    async def read(self, path: str) -> bytes:
        try:
            return await self._endpoint.read_file(self._devbox.id, self._absolute(path))
        except (Missing, Conflicted) as error:
            raise FileNotFoundError(str(error)) from None

    async def write(self, path: str, data: bytes) -> None:
        await self._endpoint.write_file(self._devbox.id, self._absolute(path), data)

    def _absolute(self, path: str) -> str:
        return path if path.startswith("/") else f"{self._working_directory.rstrip('/')}/{path}".removesuffix("/.")

    async def _is_begun(self) -> bool:
        """Whether the agent's command was started: what it runs must not be written anew under it then."""
        with suppress(FileNotFoundError):
            return bool(await self.read(f"{self.scratch}/agent/marker/pid"))
        return False

    async def _execute(self, words: Sequence[str], sight: int) -> None:
        """Start the wrapper; it is the agent's only where it finds no other."""
        step = "solve" if sight == 1 else f"solve-{sight}"
        execution = await self._endpoint.execute(self._devbox.id, shlex.join(words), key=self._key(step))
        await self._announce(execution.id)
        self._execution = execution.id

    async def _watch(self, words: Sequence[str]) -> ExecResult:
        """Wait for the agent. An execution that the endpoint forgets is waited for by another in the same devbox."""
        for sight in range(2, _SIGHTS + 2):
            try:
                status = await self._end(str(self._execution))
                break
            except Missing as error:
                if sight > _SIGHTS:
                    raise DevboxLost(f"devbox {self._devbox.id} forgets the agent: {error}") from None
                structlog.get_logger().warning("execution.vanished", execution=self._execution, error=str(error))
                self.is_log_incomplete = True
                await self._execute(words, sight)
                self._note(0)
        if status in {_TIMED_OUT, _VANISHED}:
            ending = await self._read_ending()
            if status == _VANISHED and not ending:
                raise DevboxLost(f"devbox {self._devbox.id} ended the agent, and nothing there says how")
            status = None if ending == b"timed-out" else status
        return ExecResult(exit_status=status, stdout=_tail(self._log), stderr="")

    async def _kill(self, execution: str) -> None:
        with suppress(Missing, Conflicted):  # it is over, or its devbox is
            await self._endpoint.kill(self._devbox.id, execution)

    async def _end(self, execution: str) -> int | None:
        """Stream the output while waiting for the end. Raises what the wait raises."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._stream, execution)
                ended = await self._endpoint.wait_completed(self._devbox.id, execution)
                tasks.cancel_scope.deadline = anyio.current_time() + LAST_WORDS
        except BaseExceptionGroup as group:
            raise leaf(group) from None
        return ended.exit_status

    async def _stream(self, execution: str) -> None:
        """Bring the agent's output home until it has ended or its devbox has; what is in the log already is not asked
        for again.
        """
        with await persist(self._open_log) as log:
            noted_at = anyio.current_time()
            try:
                async with aclosing(self._endpoint.output(self._devbox.id, execution, self._offset)) as pieces:
                    async for text, offset in pieces:
                        await persist(partial(_write_at, log, self._length, text.encode("utf-8", "replace")))
                        self._offset, self._length = offset, log.tell()
                        if anyio.current_time() >= noted_at + NOTE_EVERY:
                            self._note(offset)
                            noted_at = anyio.current_time()
            except (Missing, Conflicted, Unavailable):
                return  # the devbox is gone; whoever waits for the command hears of it and says so

    def _open_log(self) -> FileIO:
        """The log, cut to the length that goes with the offset; from the start if less of it is there."""
        log = FileIO(os.open(self._log, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+")
        if log.seek(0, os.SEEK_END) < self._length:
            self._offset = self._length = 0
        log.truncate(self._length)
        log.seek(self._length)
        return log

    def _note(self, offset: int) -> None:
        self._offset = offset
        self._keep(offset, self._length)

    async def _read_ending(self) -> bytes:
        """What the script recorded of the agent's end; nothing if it did not come to that."""
        with suppress(FileNotFoundError):
            return (await self.read(f"{self.scratch}/agent/status")).strip()
        return b""


def _write_at(log: FileIO, position: int, data: bytes) -> None:
    """Write it all, unbuffered, and again from the same place after a failure."""
    log.seek(position)
    rest = memoryview(data)
    while rest:
        rest = rest[log.write(rest) :]


def _exports(environment: Mapping[str, str]) -> bytes:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()).encode()


def _tail(log: Path) -> str:
    """The end of a log as text."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        return file.read().decode("utf-8", "replace")
    return ""
