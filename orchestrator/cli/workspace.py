"""`sweep workspace`, for the help of `sweep`: whoever calls it is sent on before the command line is loaded."""

from typing import Any, Final

import typer

#: Its words are its own affair.
EVERYTHING: Final[dict[str, Any]] = {"allow_extra_args": True, "ignore_unknown_options": True}


def workspace(context: typer.Context) -> None:
    """For agents on this machine: exec, read, write, upload and download in their devbox."""
    from orchestrator.agentkit.host.workspace_cli import main

    main(context.args)
