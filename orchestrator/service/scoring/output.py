"""Runs a scorer's program and keeps what it printed: for people its first and last part, for us the end of stdout.

Not `commands.run`, which keeps the beginning of each stream apart: a score is the last thing that a scorer prints, and
a person wants to read both streams in the order they came. Memory is bounded whatever is printed.
"""

from typing import Final

import anyio
from anyio.abc import ByteReceiveStream

from orchestrator.service.sandbox.commands import wait_attended
from orchestrator.service.sandbox.provider import Box, Command
from orchestrator.service.scoring.verdict import Ended

SHOWN: Final = 64 * 1024
SEARCHED: Final = 1024 * 1024


class _Kept:
    """The first and the last bytes of a stream; what came between is counted."""

    def __init__(self, *, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._head, self._tail = bytearray(), bytearray()
        self._lost = 0

    def add(self, chunk: bytes) -> None:
        room = self._first - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        if len(self._tail) > 2 * self._last:  # seldom, so that a flood of small chunks is not moved each time
            self._trim()

    def _trim(self) -> None:
        excess = max(0, len(self._tail) - self._last)
        self._lost += excess
        del self._tail[:excess]

    def whole(self) -> str:
        """What was kept, with a line that says what was left out."""
        self._trim()
        head, tail = (bytes(part).decode(errors="replace") for part in (self._head, self._tail))
        return f"{head}\n[{self._lost} bytes left out]\n{tail}" if self._lost else head + tail

    def end(self) -> str:
        """The last bytes, from the first whole line on if something was left out before them."""
        self._trim()
        text = bytes(self._tail).decode(errors="replace")
        return text.partition("\n")[2] if self._lost else text


async def watch(box: Box, command: Command, *, timeout: float) -> Ended:
    """Run a command to its end, or kill it with all its descendants after `timeout` seconds. Raises BoxDied."""
    shown, stdout = _Kept(first=SHOWN // 2, last=SHOWN // 2), _Kept(first=0, last=SEARCHED)
    process = await box.spawn(command)
    status: int | None = None
    with anyio.move_on_after(timeout):
        status = await wait_attended(
            process,
            lambda: _collect(process.stdout, (shown, stdout)),
            lambda: _collect(process.stderr, (shown,)),
        )
    return Ended(status=status, limit=timeout, stdout=stdout.end(), output=shown.whole())


async def _collect(stream: ByteReceiveStream, kept: tuple[_Kept, ...]) -> None:
    async for chunk in stream:
        for each in kept:
            each.add(chunk)
