"""The devbox as an agent uses it, and the small script in the devbox that makes an agent run at most once.

The script takes a marker folder first: whoever finds it taken waits for the first run instead of starting another, so
that no endpoint can start an agent twice. It ends the agent at its time limit with all it started, whether we watch or
not, and records how it ended. Environment values travel in a file that the script reads and removes, never in argv.

Nothing is taken on trust that somebody between us and the devbox may have said in its place: a command looks first
whether the files that were written for it are there, and an agent has ended when the script's own record says so.
"""

import posixpath
import re
import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
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
from orchestrator.core.records import Devbox, Execution
from orchestrator.endpoint.protocols import Executions
from orchestrator.engine.agent_log import AgentLog
from orchestrator.engine.redact import NO_SECRETS, Redactor

#: Seconds that our own timer leaves the script to end the agent itself.
BACKSTOP_S: Final = 60.0
TAIL: Final = 20_000
#: Seconds for ending a command that nobody waits for any more.
KILL_GRACE_S: Final = 1.0
#: Seconds that the output of an ended agent may stand still before it is given up, and take altogether.
OUTPUT_IDLE_S: Final = 15.0
OUTPUT_TOTAL_S: Final = 45.0
#: Seconds in which what a command did not come to read must be taken away again.
CLEAN_UP_S: Final = 5.0

#: What the wrapper ends with where the agent was ended with it, unrecorded; and a command whose files did not arrive.
_ENDED_UNRECORDED: Final = 125
_NOT_WRITTEN: Final = 96
_NOT_THERE: Final = "sweep: what was written for this command is not there"
#: Bytes of what the wrapper records.
_RECORD: Final = 100
#: How often an agent's execution may be lost sight of.
_SIGHTS: Final = 5
#: Seconds between two notes of how far the log has come.
NOTE_EVERY_S: Final = 5.0

Announce = Callable[[str], None]
Keep = Callable[[int, int], None]
Vouch = Callable[[str], Awaitable[int | None]]
"""Whether the endpoint itself says that an execution has ended: its exit status, None if it does not say."""


@cache
def _wrapper() -> bytes:
    return Path(__file__).with_name("agent_wrapper.sh").read_bytes()


