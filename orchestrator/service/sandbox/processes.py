"""Processes of the host: a process's end as an event on the loop, and the processes of a box, read from /proc.

Its secret: Python 3.11's asyncio waits for each subprocess in a thread of its own, which 500 boxes cannot afford; on
Linux a pidfd becomes readable instead. Elsewhere, and when no file descriptor is free, a thread waits.

A process can close itself to an ordinary user's service (PR_SET_DUMPABLE): then neither its files nor its sockets are
seen, and it counts as one that does not listen. A process chooses its own name, so names are for people; that a socket
listens is the kernel's word.
"""

import asyncio
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import anyio

from orchestrator.service.sandbox.provider import RemainingProcesses

HAS_PIDFD = hasattr(os, "pidfd_open")
#: Process names that are told apart; the processes of all further names are counted together.
MAX_NAMES = 20
#: States of processes that do nothing: stopped, traced and stopped, ended.
_STILL = frozenset({b"T", b"t", b"Z", b"X"})
_STOP_TIMEOUT_S = 5.0
_STOP_PAUSE_S = 0.002
_SOCKET = re.compile(r"socket:\[(\d+)\]")
#: A listening TCP socket and the flag of a listening UNIX one in /proc/net (include/net/tcp_states.h, net.h).
_TCP_LISTEN, _UNIX_LISTEN = "0A", 0x10000


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
        with suppress(OSError):  # no file descriptor is free
            if HAS_PIDFD:
                Pidfd(popen.pid, self._reap)
                return
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


def descendants(pid: int) -> list[int]:
    """A process of the host and all below it at this moment; some may have ended meanwhile."""
    found = [pid]
    for each in found:
        with suppress(OSError), os.scandir(f"/proc/{each}/task") as threads:
            for thread in threads:
                with suppress(OSError), open(f"{thread.path}/children") as children:  # noqa: PTH123
                    found += map(int, children.read().split())
    return found


def freeze(pids: Callable[[], Iterable[int]]) -> frozenset[int]:
    """Stop the processes that `pids` finds, until it finds no other one; return those that were not stopped before.

    One that does not stop within seconds, as it waits for a disk, is left to do so when it can. Blocking.
    """
    stopped: set[int] = set()
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        running = [pid for pid in pids() if _state(pid) not in _STILL]
        if not running:
            break
        for pid in running:
            with suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
                stopped.add(pid)
        time.sleep(_STOP_PAUSE_S)
    return frozenset(stopped)


def thaw(pids: Iterable[int]) -> None:
    """Let processes that were stopped go on; some may have ended meanwhile."""
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGCONT)


def _state(pid: int) -> bytes:
    """Return the letter of a process's state (proc_pid_stat(5)), that of a dead one for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return b"X"


def remaining_processes(root: int, commands: int) -> RemainingProcesses:
    """Processes below a sandbox's process 1, the host's `root`, without the helpers of `commands` running commands."""
    names: Counter[str] = Counter()
    others: list[int] = []
    helpers = 0
    for pid in descendants(root)[1:]:
        try:
            head, _, rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")
            state, parent = rest.split()[:2]
            # A helper is a fork of process 1 that has not executed another program.
            arguments = [Path(f"/proc/{each}/cmdline").read_bytes() for each in (root, pid)]
        except (OSError, ValueError):
            continue  # it has ended
        if helpers < commands and int(parent) == root and arguments[0] == arguments[1]:
            helpers += 1
            continue
        others.append(pid)
        name = head.partition(b"(")[2].decode(errors="replace")
        if name and state not in {b"Z", b"X"}:
            names[name] += 1

    few = dict(names.most_common(MAX_NAMES))
    if more := names.total() - sum(few.values()):
        few["others"] = few.get("others", 0) + more
    return RemainingProcesses(names=few, is_listening=_is_any_listening(others))


def _is_any_listening(pids: Sequence[int]) -> bool:
    """Tell whether any of these processes of one network holds a socket that listens (proc_net(5))."""
    listening: set[str] = set()
    for name, inode in (("tcp", 9), ("tcp6", 9), ("unix", 6)) if pids else ():
        with suppress(OSError):
            for line in Path(f"/proc/{pids[0]}/net/{name}").read_text(errors="replace").splitlines()[1:]:
                fields = line.split()
                if len(fields) > inode and (fields[3] == _TCP_LISTEN or int(fields[3], 16) & _UNIX_LISTEN):
                    listening.add(fields[inode])

    for pid in pids if listening else ():
        with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with suppress(OSError):
                    socket = _SOCKET.fullmatch(os.readlink(entry.path))  # noqa: PTH115
                    if socket is not None and socket[1] in listening:
                        return True
    return False
