"""One command of a client from its first byte to its last: what it prints goes to disk, what is sent to it goes in.

It can be spoken to before its process exists: input, an interrupt and a kill wait for it.
"""

from asyncio import Queue
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from orchestrator.service.devboxes.spool import Spool
from orchestrator.service.errors import BadRequest
from orchestrator.service.sandbox.provider import Box, BoxDied, Command, Process

KILLED: Final = 137
"""The exit status of a command that was ended by SIGKILL, or with its devbox."""
MAX_PENDING: Final = 16 << 20
"""Bytes of input that may wait for a program which does not read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a command ended: its exit status, and a word for people where the status does not say it all."""

    status: int
    note: str | None = None


class Execution:
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
            ending = await self._attend(process)
        except BoxDied as error:
            return Ending(status=KILLED, note=f"The devbox ended under it: {error}")
        if self._killed.is_set():  # a program may answer a polite end with success, but it was cut off
            return Ending(status=ending.status or KILLED, note="It was killed.")
        return ending

    async def _attend(self, process: Process) -> Ending:
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
        return ending

    async def kill(self) -> None:
        """End the command and all its descendants, or see to it that it never starts. Idempotent."""
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
        if self._pending + len(data) > MAX_PENDING:
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
    """As a value, so that it passes through a task group as it is."""
    try:
        return Ending(status=await process.wait())
    except BoxDied as error:
        return Ending(status=KILLED, note=f"The devbox ended under it: {error}")
