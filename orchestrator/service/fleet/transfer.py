"""Files of any size in and out of a devbox, piece by piece, so that none is ever held in memory.

Like everything that touches a box's files, these are commands in the box; `devboxes.commands` has the ones for texts.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Self

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from orchestrator.errors import BadRequest
from orchestrator.service.devboxes.commands import kill
from orchestrator.service.devboxes.contract import Box, BoxDied, Command, Process

PIECE: Final = 1 << 18
MAX_WORDS: Final = 4096
_WRITE: Final = 'mkdir -p -- "$(dirname -- "$1")" && cat > "$1"'

Read = Callable[[int], Awaitable[bytes]]
"""Reads at most so many bytes of the file that is sent; nothing at its end."""


async def upload(box: Box, path: str, read: Read) -> None:
    """Write a file in the box, with its missing folders. Raises BadRequest with the box's own words, and BoxDied."""
    process = await box.spawn(Command(argv=("bash", "-c", _WRITE, "upload", box.path(path)), stdin=True))
    words = bytearray()
    status: int | BoxDied | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_collect, process.stdout, words)
            tasks.start_soon(_collect, process.stderr, words)
            assert process.stdin is not None
            tasks.start_soon(_send, process.stdin, read)
            status = await _end(process)
    finally:
        if status is None:
            await kill(process)
    if isinstance(status, BoxDied):
        raise status
    if status != 0:
        raise BadRequest(f"{path}: cannot be written in devbox {box.id}: {_text(words, status)}")


class Download:
    """A file of a box that is being read; close it in any case."""

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self._name = name
        self._first = b""
        self._status: int | None = None

    @classmethod
    async def open(cls, box: Box, path: str) -> Self:
        """Open a file. Raises BadRequest with the box's own words when it cannot be read, and BoxDied."""
        process = await box.spawn(Command(argv=("cat", "--", box.path(path))))
        opened = cls(process, f"{path}: cannot be read in devbox {box.id}")
        try:
            opened._first = await opened._receive()
        except BaseException:
            await opened.close()
            raise
        return opened

    async def pieces(self) -> AsyncIterator[bytes]:
        """The contents. Raises BadRequest when reading fails midway, and BoxDied."""
        piece = self._first
        while piece:
            yield piece
            piece = await self._receive()

    async def _receive(self) -> bytes:
        try:
            return await self._process.stdout.receive(PIECE)
        except anyio.EndOfStream:
            words = bytearray()
            await _collect(self._process.stderr, words)
            self._status = await self._process.wait()
        if self._status != 0:
            raise BadRequest(f"{self._name}: {_text(words, self._status)}")
        return b""

    async def close(self) -> None:
        """End the reading, even while being cancelled. Idempotent."""
        if self._status is None:
            await kill(self._process)
            self._status = -1


async def _send(stream: ByteSendStream, read: Read) -> None:
    try:
        while piece := await read(PIECE):
            await stream.send(piece)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return  # the program ended early, and says why
    finally:
        await stream.aclose()


async def _collect(stream: ByteReceiveStream, words: bytearray) -> None:
    async for chunk in stream:
        words += chunk[: max(0, MAX_WORDS - len(words))]


async def _end(process: Process) -> int | BoxDied:
    try:
        return await process.wait()
    except BoxDied as error:
        return error


def _text(words: bytearray, status: int | None) -> str:
    return words.decode(errors="replace").strip() or f"exit status {status}"