class DevboxWorkspace:
    """Implements `agentkit.contract.Workspace` for one attempt.

    `key` names the attempt and its steps on the endpoint; `announce` is told the id of the agent's execution; `log` is
    the attempt's agent.log, and `keep` is told now and then from which byte of the output on to read, and how long the
    log is that has all before it. `left` is what an earlier process knew. What `redactor` knows never gets into the
    log. `vouch` asks the endpoint about an agent's execution that left no record of its end.
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
        #: Where our own steps have room in the devbox.
        self.scratch = f"{devbox.home}/.sweep"
        self._execution = left.execution if left else None
        self._is_again = left is not None
        #: The next byte of the output to ask for, and the length of the log that has all before it.
        self._offset, self._length = (left.offset, left.length) if left else (0, 0)
        #: What was written for the agent into the scratch folder.
        self._laid_out: dict[str, bytes] = {}
        #: When all of the output must have arrived, once the agent has ended.
        self._last_word = inf
        #: Whether something of what the agent printed did not arrive: it vanished with its execution, was refused, or
        #: took too long.
        self.is_log_incomplete = False
        #: Whether the log was too long to be kept as a whole.
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
        """Run a script of ours to its end: once for each step of this attempt, also if it is asked for again."""
        path = f"{self.scratch}/{step}.sh"
        return await self._finish(step, {path: script.encode()}, f"exec bash {shlex.quote(path)}", timeout)

    async def _finish(
        self, step: str, files: Mapping[str, bytes], line: str, timeout: float, on_output: OnOutput | None = None
    ) -> ExecResult:
        """Write files, run a shell command on them to its end. Raises Unavailable if they do not arrive."""
        for sight in range(1, _SIGHTS + 1):
            async with self._lending(files):
                execution = await self._start(_step(step, sight), files, line)
            ended = await self._complete(execution, timeout, on_output)
            if (ended.exit_status, ended.stderr.strip()) != (_NOT_WRITTEN, _NOT_THERE):
                return ended
            structlog.get_logger().warning("devbox.not_written", devbox=self._devbox.id, files=list(files))
        raise Unavailable(f"what is written into devbox {self._devbox.id} does not arrive there")

    async def _start(self, step: str, files: Mapping[str, bytes], line: str) -> str:
        """Start a shell command, which ends with `_NOT_WRITTEN` if these files are not there; returns its id."""
        execution = await self._endpoint.execute(self._devbox.id, _check(files) + line, key=self._key(step))
        return execution.id

    async def _complete(self, execution: str, timeout: float, on_output: OnOutput | None = None) -> ExecResult:
        """Wait for a command, or end it after so many seconds."""
        try:
            with anyio.move_on_after(timeout):
                ended = await self._completed(execution, on_output)
                return ExecResult(exit_status=ended.exit_status, stdout=ended.stdout, stderr=ended.stderr)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(KILL_GRACE_S, shield=True), suppress(WorldError):
                await self._kill(execution)
            raise
        await self._kill(execution)
        return ExecResult(exit_status=None, stdout="", stderr=f"ended after {timeout:g} s")

    async def _completed(self, execution: str, on_output: OnOutput | None) -> Execution:
        """Wait for a command of the agent's, and for somebody to have taken all it prints."""
        try:
            async with anyio.create_task_group() as tasks:
                if on_output is not None:
                    tasks.start_soon(self._tell, execution, on_output)
                ended = await self._endpoint.wait_completed(self._devbox.id, execution)
        except BaseExceptionGroup as group:
            error = leaf(group)
            if isinstance(error, Missing):
                raise DevboxLost(f"devbox {self._devbox.id} forgot a command: {error}") from None
            raise error from None
        return ended

    async def _tell(self, execution: str, on_output: OnOutput) -> None:
        with suppress(Missing, Conflicted, Unavailable):  # whoever waits for the command hears of it and says so
            async with aclosing(self._endpoint.output(self._devbox.id, execution)) as pieces:
                async for text, _ in pieces:
                    await on_output(text)

    @asynccontextmanager
    async def _lending(self, files: Mapping[str, bytes]) -> AsyncIterator[None]:
        """Write the files of a command that reads and removes the values among them; take these away if it cannot be
        started.
        """
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
            is_begun = False  # if it was, what it runs must not be written anew under it
            if self._is_again:
                with suppress(FileNotFoundError, ValueError):
                    is_begun = bool(await self.read(f"{folder}/marker/pid", at_most=_RECORD))
            if is_begun:
                await self._execute({}, line, 1)
            else:
                await self._begin(files, line, 1)
        with anyio.move_on_after(time_limit + BACKSTOP_S):
            return await self._watch(files, line)
        await self._kill(str(self._execution))
        ending = ""
        with anyio.move_on_after(OUTPUT_IDLE_S):
            ending = await self._read_ending()
        if ending:  # it was we who were late
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
        return path if path.startswith("/") else f"{self._working_directory.rstrip('/')}/{path}".removesuffix("/.")

    async def _begin(self, files: Mapping[str, bytes], line: str, sight: int) -> None:
        """Write what the agent's command needs, and start the wrapper."""
        async with self._lending(files):
            await self._execute({**self._laid_out, **files}, line, sight)

    async def _execute(self, files: Mapping[str, bytes], line: str, sight: int) -> None:
        """Start the wrapper; it is the agent's only where it finds no other."""
        self._execution = await self._start(_step("solve", sight), files, line)
        self._announce(self._execution)

    async def _watch(self, files: Mapping[str, bytes], line: str) -> ExecResult:
        """Wait for the agent, until there is a record of its end in the devbox.

        An execution that the endpoint forgets, or calls ended while the agent works, is waited for by another.
        """
        for sight in range(2, _SIGHTS + 2):
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
                if status != _NOT_WRITTEN and self._vouch is not None:  # it may have ended who was to record its end
                    with suppress(Missing, Conflicted):
                        if (vouched := await self._vouch(str(self._execution))) is not None:
                            return ExecResult(exit_status=vouched, stdout=_tail(self._log), stderr="")
                if status == _ENDED_UNRECORDED:
                    raise DevboxLost(f"devbox {self._devbox.id} ended the agent, and nothing there says how")
            if sight > _SIGHTS:
                break
            if status == _NOT_WRITTEN:
                await self._begin(files, line, sight)
            else:
                await self._execute({}, line, sight)
                self._note(0)
        raise DevboxLost(f"devbox {self._devbox.id} does not say what became of the agent")

    async def _kill(self, execution: str) -> None:
        with suppress(Missing, Conflicted):  # it is over, or its devbox is
            await self._endpoint.kill(self._devbox.id, execution)

    async def _end(self, execution: str) -> int | None:
        """Stream the output while waiting for the end. Raises what the wait raises."""
        words = anyio.CancelScope()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._stream, execution, words)
                ended = await self._endpoint.wait_completed(self._devbox.id, execution)
                self._last_word = anyio.current_time() + OUTPUT_TOTAL_S
                words.deadline = anyio.current_time() + OUTPUT_IDLE_S
        except BaseExceptionGroup as group:
            raise leaf(group) from None
        return ended.exit_status

    async def _stream(self, execution: str, words: anyio.CancelScope) -> None:
        """Bring the agent's output home until it has ended, its devbox has, or nothing more of an ended agent comes.

        What is in the log already is not asked for again.
        """
        async with AgentLog(self._log, self._redactor, length=self._length) as log:
            if log.length < self._length:
                self._offset = self._length = 0
            with words:
                try:
                    async with aclosing(self._endpoint.output(self._devbox.id, execution, self._offset)) as pieces:
                        await self._follow(pieces, log, words)
                except (Missing, Conflicted, Unavailable):
                    self.is_log_incomplete = True  # if the devbox is gone, too, whoever waits for the command says so
            await log.finish()
            self._length = log.length
            self.is_log_truncated = log.is_truncated
            self.is_log_incomplete |= words.cancelled_caught

    async def _follow(self, pieces: AsyncIterator[tuple[str, int]], log: AgentLog, words: anyio.CancelScope) -> None:
        noted_at, cuts = anyio.current_time(), 0
        async for text, offset in pieces:
            await log.write(text.encode("utf-8", "replace"))
            if log.is_settled:  # else what waits must be asked for again by whoever goes on
                self._offset, self._length = offset, log.length
                if log.cuts > cuts or anyio.current_time() >= noted_at + NOTE_EVERY_S:
                    self._note(offset)
                    noted_at, cuts = anyio.current_time(), log.cuts
            if words.deadline < inf:
                words.deadline = min(self._last_word, anyio.current_time() + OUTPUT_IDLE_S)

    def _note(self, offset: int) -> None:
        self._offset = offset
        self._keep(offset, self._length)

    async def _read_ending(self) -> str:
        """Read the wrapper's record of the agent's end; empty if there is none."""
        with suppress(FileNotFoundError, ValueError):
            ending = (await self.read(f"{self.scratch}/agent/status", at_most=_RECORD)).decode(errors="replace").strip()
            if ending == "timed-out" or re.fullmatch(r"\d{1,3}", ending):
                return ending
        return ""


