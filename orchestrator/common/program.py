"""How this program is started once more, by itself or by what it starts."""

import sys
from pathlib import Path
from typing import Final

_MAIN: Final = Path(__file__).parents[1] / "__main__.py"


def command() -> list[str]:
    """What starts `sweep` with our interpreter, wherever it is started; its words follow.

    By path and without the current folder among those that modules come from (`python -m` puts it first): a folder with
    a `types.py` or an `orchestrator/` in it is somebody's work and none of our code.
    """
    return [sys.executable, "-I" if sys.flags.isolated else "-P", str(_MAIN)]
