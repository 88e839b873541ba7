"""The devbox as an agent uses it, and the small script in the devbox that makes an agent run at most once.

The script takes a marker folder first: if it is taken, it waits for the first run instead of starting another, so that
no endpoint can start an agent twice. It ends the agent at its time limit with all its processes, also while nothing
watches it, and records how it ended. Values of variables travel in a file that the script reads and removes, never in
argv.

Nothing is believed that a proxy between us and the devbox could have said in its place: a command checks first that
the files that were written for it are there, and an agent has ended when the script's own record says so.
"""

import posixpath
import re
import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, nullcontext, suppress
from functools import cache
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Final
from uuid import uuid4

import anyio
import structlog

from orchestrator.agentkit.agent import ExecResult, OnOutput, whole
from orchestrator.core.errors import AgentTimedOut, Conflicted, DevboxLost, Missing, Unavailable, WorldError, leaf
from orchestrator.core.ledger import Attempt
from orchestrator.core.records import Devbox
from orchestrator.endpoint.protocols import Executions
from orchestrator.engine.agent_log import AgentLog
from orchestrator.engine.redact import NO_SECRETS, Redactor

#: Seconds that our own timer leaves the script to end the agent itself.
BACKSTOP_S: Final = 60.0
#: The end of an agent's log that its result quotes.
TAIL_BYTES: Final = 20_000
#: Seconds for killing a command whose caller was canceled.
KILL_GRACE_S: Final = 1.0
#: Seconds that the output of an ended agent may stand still before it is given up, and take altogether.
OUTPUT_IDLE_S: Final = 15.0
OUTPUT_TOTAL_S: Final = 45.0
#: Seconds for emptying the files of a command that could not be started.
CLEAN_UP_S: Final = 5.0
#: Seconds between two journal notes on the length of the log.
NOTE_EVERY_S: Final = 5.0

#: Exit status of a wrapper that ended without a record of the agent's end, and of a command whose files are missing.
_ENDED_UNRECORDED: Final = 125
NOT_WRITTEN: Final = 96
NOT_THERE: Final = "sweep: what was written for this command is not there"
_SUMS_END: Final = "END-OF-SUMS"
_MAX_RECORD_BYTES: Final = 100
#: Executions for one command, or one agent, until it is given up.
_MAX_TRIES: Final = 5

Announce = Callable[[str], None]
Keep = Callable[[int, int], None]
Vouch = Callable[[str], Awaitable[int | None]]
"""Ask the endpoint itself if an execution has ended: its exit status, None if it does not say."""


@cache
def _wrapper() -> bytes:
    return Path(__file__).with_name("agent_wrapper.sh").read_bytes()


