"""Short commands in a box, run to their end with their output in memory; files are read and written with them.

Output is kept up to a bound and read to its end all the same, so that a flood costs time, never memory.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Self

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from orchestrator.service.errors import BadRequest
from orchestrator.service.sandbox.provider import Box, BoxDied, Command, Process

MAX_KEPT_BYTES: Final = 1 << 20
MAX_FILE_BYTES: Final = 1 << 30
CHUNK_BYTES: Final = 1 << 18
#: The words of a program that could not read a file.
MAX_WORDS_BYTES: Final = 4096
#: Arguments: the file, and its mode or "". It starts as few programs as possible, for each takes milliseconds.
_WRITE: Final = (
    'folder=${1%/*}/; { [ -d "$folder" ] || mkdir -p -- "$folder"; } && cat > "$1" && { [ -z "$2" ] || '
    'chmod "$2" -- "$1"; }'
)

ReadChunk = Callable[[int], Awaitable[bytes]]
"""Reads at most so many bytes of the data to send; b"" at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end of a command: its exit status (None: it ran out of time and was killed) and the output that was kept."""

    status: int | None
    stdout: bytes
    stderr: bytes

    @property
    def is_timed_out(self) -> bool:
        return self.status is None

    @property
    def output(self) -> str:
        """Both streams as text, for messages."""
        return (self.stdout + self.stderr).decode(errors="replace")


async def run(
    box: Box, command: Command, *, timeout: float, stdin: bytes | ReadChunk = b"", keep: int = MAX_KEPT_BYTES
) -> Finished:
    """Run a command to its end, or kill it after `timeout` seconds; each stream is kept up to `keep` bytes.

    Raises BoxDied.
    """
    process = await box.spawn(command)
    out, err = bytearray(), bytearray()
    status: int | None = None
    with anyio.move_on_after(timeout):
        status = await wait_attended(
            process,
            lambda: collect(process.stdout, out, keep),
            lambda: collect(process.stderr, err, keep),
            lambda: _feed(process.stdin, stdin),
        )
    return Finished(status=status, stdout=bytes(out), stderr=bytes(err))


async def wait_attended(process: Process, *attendants: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Wait until a process has ended and the `attendants` that read and feed it are done; returns the exit status.

    The process is killed if the wait is cancelled or an attendant fails. Raises BoxDied.
    """
    end: int | BoxDied | None = None
    try:
        async with anyio.create_task_group() as tasks:
            for attendant in attendants:
                tasks.start_soon(attendant)
            try:
                end = await process.wait()
            except BoxDied as error:
                end = error  # raised below: out of the task group it would come wrapped in a group
    finally:
        if end is None:
            await kill(process)
    assert end is not None
    if isinstance(end, BoxDied):
        raise end
    return end


async def kill(process: Process) -> None:
    """Kill a process even while being cancelled, for at most 10 seconds."""
    with anyio.move_on_after(10, shield=True):
        await process.kill()


async def collect(stream: ByteReceiveStream, into: bytearray, keep: int) -> None:
    """Append a stream to `into`, up to `keep` bytes; the rest is read and dropped."""
    async for chunk in stream:
        into += chunk[: max(0, keep - len(into))]


async def _feed(stream: ByteSendStream | None, data: bytes | ReadChunk) -> None:
    if stream is None:
        return
    try:
        if isinstance(data, bytes):
            await stream.send(data)
        else:
            while chunk := await data(CHUNK_BYTES):
                await stream.send(chunk)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return  # the program may end without reading all of it
    finally:
        await stream.aclose()


async def write_file(
    box: Box,
    path: str,
    data: bytes | ReadChunk,
    *,
    mode: int | None = None,
    timeout: float = 120,
    as_user: bool = False,
) -> None:
    """Write a file in the box, with its missing folders; a relative path starts at the working directory.

    Without a mode, an existing file keeps its own, and a new one gets 644. It is written by root where the box has one,
    or else `as_user`, like what its user's programs write. Raises BadRequest with the program's own message when it
    cannot be written, and BoxDied.
    """
    argv = ("sh", "-c", _WRITE, "write_file", _argument(box, path), "" if mode is None else f"{mode:o}")
    command = Command(argv=argv, stdin=True, is_plain=True, as_user=as_user)
    finished = await run(box, command, stdin=data, timeout=timeout)
    if finished.status != 0:
        raise BadRequest(f"{path}: cannot be written in devbox {box.id}: {_reason(finished)}")


async def read_file(box: Box, path: str, *, keep: int = MAX_FILE_BYTES, timeout: float = 120) -> bytes:
    """Read a file of the box, up to `keep` bytes. Raises BadRequest with the program's own message, and BoxDied."""
    argv = ("head", "-c", str(keep), "--", _argument(box, path))
    finished = await run(box, Command(argv=argv, is_plain=True), keep=keep, timeout=timeout)
    if finished.status != 0:
        raise BadRequest(f"{path}: cannot be read in devbox {box.id}: {_reason(finished)}")
    return finished.stdout


def _argument(box: Box, path: str) -> str:
    """Write a path so that no program takes it for an option."""
    inside = box.path(path)
    return inside if inside.startswith("/") else f"./{inside}"


def _reason(finished: Finished) -> str:
    if finished.is_timed_out:
        return "it took too long"
    return finished.stderr.decode(errors="replace").strip() or f"exit status {finished.status}"


class Download:
    """A file of any size that is read out of a box piece by piece; close it in any case."""

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
        """Yield the contents. Raises BadRequest when reading fails midway, and BoxDied."""
        piece = self._first
        while piece:
            yield piece
            piece = await self._receive()

    async def _receive(self) -> bytes:
        try:
            return await self._process.stdout.receive(CHUNK_BYTES)
        except anyio.EndOfStream:
            words = bytearray()
            await collect(self._process.stderr, words, MAX_WORDS_BYTES)
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
