"""What of a scenario's environment an install may see: the programs that it brings on its PATH, and no more.

A scenario could bring anything: a login file that steals what the script is given, settings of npm or pip that send it
elsewhere. So nothing of its HOME is taken but the folders that its PATH leads into. Blocking: for a worker thread.
"""

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import HOME
from orchestrator.service.sandbox.safe_fs import Copier

#: By these an environment brings programs of its own.
_TOOLS: Final = ("PATH", "LD_LIBRARY_PATH")
#: Folders of HOME with settings, whatever PATH says.
_SETTINGS: Final = frozenset({".config", ".npm", ".pip"})
_HOME: Final = HOME.strip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """An environment's programs: its tree `root`, known by `name`, and the variables by which they are found."""

    name: str
    root: Path
    environment: Mapping[str, str]

    @classmethod
    def of(cls, prepared: Prepared) -> Self | None:
        """None for an environment whose PATH leads to nothing of its own."""
        environment = {name: prepared.environment[name] for name in _TOOLS if name in prepared.environment}
        root = prepared.root
        if root is None or not any(os.path.lexists(root / folder) for folder in _folders(environment)):
            return None
        return cls(name=prepared.name or str(root), root=root, environment=environment)

    def copy(self, target: Path) -> None:
        """Copy the tree, without what is in HOME beside programs, into the empty folder `target`. Raises OSError."""
        inside = [folder for folder in _folders(self.environment) if folder.startswith(f"{_HOME}/")]
        kept = {folder.removeprefix(f"{_HOME}/").split("/")[0] for folder in inside} - _SETTINGS
        home = self.root / _HOME
        found = list(home.iterdir()) if home.is_dir() else []
        left = [place.name for place in found if place.name not in kept or not place.is_dir()]
        Copier(skip=frozenset(f"{_HOME}/{name}" for name in left)).copy(self.root, target)


def _folders(environment: Mapping[str, str]) -> list[str]:
    """Where PATH leads, as paths in a tree."""
    named = [folder for folder in environment.get("PATH", "").split(":") if folder.startswith("/")]
    return [path for folder in named if (path := posixpath.normpath(folder).strip("/")) not in {"", _HOME}]
