"""`python -m orchestrator` is `sweep`; a signal that comes while it is still loading ends it at once, with status 130.

The program takes some tenths of a second to load, nothing is begun before it is, and whoever stops it then should see
no traceback. What has something to end handles signals itself.
"""

import os
import signal
import sys
from io import FileIO, TextIOWrapper

if not __package__:  # run by path, as `program` does: what is imported below may be nowhere else
    sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # noqa: PTH120 - importing pathlib takes long


def main() -> None:
    """Load the command line and run it."""
    _open_descriptors()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda *_: os._exit(130))
    if sys.argv[1:2] == ["workspace"]:  # called by agents, for every small thing
        from orchestrator.agentkit.host import workspace_cli

        workspace_cli.main(sys.argv[2:])
    from orchestrator.cli import main as command

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which event loops make a cancellation
    command()


def _open_descriptors() -> None:
    """Have something at the first three descriptors, where whoever started us closed one (`>&-`).

    Otherwise the next file that is opened would be standard output, and what is printed would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if number else os.O_RDONLY)  # the lowest number that is free is this one
        if getattr(sys, name) is None:
            setattr(sys, name, TextIOWrapper(FileIO(number, "w" if number else "r", closefd=False), "utf-8"))


if __name__ == "__main__":
    main()
