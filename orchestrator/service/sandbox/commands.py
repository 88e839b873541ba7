"""Short commands in a box, run to their end with their output in memory; files are read and written with them.

What a box prints is kept up to a bound and read to its end all the same, so that a flood costs time, never memory.
"""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from orchestrator.service.errors import BadRequest
from orchestrator.service.sandbox.provider import Box, BoxDied, Command, Process

KEEP: Final = 1 << 20
MAX_FILE: Final = 1 << 30
PIECE: Final = 1 << 18
#: File, mode or nothing. As few programs as will do, for each takes milliseconds to start.
_WRITE: Final = (
    'folder=${1%/*}/; { [ -d "$folder" ] || mkdir -p -- "$folder"; } && cat > "$1" && { [ -z "$2" ] || '
    'chmod "$2" -- "$1"; }'
)

Read = Callable[[int], Awaitable[bytes]]
"""Reads at most so many bytes of what is to be sent; nothing at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a command ended: its exit status (None: it ran out of time and was killed) and the output that was kept."""

    status: int | None
    stdout: bytes
    stderr: bytes

    @property
    def is_timed_out(self) -> bool:
        return self.status is None

    @property
    def output(self) -> str:
        """Both streams as text, for people."""
        return (self.stdout + self.stderr).decode(errors="replace")


async def run(box: Box, command: Command, *, timeout: float, stdin: bytes | Read = b"", keep: int = KEEP) -> Finished:
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
    """Wait until a process has ended and those who read its output and feed it are done; returns the exit status.

    The process is killed if that is cut short. Raises BoxDied.
    """
    end: int | BoxDied | None = None
    try:
        async with anyio.create_task_group() as tasks:
            for attendant in attendants:
                tasks.start_soon(attendant)
            end = await _end(process)
    finally:
        if end is None:
            await kill(process)
    assert end is not None
    if isinstance(end, BoxDied):
        raise end
    return end


async def _end(process: Process) -> int | BoxDied:
    """The exit status, or what became of the box: as a value, so that it passes through a task group as it is."""
    try:
        return await process.wait()
    except BoxDied as error:
        return error


async def kill(process: Process) -> None:
    """Kill a process even while being cancelled, for at most 10 seconds."""
    with anyio.move_on_after(10, shield=True):
        await process.kill()


async def collect(stream: ByteReceiveStream, into: bytearray, keep: int) -> None:
    """Read a stream to its end; what exceeds `keep` bytes is dropped."""
    async for chunk in stream:
        into += chunk[: max(0, keep - len(into))]


async def _feed(stream: ByteSendStream | None, data: bytes | Read) -> None:
    if stream is None:
        return
    try:
        if isinstance(data, bytes):
            await stream.send(data)
        else:
            while piece := await data(PIECE):
                await stream.send(piece)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return  # the program ended without reading all of it, which is its right
    finally:
        await stream.aclose()


async def write_file(box: Box, path: str, data: bytes | Read, *, mode: int | None = None, timeout: float = 120) -> None:
    """Write a file in the box, with its missing folders; a relative path starts at the working directory.

    Without a mode, a file that is there keeps its own, and a new one gets 644. Raises BadRequest with the box's own
    words when it cannot be written, and BoxDied.
    """
    argv = ("sh", "-c", _WRITE, "write_file", _argument(box, path), "" if mode is None else f"{mode:o}")
    finished = await run(box, Command(argv=argv, stdin=True, is_plain=True), stdin=data, timeout=timeout)
    if finished.status != 0:
        raise BadRequest(f"{path}: cannot be written in devbox {box.id}: {_reason(finished)}")


async def read_file(box: Box, path: str, *, keep: int = MAX_FILE, timeout: float = 120) -> bytes:
    """Read a file of the box, up to `keep` bytes. Raises BadRequest with the box's own words, and BoxDied."""
    argv = ("head", "-c", str(keep), "--", _argument(box, path))
    finished = await run(box, Command(argv=argv, is_plain=True), keep=keep, timeout=timeout)
    if finished.status != 0:
        raise BadRequest(f"{path}: cannot be read in devbox {box.id}: {_reason(finished)}")
    return finished.stdout


def _argument(box: Box, path: str) -> str:
    """A path as a program takes it for one, whatever it opens with."""
    inside = box.path(path)
    return inside if inside.startswith("/") else f"./{inside}"


def _reason(finished: Finished) -> str:
    if finished.is_timed_out:
        return "it took too long"
    return finished.stderr.decode(errors="replace").strip() or f"exit status {finished.status}"
