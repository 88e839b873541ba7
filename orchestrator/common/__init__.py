"""Shared by runner and service: locks, logs, a loop's clock, and the command that starts this program again."""

import sys
from pathlib import Path
from typing import Final

_MAIN: Final = Path(__file__).parents[1] / "__main__.py"


def sweep_command() -> list[str]:
    """Return the command that starts `sweep` with our interpreter from any folder; the caller adds its words.

    It names a path, and keeps the current folder out of the module search path, where `python -m` puts it first: a
    `types.py` or an `orchestrator/` in the user's folder is not our code.
    """
    return [sys.executable, "-I" if sys.flags.isolated else "-P", str(_MAIN)]
