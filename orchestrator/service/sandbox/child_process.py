"""A child process whose end is an event on the loop.

Its secret: Python 3.11's asyncio waits for each subprocess in a thread of its own, which 500 boxes cannot afford; on
Linux a pidfd becomes readable instead. Elsewhere a thread waits for each.
"""

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress

import anyio

HAS_PIDFD = hasattr(os, "pidfd_open")


class Pidfd:
    """Any process, not only a child, by a handle that can never refer to another one."""

    def __init__(self, pid: int, ended: Callable[[], None] | None = None) -> None:
        """Raises ProcessLookupError."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self.gone = anyio.Event()
        self._loop.add_reader(self._fd, self._notice)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        if self._fd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._loop.remove_reader(fd)
            os.close(fd)

    def _notice(self) -> None:
        self.close()
        self.gone.set()
        if self._ended is not None:
            self._ended()


class ChildProcess:
    """A started subprocess; `ended` is called on the loop with its return code (negative: the signal)."""

    def __init__(self, popen: subprocess.Popen[bytes], ended: Callable[[int], None]) -> None:
        self.pid = popen.pid
        self.gone = anyio.Event()
        self._popen = popen
        self._ended = ended
        if HAS_PIDFD:
            Pidfd(popen.pid, self._reap)
        else:
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._wait, args=(loop,), daemon=True, name="devbox-wait").start()

    def kill(self) -> None:
        if not self.gone.is_set():
            self._popen.kill()

    def kill_group(self) -> None:
        """Send SIGKILL to the process group that it leads, which outlives it while others are in it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._popen.wait()
        loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        status = self._popen.wait()
        self.gone.set()
        self._ended(status)