class DevboxWorkspace:
    """Implements `agentkit.agent.Workspace` for one attempt.

    `key` makes the idempotency key of a step. `announce` is called with the id of the agent's execution. `log` is the
    attempt's agent.log, masked by `redactor`; `keep` is called every few seconds with the next byte of the output to
    read, and the length of the log that has all before it. `left` is the attempt as an earlier process journaled it.
    `vouch` asks the endpoint about an agent's execution that left no record of its end.
    """

    def __init__(
        self,
        endpoint: Executions,
        devbox: Devbox,
        *,
        working_directory: str,
        key: Callable[[str], str],
        announce: Announce,
        keep: Keep,
        log: Path,
        left: Attempt | None = None,
        redactor: Redactor = NO_SECRETS,
        vouch: Vouch | None = None,
        moving: Callable[[anyio.CancelScope], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._endpoint = endpoint
        self._devbox = devbox
        self._working_directory = working_directory
        self._key = key
        self._announce = announce
        self._keep = keep
        self._log = log
        self._redactor = redactor
        self._vouch = vouch
        #: Moves the deadline of a command while the endpoint is silent.
        self._moving = moving
        #: The folder in the devbox for our own steps.
        self.scratch = f"{devbox.home}/.sweep"
        self._execution = left.execution if left else None
        self._is_again = left is not None
        #: The next byte of the output to ask for, and the length of the log that has all before it.
        self._offset, self._length = (left.offset, left.length) if left else (0, 0)
        #: Files that were written for the agent into the scratch folder.
        self._laid_out: dict[str, bytes] = {}
        #: The loop's time by which all output must have arrived, once the agent has ended.
        self._output_ends_at = inf
        #: True if output of the agent did not arrive: it vanished with its execution, was refused, or took too long.
        self.is_log_incomplete = False
        #: True if the log was too long to be kept as a whole.
        self.is_log_truncated = False

    @property
    def devbox(self) -> Devbox:
        """The devbox as it was when the workspace was opened."""
        return self._devbox

    @property
    def working_directory(self) -> str:
        return self._working_directory

    @property
    def home(self) -> str:
        return self._devbox.home

    @property
    def installed(self) -> frozenset[str]:
        return self._devbox.installed

    async def exec(
        self,
        command: str,
        *,
        timeout: float = 600.0,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
        on_output: OnOutput | None = None,
    ) -> ExecResult:
        folder = f"{self.scratch}/exec-{uuid4().hex[:12]}"  # an earlier process's commands were others
        quoted = shlex.quote(folder)
        line = f". {quoted}/env; rm -f {quoted}/env; cd {shlex.quote(self._absolute(cwd or '.'))} && . {quoted}/command"
        files = {f"{folder}/command": command.encode(), f"{folder}/env": _exports(environment or {})}
        return await self._finish(folder, files, line, timeout, on_output)

    async def tend(self, step: str, script: str, *, timeout: float) -> ExecResult:
        """Run a script of ours to its end: once for each `step` of this attempt, also when it is called again."""
        path = f"{self.scratch}/{step}.sh"
        return await self._finish(step, {path: script.encode()}, f"exec bash {shlex.quote(path)}", timeout)

    async def _finish(
        self, step: str, files: Mapping[str, bytes], line: str, timeout: float, on_output: OnOutput | None = None
    ) -> ExecResult:
        """Write files, run a shell command on them to its end. Raises Unavailable if they do not arrive."""
        for number in range(1, _MAX_TRIES + 1):
            async with self._lending(files):
                execution = await self._start(_step(step, number), files, line)
            ended = await self._complete(execution, timeout, on_output)
            if (ended.exit_status, ended.stderr.strip()) != (NOT_WRITTEN, NOT_THERE):
                return ended
            structlog.get_logger().warning("devbox.not_written", devbox=self._devbox.id, files=list(files))
        raise Unavailable(f"what is written into devbox {self._devbox.id} does not arrive there")

    async def _start(self, step: str, files: Mapping[str, bytes], line: str) -> str:
        """Start a shell command, which ends with `NOT_WRITTEN` unless these files are there; returns its id."""
        execution = await self._endpoint.execute(self._devbox.id, files_check(files) + line, key=self._key(step))
        return execution.id

    async def _complete(self, execution: str, timeout: float, on_output: OnOutput | None = None) -> ExecResult:
        """Wait for a command, and for `on_output` to have all it prints; end it after `timeout` seconds."""

        async def pass_on(on_output: OnOutput) -> None:
            with suppress(Missing, Conflicted, Unavailable):  # the wait for the command fails in the same way
                async with aclosing(self._endpoint.output(self._devbox.id, execution)) as pieces:
                    async for text, _ in pieces:
                        await on_output(text)

        try:
            with anyio.move_on_after(timeout) as limit, self._moving(limit):
                async with anyio.create_task_group() as tasks:
                    if on_output is not None:
                        tasks.start_soon(pass_on, on_output)
                    ended = await self._endpoint.wait_completed(self._devbox.id, execution)
                return ExecResult(exit_status=ended.exit_status, stdout=ended.stdout, stderr=ended.stderr)
        except BaseExceptionGroup as group:
            error = leaf(group)
            if isinstance(error, Missing):
                raise DevboxLost(f"devbox {self._devbox.id} forgot a command: {error}") from None
            raise error from None
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(KILL_GRACE_S, shield=True), suppress(WorldError):
                await self._kill(execution)
            raise
        await self._kill(execution)
        return ExecResult(exit_status=None, stdout="", stderr=f"ended after {timeout:g} s")

    @asynccontextmanager
    async def _lending(self, files: Mapping[str, bytes]) -> AsyncIterator[None]:
        """Write the files of a command, which removes those with values; empty these if it cannot be started."""
        try:
            for path, data in files.items():
                await self.write(path, data)
            yield
        except BaseException:
            with anyio.move_on_after(CLEAN_UP_S, shield=True), suppress(WorldError):
                for path in filter(_has_values, files):
                    await self.write(path, b"")
            raise

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
        line = shlex.join(("bash", f"{folder}/run", f"{time_limit:g}", stdin, self._absolute(".")))
        files = {
            f"{folder}/command": command.encode(),
            f"{folder}/run": _wrapper(),
            f"{folder}/env": _exports(environment or {}),
        }
        if self._execution is None:
            is_begun = False  # if it was, its files must not be written again while it runs them
            if self._is_again:
                with suppress(FileNotFoundError, ValueError):
                    is_begun = bool(await self.read(f"{folder}/marker/pid", at_most=_MAX_RECORD_BYTES))
            if is_begun:
                await self._execute({}, line, 1)
            else:
                await self._begin(files, line, 1)
        with anyio.move_on_after(time_limit + BACKSTOP_S) as limit, self._moving(limit):
            return await self._watch(files, line)
        await self._kill(str(self._execution))
        ending = ""
        with anyio.move_on_after(OUTPUT_IDLE_S):
            ending = await self._read_ending()
        if ending:  # we were late, not the agent
            return await self._watch(files, line)
        raise AgentTimedOut(
            f"the agent was still there {BACKSTOP_S:g} s after its limit of {time_limit:g} s and was killed"
        )

    async def read(self, path: str, *, at_most: int) -> bytes:
        return await whole(self.pieces(path), path, at_most)

    async def pieces(self, path: str) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._endpoint.read_file(self._devbox.id, self._absolute(path))) as pieces:
                async for piece in pieces:
                    yield piece
        except (Missing, Conflicted) as error:
            raise FileNotFoundError(str(error)) from None

    async def write(self, path: str, data: bytes) -> None:
        path = self._absolute(path)
        try:
            await self._endpoint.write_file(self._devbox.id, path, data)
        except Conflicted:
            if not self._is_again or self._execution is None:
                raise
            # The agent of an earlier process had it, and has ended since: its devbox is closed to all writers.
        if posixpath.dirname(path) == self.scratch:
            self._laid_out[path] = data

    def _absolute(self, path: str) -> str:
        if path.startswith("/"):
            return path
        return f"{self._working_directory.rstrip('/')}/{path}".removesuffix("/.") or "/"

    async def _begin(self, files: Mapping[str, bytes], line: str, number: int) -> None:
        """Write the files of the agent's command, and start the wrapper."""
        async with self._lending(files):
            await self._execute({**self._laid_out, **files}, line, number)

    async def _execute(self, files: Mapping[str, bytes], line: str, number: int) -> None:
        """Start the wrapper; it runs the agent only if no other wrapper did."""
        self._execution = await self._start(_step("solve", number), files, line)
        self._announce(self._execution)

    async def _watch(self, files: Mapping[str, bytes], line: str) -> ExecResult:
        """Wait for the agent, until there is a record of its end in the devbox.

        If the endpoint forgets the execution, or calls it ended while the agent works, another execution waits for it.
        """
        for number in range(2, _MAX_TRIES + 2):
            status: int | None = None
            try:
                status = await self._end(str(self._execution))
            except Missing as error:
                self.is_log_incomplete = True
                structlog.get_logger().warning("execution.vanished", execution=self._execution, error=str(error))
            else:
                if ending := await self._read_ending():
                    ended = None if ending == "timed-out" else int(ending)
                    return ExecResult(exit_status=ended, stdout=_tail(self._log), stderr="")
                if status != NOT_WRITTEN and self._vouch is not None:  # the wrapper may have been killed
                    with suppress(Missing, Conflicted):
                        if (vouched := await self._vouch(str(self._execution))) is not None:
                            return ExecResult(exit_status=vouched, stdout=_tail(self._log), stderr="")
                if status == _ENDED_UNRECORDED:
                    raise DevboxLost(f"devbox {self._devbox.id} ended the agent, and nothing there says how")
            if number > _MAX_TRIES:
                break
            if status == NOT_WRITTEN:
                await self._begin(files, line, number)
            else:
                await self._execute({}, line, number)
                self._note(0)
        raise DevboxLost(f"devbox {self._devbox.id} does not say what became of the agent")

    async def _kill(self, execution: str) -> None:
        with suppress(Missing, Conflicted):  # it is over, or its devbox is
            await self._endpoint.kill(self._devbox.id, execution)

    async def _end(self, execution: str) -> int | None:
        """Stream the output while waiting for the end; returns the exit status. Raises as `wait_completed`."""
        streaming = anyio.CancelScope()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._stream, execution, streaming)
                ended = await self._endpoint.wait_completed(self._devbox.id, execution)
                self._output_ends_at = anyio.current_time() + OUTPUT_TOTAL_S
                streaming.deadline = anyio.current_time() + OUTPUT_IDLE_S
        except BaseExceptionGroup as group:
            raise leaf(group) from None
        return ended.exit_status

    async def _stream(self, execution: str, streaming: anyio.CancelScope) -> None:
        """Collect the agent's output until it has ended, its devbox has, or nothing more of an ended agent comes.

        Output that is in the log already is not requested again.
        """
        async with AgentLog(self._log, self._redactor, length=self._length) as log:
            if log.length < self._length:
                self._offset = self._length = 0
            with streaming:
                try:
                    async with aclosing(self._endpoint.output(self._devbox.id, execution, self._offset)) as pieces:
                        await self._follow(pieces, log, streaming)
                except (Missing, Conflicted, Unavailable):
                    self.is_log_incomplete = True  # if the devbox is gone, the wait for the command fails, too
            await log.finish()
            self._length = log.length
            self.is_log_truncated = log.is_truncated
            self.is_log_incomplete |= streaming.cancelled_caught

    async def _follow(
        self, pieces: AsyncIterator[tuple[str, int]], log: AgentLog, streaming: anyio.CancelScope
    ) -> None:
        noted_at, cuts = anyio.current_time(), 0
        async for text, offset in pieces:
            await log.write(text.encode("utf-8", "replace"))
            if log.is_settled:  # else a resume must read again the bytes that wait to be masked
                self._offset, self._length = offset, log.length
                if log.cuts > cuts or anyio.current_time() >= noted_at + NOTE_EVERY_S:
                    self._note(offset)
                    noted_at, cuts = anyio.current_time(), log.cuts
            if streaming.deadline < inf:
                streaming.deadline = min(self._output_ends_at, anyio.current_time() + OUTPUT_IDLE_S)

    def _note(self, offset: int) -> None:
        self._offset = offset
        self._keep(offset, self._length)

    async def _read_ending(self) -> str:
        """Read the wrapper's record of the agent's end; empty if there is none."""
        with suppress(FileNotFoundError, ValueError):
            ending = (
                (await self.read(f"{self.scratch}/agent/status", at_most=_MAX_RECORD_BYTES))
                .decode(errors="replace")
                .strip()
            )
            if ending == "timed-out" or re.fullmatch(r"\d{1,3}", ending):
                return ending
        return ""


