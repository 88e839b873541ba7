"""Trajectories: the record that an agent keeps of its work, in its own format, converted into one ATIF document.

One module for each format, with `read(files: reading.Files) -> reading.Events`: adding it is all that a new format
takes. The agent's own files stay beside the document, so a reader keeps what the document has room for and no more.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Final

from orchestrator.agentkit.trajectory.atif import document
from orchestrator.agentkit.trajectory.reading import TrajectoryError

__all__ = ["FORMATS", "TrajectoryError", "convert"]

#: Format to the module here that reads it, which is imported when needed; what is `ATIF` already is taken as it is.
FORMATS: Final[Mapping[str, str]] = {
    name.replace("_", "-"): name for _, name, _ in iter_modules(__path__) if name != "reading"
}

#: The format of an agent that writes the document itself.
ATIF: Final = "atif"


def convert(
    format: str,  # noqa: A002
    files: Sequence[Path],
    *,
    agent: str,
    version: str | None,
    model: str | None,
    session: str,
) -> dict[str, Any]:
    """Make an ATIF document, as plain JSON values, of the files that an agent left.

    `format` is one of `FORMATS`. Raises TrajectoryError, with file and line, if they cannot be read.
    """
    if not files:
        raise TrajectoryError(f"{agent}: it left no trajectory")
    if format == ATIF:
        return _as_it_is(files[-1])
    reader = import_module(f"{__name__}.{FORMATS[format]}")
    try:
        return document(reader.read(files), agent=agent, version=version, model=model, session=session)
    except TrajectoryError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        # Files of another program can be wrong in any way; a reader names the line where it can.
        raise TrajectoryError(f"{files[0]}: not a trajectory of format {format}: {error!r}") from error


def _as_it_is(file: Path) -> dict[str, Any]:
    """Read a document that is ATIF already. Raises TrajectoryError if it is none."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise TrajectoryError(f"{file}: cannot be read: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("steps"), list):
        raise TrajectoryError(f"{file}: not an ATIF document: it has no steps")
    return found
