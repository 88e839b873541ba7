"""The host's ends of a command's pipes, as byte streams on the event loop.

Its secret: when the stream of a program ends. Not at the pipe's end, for a daemon may hold it open for days: when the
program has ended, exactly the bytes in the pipe at that moment are still delivered. A daemon may go on writing: closing
our end would kill it with SIGPIPE at its next line of log, so the rest is read slowly and dropped. Neither anyio's nor
asyncio's pipe streams can end before the pipe does. No thread, no task: readiness callbacks only. A pipe belongs to the
box's user, who may open it anew (`> /dev/stderr`), for reading too: bytes that were counted at the end and are gone
were read by a program in the box, and are not waited for.
"""

import asyncio
import fcntl
import os
import struct
import termios
from dataclasses import dataclass

import anyio
import anyio.lowlevel
from anyio.abc import ByteReceiveStream, ByteSendStream

#: Drained from a daemon's pipe: 64 KiB every 50 ms is plenty for logs and no load for us.
DROP_BYTES, DROP_PAUSE_S = 65536, 0.05
#: Pipes that are kept open for daemons of one box; beyond that the oldest are closed.
MAX_DROP_PIPES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipe:
    """A new pipe: our non-blocking end and the command's end."""

    ours: int
    theirs: int

    @classmethod
    def for_output(cls) -> "Pipe":
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        return cls(ours=reading, theirs=writing)

    @classmethod
    def for_input(cls) -> "Pipe":
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        return cls(ours=writing, theirs=reading)


def open_pipes(*, stdin: bool, owner: int | None = None) -> list[Pipe]:
    """Open pipes for a command: its input, if it has one, and its two outputs. Raises OSError, leaving none open.

    They belong to the user `owner` of the host, None meaning ours.
    """
    pipes: list[Pipe] = []
    try:
        if stdin:
            pipes.append(Pipe.for_input())
        pipes.append(Pipe.for_output())
        pipes.append(Pipe.for_output())
        for pipe in pipes if owner is not None else ():
            os.fchown(pipe.theirs, owner or 0, -1)
    except OSError:
        for pipe in pipes:
            os.close(pipe.ours)
            os.close(pipe.theirs)
        raise
    return pipes


class Drain:
    """Reads and drops output of background processes whose command has ended."""

    def __init__(self) -> None:
        self._pauses: dict[int, asyncio.TimerHandle | None] = {}
        self._closed = False

    def adopt(self, fd: int) -> None:
        if self._closed:
            os.close(fd)
            return
        self._listen(fd)
        if len(self._pauses) > MAX_DROP_PIPES:
            self._forget(next(iter(self._pauses)))

    def close(self) -> None:
        self._closed = True
        for fd in list(self._pauses):
            self._forget(fd)

    def _listen(self, fd: int) -> None:
        self._pauses[fd] = None
        asyncio.get_running_loop().add_reader(fd, self._drop, fd)

    def _drop(self, fd: int) -> None:
        try:
            data = os.read(fd, DROP_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._forget(fd)
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(fd)
        self._pauses[fd] = loop.call_later(DROP_PAUSE_S, self._listen, fd)

    def _forget(self, fd: int) -> None:
        pause = self._pauses.pop(fd)
        if pause is not None:
            pause.cancel()
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)


class OutputPipe(ByteReceiveStream):
    """The output of a program; owns the reading end `fd`."""

    def __init__(self, fd: int, drain: Drain) -> None:
        self._fd = fd
        self._drain = drain
        self._left: int | None = None
        self._ended = False
        self._wake = anyio.Event()
        self._reading = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte. Raises EndOfStream, and ClosedResourceError after `aclose`."""
        await anyio.lowlevel.checkpoint()
        if self._reading:
            raise anyio.BusyResourceError("receiving from")
        self._reading = True
        try:
            while True:
                data = self._take(max_bytes)
                if data:
                    return data
                await self._wait_readable()
        finally:
            self._reading = False

    def finish(self) -> None:
        """The program has ended: deliver the bytes in the pipe, and no more."""
        if self._fd >= 0 and self._left is None:
            (self._left,) = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, b"\0\0\0\0"))
            self._wake.set()

    def _take(self, max_bytes: int) -> bytes:
        """Read without waiting; b"" if there is nothing yet."""
        if self._fd < 0:
            raise anyio.EndOfStream if self._ended else anyio.ClosedResourceError
        data = b""
        if self._left != 0:
            try:
                data = os.read(self._fd, max_bytes if self._left is None else min(max_bytes, self._left))
            except BlockingIOError:
                if self._left is None:
                    return b""
                self._left = 0
        if not data:
            self._end()
            raise anyio.EndOfStream
        if self._left is not None:
            self._left -= len(data)
        return data

    def _end(self) -> None:
        self._ended = True
        fd, self._fd = self._fd, -1
        if self._left == 0:
            self._drain.adopt(fd)
        else:
            os.close(fd)

    async def _wait_readable(self) -> None:
        loop = asyncio.get_running_loop()
        fd, self._wake = self._fd, anyio.Event()
        loop.add_reader(fd, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if self._fd == fd:
                loop.remove_reader(fd)

    async def aclose(self) -> None:
        if self._fd >= 0:
            if self._reading:
                asyncio.get_running_loop().remove_reader(self._fd)
            if self._left is None:
                fd, self._fd = self._fd, -1
                os.close(fd)
            else:
                self._left = 0
                self._end()
            self._ended = False
            self._wake.set()
        await anyio.lowlevel.checkpoint()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class InputPipe(ByteSendStream):
    """A program's standard input; owns the writing end `fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._wake = anyio.Event()
        self._waiting = False
        self._ended = False

    async def send(self, item: bytes) -> None:
        """Write all of `item`. Raises BrokenResourceError when the program no longer reads."""
        await anyio.lowlevel.checkpoint()
        if self._waiting:
            raise anyio.BusyResourceError("sending to")
        rest = memoryview(item)
        while rest:
            if self._fd < 0:
                raise anyio.BrokenResourceError if self._ended else anyio.ClosedResourceError
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                await self._wait_writable()
            except OSError as error:
                raise anyio.BrokenResourceError from error

    async def _wait_writable(self) -> None:
        loop = asyncio.get_running_loop()
        fd, self._wake, self._waiting = self._fd, anyio.Event(), True
        loop.add_writer(fd, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            self._waiting = False
            if self._fd == fd:
                loop.remove_writer(fd)

    def finish(self) -> None:
        """The program has ended and reads no more."""
        if self._fd >= 0:
            self._ended = True
            self._close()

    async def aclose(self) -> None:
        if self._fd >= 0:
            self._close()
        await anyio.lowlevel.checkpoint()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if self._waiting:
            asyncio.get_running_loop().remove_writer(fd)
        os.close(fd)
        self._wake.set()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
