"""A file of any size out of a devbox, piece by piece, so that none is ever held in memory.

Like everything that touches a box's files it is a command in the box; `devboxes.commands` has the ones for texts.
"""

from collections.abc import AsyncIterator
from typing import Final, Self

import anyio

from orchestrator.service.errors import BadRequest
from orchestrator.service.sandbox.commands import CHUNK_BYTES, collect, kill
from orchestrator.service.sandbox.provider import Box, Command, Process

MAX_WORDS: Final = 4096


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
        process = await box.spawn(Command(argv=("cat", "--", box.path(path)), is_plain=True))
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
            return await self._process.stdout.receive(CHUNK_BYTES)
        except anyio.EndOfStream:
            words = bytearray()
            await collect(self._process.stderr, words, MAX_WORDS)
            self._status = await self._process.wait()
        if self._status != 0:
            said = words.decode(errors="replace").strip() or f"exit status {self._status}"
            raise BadRequest(f"{self._name}: {said}")
        return b""

    async def close(self) -> None:
        """End the reading, even while being cancelled. Idempotent."""
        if self._status is None:
            await kill(self._process)
            self._status = -1
