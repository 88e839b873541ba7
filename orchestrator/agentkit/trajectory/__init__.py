"""Trajectories: what an agent wrote down of its work, in its own format, made into one ATIF document.

One module for each format, with `read(files) -> Iterator[Event]`; the file that was left stays beside the document, so
a reader keeps what the document has room for and no more.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from orchestrator.agentkit.trajectory.atif import document
from orchestrator.agentkit.trajectory.reading import TrajectoryError

__all__ = ["FORMATS", "TrajectoryError", "convert"]

#: Format to the module here that reads it; imported when the first trajectory of it comes home.
FORMATS: Final[Mapping[str, str]] = {
    "aider": "aider",
    "claude-code": "claude_code",
    "codex": "codex",
    "gemini-cli": "gemini",
    "goose": "goose",
    "mini-swe-agent": "mini_swe_agent",
    "opencode": "opencode",
    "openhands": "openhands",
}


def convert(
    format: str,  # noqa: A002
    files: Sequence[Path],
    *,
    agent: str,
    version: str | None,
    model: str | None,
    session: str,
) -> dict[str, Any]:
    """Make an ATIF document of the files that an agent left, as plain JSON values.

    `format` is one of `FORMATS`. Raises TrajectoryError, with file and line, for what cannot be read.
    """
    if not files:
        raise TrajectoryError(f"{agent}: it left no trajectory")
    reader = importlib.import_module(f"{__name__}.{FORMATS[format]}")
    try:
        return document(reader.read(files), agent=agent, version=version, model=model, session=session)
    except TrajectoryError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        # What another program wrote can be wrong in any way; the reader says where it can.
        raise TrajectoryError(f"{files[0]}: not a trajectory of format {format}: {error!r}") from error
