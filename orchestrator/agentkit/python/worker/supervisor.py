"""The two processes of a worker: the supervisor, which leaves no process behind, and its child, which does the job.

The job is in the first frame: an agent to load, or a command to become.
"""
# ruff: noqa: PTH123  # importing pathlib would take longer than all this file does

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import socket
import sys
import time

from . import Channel, entry_point

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: Scores by which the kernel chooses what to end when memory runs out, up to 1000: the agent, then its supervisor.
_OOM_SCORE_AGENT, _OOM_SCORE_SUPERVISOR = 1000, 900


def main() -> None:
    """Fork a child that leads a process group and does the job of the first frame; end with its status.

    Standard input is a socket: when its other end is closed, the tree is ended.
    """
    control = os.dup(0)  # not inherited by what the agent starts
    _use_as_stdin(os.devnull)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _raise_oom_score(_OOM_SCORE_SUPERVISOR)
    supervisor = os.getpid()
    child = os.fork()
    if child != 0:
        os._exit(_supervise(child, control))

    os.setpgid(0, 0)
    _raise_oom_score(_OOM_SCORE_AGENT)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(128 + signal.SIGKILL)
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    channel = Channel(socket.socket(fileno=control))
    job, _ = channel.receive()
    if job.pop("op") == "command":
        os.chdir(job["cwd"])
        _use_as_stdin(job["stdin"])
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores them, and what is executed would too
        os.execvp(job["argv"][0], job["argv"])  # noqa: S606 - it is a shell
    sys.exit(entry_point.run_agent(channel, **job))


def _use_as_stdin(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    os.dup2(file, 0)
    os.close(file)


def _raise_oom_score(score: int) -> None:
    """Let the kernel end us, and all we start, rather than the sweep when memory runs out."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+b", 0) as file:
        if int(file.read()) < score:
            file.write(b"%d" % score)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _supervise(child: int, control: int) -> int:
    """Wait until the agent has ended or the other end is closed; leave no process behind; return the exit status."""
    awake, wake = os.pipe()
    for fd in (awake, wake):
        os.set_blocking(fd, False)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # only wakes us up: the other end of the socket decides
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

    # Kill every descendant, however it detached itself. The children of a killed process become ours, so it is enough
    # to kill our own until none is left.
    pause = 0.0005
    while True:
        _kill(os.killpg, child)
        with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
            for pid in file.read().split():
                _kill(os.kill, int(pid))
        try:
            _reap()
        except ChildProcessError:
            return ended[child]
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


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


def _kill(send: Callable[[int, int], None], pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(pid, signal.SIGKILL)
