"""`python -m orchestrator` is `sweep`; a signal that comes while it is still loading ends it at once, with status 130.

The program takes some tenths of a second to load. Nothing is begun before that, and a signal should print no
traceback. Commands that have something to end handle signals themselves.
"""

import os
import signal
import sys
from io import FileIO, TextIOWrapper

if not __package__:  # run by path, as `program` does: what is imported below may be nowhere else
    sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # noqa: PTH120 - importing pathlib takes long


def main() -> None:
    """Load the command line and run it."""
    # A closed descriptor (`>&-`) is opened, or the next file would be standard output and get what is printed.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if number else os.O_RDONLY)  # the lowest number that is free is this one
        if getattr(sys, name) is None:
            setattr(sys, name, TextIOWrapper(FileIO(number, "w" if number else "r", closefd=False), "utf-8"))
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda *_: os._exit(130))
    if sys.argv[1:2] == ["workspace"]:  # called by agents, for every small thing
        from orchestrator.agentkit.host import workspace_cli

        workspace_cli.main(sys.argv[2:])
    if os.environ.get("_SWEEP_COMPLETE", "").startswith("complete_"):  # called by a shell, which waits
        from orchestrator.commands import completion

        completion.complete(_complete_the_rest)
    from orchestrator.cli import main as command

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which event loops make a cancellation
    command()


def _complete_the_rest() -> None:
    from orchestrator.cli import app

    app()


if __name__ == "__main__":
    main()
