"""One command of a client: the program it becomes, its turn in a named shell, and its run from first byte to last.

A command is run by a fresh login shell, or by one that continues where a named shell stopped. A named shell is no
process that lives on: its folder and exported environment are kept in a file of the box between commands, which run one
at a time. Why not a real shell behind a pipe: the end of a command, its exit status and its output would have to be
guessed from what it prints.

What a command prints goes to disk, what is sent to it goes in. It can be spoken to before its process exists: input, an
interrupt and a kill wait for it.
"""

import shlex
from asyncio import Queue
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from orchestrator.service.devboxes.output import Spool
from orchestrator.service.devboxes.states import KILLED
from orchestrator.service.errors import BadRequest
from orchestrator.service.sandbox.commands import write_file
from orchestrator.service.sandbox.provider import Box, BoxDied, Command, Process, shell

MAX_ARGUMENT_BYTES: Final = 100_000
"""Bytes; the kernel takes at most 131,072 in one argument, and longer commands go through a file."""

_CONTINUED: Final = r"""
__state=$1 __command=$2; set --
if [ -f "$__state" ]; then
  for __name in $(compgen -e); do unset "$__name" 2>/dev/null; done
  . "$__state" 2>/dev/null
fi
__keep() {
  { declare -px | grep -v '^declare -[a-zA-Z]*r'; printf 'cd -- %q\n' "$PWD"; } > "$__state.new" &&
  mv -f -- "$__state.new" "$__state"
}
trap __keep EXIT
eval "$__command"
"""
MAX_PENDING_BYTES: Final = 16 << 20
"""Bytes of input that may wait for a program which does not read them."""


async def program_for(box: Box, command: str, *, execution_id: str, shell_name: str | None, stdin: bool) -> Command:
    """Make the program that runs `command` in the working directory, or where the named shell is. Raises BoxDied."""
    if len(command.encode()) > MAX_ARGUMENT_BYTES:
        path = f"/tmp/.command-{execution_id}"  # noqa: S108 - the box's own /tmp
        await write_file(box, path, command.encode(), as_user=True)
        command = f". {shlex.quote(box.path(path))}"
    if shell_name is None:
        return shell(command, words=box.shell, stdin=stdin)
    name = sha256(shell_name.encode()).hexdigest()[:16]
    state = box.path(f"/tmp/.shell-{name}")  # noqa: S108 - the box's own /tmp
    return Command(argv=(*box.shell, _CONTINUED, "bash", state, command), stdin=stdin)


class Turns:
    """Turns in named shells, first come first served."""

    def __init__(self) -> None:
        self._locks: dict[tuple[str, str], anyio.Lock] = {}

    @asynccontextmanager
    async def turn(self, devbox_id: str, shell_name: str | None) -> AsyncIterator[None]:
        """Wait for the turn; a command without a named shell never waits."""
        if shell_name is None:
            yield
            return
        key = (devbox_id, shell_name)
        lock = self._locks.setdefault(key, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._locks.pop(key, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The end of a command: its exit status, and a word for people where the status does not say it all."""

    status: int
    note: str | None = None


class LiveExecution:
    """A command that has not ended yet."""

    def __init__(self, identity: str, *, spools: Mapping[str, Spool], has_stdin: bool) -> None:
        self.id = identity
        self.spools = spools
        #: Cancelled to stop waiting for the turn in a named shell.
        self.turn = anyio.CancelScope()
        #: Set when its end is recorded.
        self.done = anyio.Event()
        self._has_stdin = has_stdin
        self._killed = anyio.Event()
        self._process: Process | None = None
        self._input: Queue[bytes | None] = Queue()
        self._pending = 0
        self._is_input_over = False
        self._is_interrupted = False

    async def run(self, box: Box, command: Command) -> Ending:
        """Run the command to its end. A box that dies is an ending too."""
        if self._killed.is_set():
            return Ending(status=KILLED, note="It was killed before it started.")
        try:
            process = self._process = await box.spawn(command)
            if self._killed.is_set():
                await process.kill()
            elif self._is_interrupted:
                await process.interrupt()
            ending = Ending(status=KILLED)
            async with anyio.create_task_group() as feeding:
                if process.stdin is not None:
                    feeding.start_soon(self._feed, process.stdin)
                async with anyio.create_task_group() as reading:
                    reading.start_soon(_pump, process.stdout, self.spools["stdout"])
                    reading.start_soon(_pump, process.stderr, self.spools["stderr"])
                    ending = await _end(process)
                feeding.cancel_scope.cancel()
        except BoxDied as error:
            return Ending(status=KILLED, note=f"The devbox ended under it: {error}")
        if self._killed.is_set():  # a program may answer a polite end with success, but it was cut off
            return Ending(status=ending.status or KILLED, note="It was killed.")
        return ending

    async def kill(self) -> None:
        """End the command and all its descendants, or prevent its start. Idempotent."""
        self._killed.set()
        self.turn.cancel()
        if self._process is not None:
            await self._process.kill()

    def send(self, text: str) -> None:
        """Put text on its standard input. Raises BadRequest if there is none, or nobody reads it."""
        self._require_input()
        if self._is_input_over:
            raise BadRequest(f"The standard input of execution {self.id} was closed by EOF.")
        data = text.encode()
        if self._pending + len(data) > MAX_PENDING_BYTES:
            raise BadRequest(f"Execution {self.id} does not read its input: {self._pending} bytes are waiting for it.")
        self._pending += len(data)
        self._input.put_nowait(data)

    def end_input(self) -> None:
        """Close its standard input behind what was sent. Idempotent. Raises BadRequest if there is none."""
        self._require_input()
        if not self._is_input_over:
            self._is_input_over = True
            self._input.put_nowait(None)

    async def interrupt(self) -> None:
        """Send SIGINT to the command, or as soon as it runs. Raises BadRequest if it was started without input."""
        self._require_input()
        self._is_interrupted = True
        if self._process is not None:
            await self._process.interrupt()

    def _require_input(self) -> None:
        if not self._has_stdin:
            raise BadRequest(f"Execution {self.id} has no standard input; start it with attach_stdin=true.")

    async def _feed(self, stdin: ByteSendStream) -> None:
        try:
            while (data := await self._input.get()) is not None:
                await stdin.send(data)
                self._pending -= len(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the program closed its input, which is its right
        finally:
            await stdin.aclose()


async def _pump(stream: ByteReceiveStream, spool: Spool) -> None:
    async for chunk in stream:
        await spool.write(chunk)


async def _end(process: Process) -> Ending:
    """Return the end of a process, a death of its box too: an exception would leave a task group inside a group."""
    try:
        return Ending(status=await process.wait())
    except BoxDied as error:
        return Ending(status=KILLED, note=f"The devbox ended under it: {error}")
