"""The Python code that a reference means, and the interpreter for it, found without running any of that code."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.core.errors import UsageError

#: For an interpreter to start and to look for a module.
LOOKUP_TIMEOUT_S: Final = 30.0
#: Looks where an agent's imports are found: not in the current folder.
_HAS_MODULE: Final = """
import sys
del sys.path[0]
from importlib.util import find_spec
sys.exit(find_spec(sys.argv[1]) is None)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A class or function: `entry` of a file (an absolute path) or of a module."""

    entry: str
    file: Path | None = None
    module: str | None = None

    def as_header(self) -> Mapping[str, Any]:
        """The first frame of a worker."""
        file = None if self.file is None else str(self.file)
        return {"op": "load", "file": file, "module": self.module, "entry": self.entry}


def find_interpreter(python: Path | None, environ: Mapping[str, str]) -> Path:
    """Find the user's interpreter: `python` if given, else the active virtual environment's, else ours.

    A name without a folder is looked up on PATH. Raises UsageError if `python` is not there.
    """
    if python is not None:
        found = shutil.which(python, path=environ.get("PATH"))
        if found is None:
            raise UsageError(f"--python {python}: there is no such program; give the path of a Python interpreter")
        return Path(found).absolute()
    active = environ.get("VIRTUAL_ENV")
    if active and os.access(mine := Path(active) / "bin" / "python", os.X_OK):
        return mine.absolute()
    return Path(sys.executable)


def has_module(python: Path, module: str, environ: Mapping[str, str]) -> bool:
    """Ask an interpreter if it finds a module, without importing it. False if it cannot be started."""
    command = (python, "-c", _HAS_MODULE, module)
    try:
        found = subprocess.run(command, env=environ, capture_output=True, timeout=LOOKUP_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0


def digest_of(target: Target, python: Path, environ: Mapping[str, str]) -> str:
    """The digest of the agent's own file, and of its name; of the name alone for a module that cannot be found.

    Modules are looked up without importing them: in the current folder, PYTHONPATH and the interpreter's packages.
    """
    file = target.file
    if target.module is not None:
        path = Path(*target.module.split("."))
        names = (path.with_suffix(".py"), path / "__init__.py")
        candidates = (folder / name for folder in _folders(python, environ) for name in names)
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
    name = f"{target.module or ''}:{target.entry}"
    content = b"" if file is None else file.read_bytes()
    return hashlib.sha256(name.encode() + b"\0" + content).hexdigest()


def _folders(python: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    yield Path.cwd()
    yield from (Path(entry) for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry)
    for packages in sorted(python.parent.parent.glob("lib/python3*/site-packages")):
        yield packages
        for file in sorted(packages.glob("*.pth")):  # editable installs
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            yield from (Path(line) for line in lines if line.startswith("/"))
