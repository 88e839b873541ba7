"""The one job of a worker process, told in its first frame: an agent to load, or a command to become."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys

from . import agent, tree
from .frames import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .frames import Header


def main() -> None:
    """Supervise a child; be that child."""
    control = os.dup(0)  # not inherited by what the agent starts
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    tree.fork(control)
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    channel = Channel(socket.socket(fileno=control))
    job, _ = channel.receive()
    if job["op"] == "command":
        _become(job)
    sys.exit(agent.work(job, channel))


def _become(job: Header) -> NoReturn:
    """Turn into the command `argv`, in the folder `cwd`, with the file `stdin` as its standard input."""
    os.chdir(job["cwd"])
    stdin = os.open(job["stdin"], os.O_RDONLY)
    os.dup2(stdin, 0)
    os.close(stdin)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and what is executed would too
    os.execvp(job["argv"][0], job["argv"])  # noqa: S606 - it is a shell