def _step(step: str, number: int) -> str:
    """The name of a step at its first, second … try."""
    return step if number == 1 else f"{step}-{number}"


def files_check(files: Mapping[str, bytes]) -> str:
    """Shell lines that end a command unless these files are there as they were written.

    Files are compared by size and, where the devbox can, by content; values only by size, because commands are listed.
    """
    if not files:
        return ""
    exact = {path: data for path, data in files.items() if not _has_values(path)}
    sums = "".join(f"{sha256(data).hexdigest()}  {path}\n" for path, data in exact.items())
    checks = _size_checks({path: data for path, data in files.items() if path not in exact})
    if exact:  # one program for all of them, for each takes milliseconds
        by_content = f"sha256sum -c <<'{_SUMS_END}'\n{sums}{_SUMS_END}\n"
        checks.append(f"if command -v sha256sum; then {by_content}else {' && '.join(_size_checks(exact))}; fi")
    refuse = f"{{ echo {shlex.quote(NOT_THERE)} >&2; exit {NOT_WRITTEN}; }}"
    return f"{{ {' && '.join(checks)}; }} >/dev/null 2>&1 || {refuse}\n"


def _size_checks(files: Mapping[str, bytes]) -> list[str]:
    return [f'[ "$(wc -c <{shlex.quote(path)})" -eq {len(data)} ]' for path, data in files.items()]


def _has_values(path: str) -> bool:
    """Tell if a file of ours holds values of variables, secrets among them."""
    return posixpath.basename(path) == "env"


def _exports(environment: Mapping[str, str]) -> bytes:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()).encode()


def _tail(log: Path) -> str:
    """The end of a log as text."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace")
    return ""
