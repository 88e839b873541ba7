"""The devbox as an agent uses it, and the small script in the devbox that makes an agent run at most once.

The script takes a marker folder first: whoever finds it taken waits for the first run instead of starting another, so
that no endpoint can start an agent twice. It ends the agent at its time limit with all it started, whether we watch or
not, and records how it ended. Environment values travel in a file that the script reads and removes, never in argv.
"""

import shlex
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO, Final

import anyio

from orchestrator.agentkit.contract import ExecResult
from orchestrator.errors import AgentTimedOut, Conflicted, Missing, Unavailable, leaf
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
    until [ -e status ]; do sleep 0.2; done
    read -r status <status
    [ "$status" = timed-out ] && exit 124
    exit "$status"
fi
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

Announce = Callable[[str], Awaitable[None]]


class DevboxWorkspace:
    """Implements `agentkit.contract.Workspace` for one attempt.

    `key` names the attempt and its steps on the endpoint; `announce` is told the id of the agent's execution and
    returns when that is durable; `log` is the attempt's agent.log. `execution` is the agent's if it was started before.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        devbox: Devbox,
        *,
        working_directory: str,
        key: Callable[[str], str],
        announce: Announce,
        log: Path,
        execution: str | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._devbox = devbox
        self._working_directory = working_directory
        self._key = key
        self._announce = announce
        self._log = log
        self._execution = execution
        self._calls = 0

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
            ended = await self._endpoint.wait_completed(self._devbox.id, execution.id)
            return ExecResult(exit_status=ended.exit_status, stdout=ended.stdout, stderr=ended.stderr)
        await self._endpoint.kill(self._devbox.id, execution.id)
        return ExecResult(exit_status=None, stdout="", stderr=f"ended after {timeout:g} s")

    async def run(
        self,
        command: str,
        *,
        time_limit: float,
        environment: Mapping[str, str] | None = None,
        stdin_file: str | None = None,
    ) -> ExecResult:
        if self._execution is not None:
            return await self._watch(self._execution, time_limit)
        folder = f"{self.scratch}/agent"
        await self.write(f"{folder}/env", _exports(environment or {}))
        await self.write(f"{folder}/command", command.encode())
        await self.write(f"{folder}/run", WRAPPER.encode())
        stdin = self._absolute(stdin_file) if stdin_file else "/dev/null"
        words = ("bash", f"{folder}/run", f"{time_limit:g}", stdin, self._absolute("."))
        execution = await self._endpoint.execute(self._devbox.id, shlex.join(words), key=self._key("solve"))
        await self._announce(execution.id)
        return await self._watch(execution.id, time_limit)

    async def read(self, path: str) -> bytes:
        try:
            return await self._endpoint.read_file(self._devbox.id, self._absolute(path))
        except (Missing, Conflicted) as error:
            raise FileNotFoundError(str(error)) from None

    async def write(self, path: str, data: bytes) -> None:
        await self._endpoint.write_file(self._devbox.id, self._absolute(path), data)

    def _absolute(self, path: str) -> str:
        return path if path.startswith("/") else f"{self._working_directory.rstrip('/')}/{path}".removesuffix("/.")

    async def _watch(self, execution: str, time_limit: float) -> ExecResult:
        with anyio.move_on_after(time_limit + BACKSTOP):
            status = await self._end(execution)
            if status == _TIMED_OUT and await self._is_timed_out():
                status = None
            return ExecResult(exit_status=status, stdout=_tail(self._log), stderr="")
        await self._endpoint.kill(self._devbox.id, execution)
        raise AgentTimedOut(
            f"the agent was still there {BACKSTOP:g} s after its limit of {time_limit:g} s and was killed"
        )

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
        """Write what the agent prints to its log, from its first byte, until it has ended or its devbox has."""
        with self._log.open("wb") as log:
            try:
                async with aclosing(self._endpoint.output(self._devbox.id, execution)) as pieces:
                    async for text, _ in pieces:
                        _append(log, text)
            except (Missing, Conflicted, Unavailable):
                return  # the devbox is gone; whoever waits for the command hears of it and says so

    async def _is_timed_out(self) -> bool:
        try:
            return (await self.read(f"{self.scratch}/agent/status")).strip() == b"timed-out"
        except FileNotFoundError:
            return False


def _append(log: BinaryIO, text: str) -> None:
    log.write(text.encode("utf-8", "replace"))
    log.flush()


def _exports(environment: Mapping[str, str]) -> bytes:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()).encode()


def _tail(log: Path) -> str:
    """The end of a log as text."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        return file.read().decode("utf-8", "replace")
