"""The supervisor: waits for one child, and leaves no process of its tree behind, however it detached itself."""
# ruff: noqa: PTH123  # importing pathlib would take longer than all this file does

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: Scores by which the kernel chooses what to end when memory runs out, up to 1000: the agent, then its supervisor.
_EXPENDABLE, _FIRST_TO_GO = 900, 1000


def fork(control: int) -> None:
    """Return in a child that leads a process group; the parent supervises it and ends with its status.

    `control` is a socket: when its other end is closed, the tree is ended.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _volunteer(_EXPENDABLE)
    supervisor = os.getpid()
    child = os.fork()
    if child != 0:
        os._exit(_supervise(child, control))
    os.setpgid(0, 0)
    _volunteer(_FIRST_TO_GO)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(128 + signal.SIGKILL)


def _volunteer(score: int) -> None:
    """Let the kernel take us, and all we start, rather than the sweep when memory runs out."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+b", 0) as file:
        if int(file.read()) < score:
            file.write(b"%d" % score)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _supervise(child: int, control: int) -> int:
    """Wait until the agent has ended or nobody listens any more; leave no process behind; return the exit status."""
    awake, wake = os.pipe()
    for fd in (awake, wake):
        os.set_blocking(fd, False)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ignore)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    poller = select.poll()
    poller.register(control, 0)  # asks for the hang-up only: what is sent here is for the agent
    poller.register(awake, select.POLLIN)
    ended = _reap()
    while child not in ended:
        ready = {fd for fd, _ in poller.poll()}
        if control in ready:
            ended[child] = 128 + signal.SIGKILL
        else:
            with contextlib.suppress(BlockingIOError):
                os.read(awake, 4096)
            ended.update(_reap())
    _end_all(child)
    return ended[child]


def _ignore(number: int, frame: FrameType | None) -> None:
    """A signal to wake up for, and no more: the one who decides is at the other end of the socket."""


def _reap() -> dict[int, int]:
    """The exit statuses of the children that have ended; raises ChildProcessError when none is left."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            if ended:
                return ended
            raise
        if pid == 0:
            return ended
        ended[pid] = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _end_all(child: int) -> None:
    """Kill every descendant. Those of a killed process become ours, so killing our own children until none is left
    gets them all, however they detached themselves.
    """
    pause = 0.0005
    while True:
        _kill(os.killpg, child)
        for pid in _children():
            _kill(os.kill, pid)
        try:
            _reap()
        except ChildProcessError:
            return
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def _kill(send: Callable[[int, int], None], pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(pid, signal.SIGKILL)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []
