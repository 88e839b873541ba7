"""`python -m orchestrator` is `sweep`; a signal that comes while it is still loading ends it at once, with status 130.

The program takes some tenths of a second to load, nothing is begun before it is, and whoever stops it then should see
no traceback. What has something to end handles signals itself.
"""

import os
import signal
import sys


def main() -> None:
    """Load the command line and run it."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda *_: os._exit(130))
    if sys.argv[1:2] == ["workspace"]:  # an agent's helper, called for every little thing
        from orchestrator.agentkit.helper import main as helper

        helper(sys.argv[2:])
    from orchestrator.cli import main as command

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which event loops make a cancellation
    command()


if __name__ == "__main__":
    main()
