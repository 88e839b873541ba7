"""Short commands in a box, run to their end with their output in memory; files are read and written with them.

What a box prints is kept up to a bound and read to its end all the same, so that a flood costs time, never memory.
"""

from dataclasses import dataclass
from typing import Final

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from orchestrator.errors import BadRequest
from orchestrator.service.devboxes.contract import Box, BoxDied, Command, Process

KEEP: Final = 1 << 20
MAX_FILE: Final = 1 << 30
_CHUNK: Final = 1 << 16


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


async def run(box: Box, command: Command, *, timeout: float, stdin: bytes | None = None, keep: int = KEEP) -> Finished:
    """Run a command to its end, or kill it after `timeout` seconds; each stream is kept up to `keep` bytes.

    Raises BoxDied.
    """
    process = await box.spawn(command)
    out, err = bytearray(), bytearray()
    ended: int | BoxDied | None = None
    try:
        with anyio.move_on_after(timeout):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_collect, process.stdout, out, keep)
                tasks.start_soon(_collect, process.stderr, err, keep)
                if process.stdin is not None:
                    tasks.start_soon(_feed, process.stdin, stdin or b"")
                end = await _end(process)
            ended = end
    finally:
        if ended is None:
            await kill(process)
    if isinstance(ended, BoxDied):
        raise ended
    return Finished(status=ended, stdout=bytes(out), stderr=bytes(err))


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


async def _collect(stream: ByteReceiveStream, into: bytearray, keep: int) -> None:
    async for chunk in stream:
        into += chunk[: max(0, keep - len(into))]


async def _feed(stream: ByteSendStream, data: bytes) -> None:
    try:
        for start in range(0, len(data), _CHUNK):
            await stream.send(data[start : start + _CHUNK])
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return  # the program ended without reading all of it, which is its right
    finally:
        await stream.aclose()


async def write_file(box: Box, path: str, data: bytes, *, mode: int = 0o644, timeout: float = 120) -> None:
    """Write a file in the box, with its missing folders; a relative path starts at the working directory.

    The file is replaced as a whole. Raises BadRequest with the box's own words when it cannot be written, and BoxDied.
    """
    script = 'mkdir -p -- "$(dirname -- "$1")" && cat > "$1" && chmod "$2" -- "$1"'
    target = box.path(path)
    argv = ("sh", "-c", script, "write_file", target if target.startswith("/") else f"./{target}", f"{mode:o}")
    finished = await run(box, Command(argv=argv, stdin=True), stdin=data, timeout=timeout)
    if finished.status != 0:
        raise BadRequest(f"{path}: cannot be written in devbox {box.id}: {_reason(finished)}")


async def read_file(box: Box, path: str, *, keep: int = MAX_FILE, timeout: float = 120) -> bytes:
    """Read a file of the box, up to `keep` bytes. Raises BadRequest with the box's own words, and BoxDied."""
    target = box.path(path)
    argv = ("head", "-c", str(keep), "--", target if target.startswith("/") else f"./{target}")
    finished = await run(box, Command(argv=argv), keep=keep, timeout=timeout)
    if finished.status != 0:
        raise BadRequest(f"{path}: cannot be read in devbox {box.id}: {_reason(finished)}")
    return finished.stdout


def _reason(finished: Finished) -> str:
    if finished.is_timed_out:
        return "it took too long"
    return finished.stderr.decode(errors="replace").strip() or f"exit status {finished.status}"