def _step(step: str, sight: int) -> str:
    """The name of a step that may have to be taken again."""
    return step if sight == 1 else f"{step}-{sight}"


def _check(files: Mapping[str, bytes]) -> str:
    """Shell lines that end a command unless these files are there as they were written.

    They are told by size and, where the devbox can tell, by content; values only by size, because commands are listed.
    """
    if not files:
        return ""
    sizes = [f'[ "$(wc -c <{shlex.quote(path)})" -eq {len(data)} ]' for path, data in files.items()]
    sums = "".join(f"{sha256(data).hexdigest()}  {path}\n" for path, data in files.items() if not _has_values(path))
    digests = f"{{ ! command -v sha256sum || printf %s {shlex.quote(sums)} | sha256sum -c; }}"
    both = " && ".join([*sizes, digests])
    return f"{{ {both}; }} >/dev/null 2>&1 || {{ echo {shlex.quote(_NOT_THERE)} >&2; exit {_NOT_WRITTEN}; }}\n"


def _has_values(path: str) -> bool:
    """Tell whether a file of ours holds values of variables, secrets among them."""
    return posixpath.basename(path) == "env"


def _exports(environment: Mapping[str, str]) -> bytes:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()).encode()


def _tail(log: Path) -> str:
    """The end of a log as text."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        return file.read().decode("utf-8", "replace")
    return ""
