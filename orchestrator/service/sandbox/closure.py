"""Programs of this machine in a folder that runs in any root, an empty one too: the service's own Python, and tools.

The folder is mounted read-only at IN_BOX in each box of an image, and the place stands in the files: see `elf`. Its
Python runs the box agent. Its tools are for our own steps, which so depend on nothing that an image lacks or an agent
has changed.
"""

import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

import structlog

from orchestrator.service.sandbox import elf
from orchestrator.service.sandbox.base_provider import AGENT
from orchestrator.service.sandbox.provider import BoxStartFailed
from orchestrator.service.sandbox.safe_fs import remove

IN_BOX: Final = "/.sweep"
#: The interpreter in a box, and the same by the name that the box agent runs under: `pkill python` does not hit it.
PROGRAM: Final = f"{IN_BOX}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
AGENT_PROGRAM: Final = f"{IN_BOX}/bin/agent"
AGENT_CODE: Final = f"{IN_BOX}/agent.pyc"
#: The folder of tools in a box; it has those that this machine has.
TOOLS: Final = f"{IN_BOX}/tools/bin"
#: The folder in a box of all libraries and the loader.
LIBRARIES: Final = f"{IN_BOX}/so"
#: An empty folder in a box, the place of what agents are installed with (`environments.toolchain`).
TOOLCHAIN: Final = f"{IN_BOX}/toolchain"
#: What our own steps in a box start: the shells, and programs.
_TOOLS: Final = (
    *("bash", "sh", "ast-grep", "awk", "base64", "basename", "cat", "chmod", "cmp", "comm", "cp", "cut", "date", "dd"),
    *("diff", "dirname", "env", "false", "find", "flock", "git", "grep", "gzip", "head", "id", "ln", "ls", "mkdir"),
    *("mktemp", "mv", "od", "patchelf", "printenv", "readlink", "rm", "rmdir", "sed", "sha256sum", "sleep", "sort"),
    *("split", "stat", "tail", "tar", "tee", "timeout", "touch", "tr", "true", "uname", "uniq", "wc", "xargs"),
)
#: Beside what these need, what programs that are published for any Linux system may ask of it.
_PORTABLE: Final = (
    *("libatomic.so.1", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "libresolv.so.2"),
    *("librt.so.1", "libstdc++.so.6", "libutil.so.1", "libz.so.1"),
)
#: Parts of the standard library that no program in a box needs: tests, windows, and packages that were installed.
_LEFT_OUT: Final = (
    *("test", "tests", "idlelib", "tkinter", "turtledemo", "turtle.py", "lib2to3", "pydoc_data"),
    *("site-packages", "dist-packages", "config-*", "__pycache__", "_tkinter*.so", "_test*.so", "_ctypes_test*.so"),
    *("xxlimited*.so", "*.a", "EXTERNALLY-MANAGED"),
)


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


def interpreter() -> Path:
    """Return the program that runs this service, without a virtual environment around it."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _tools() -> dict[str, Path]:
    """Return the programs of _TOOLS that this machine has, by their names."""
    folders = ("/usr/bin", "/bin", os.fspath(Path(sys.executable).parent), os.environ.get("PATH", ""))
    found = {name: shutil.which(name, path=os.pathsep.join(folders)) for name in _TOOLS}
    files = {name: Path(program).resolve() for name, program in found.items() if program}
    return {name: file for name, file in files.items() if elf.is_elf(file)}


def _name() -> str:
    """Return a digest of all that the folder is made of, but what its version names: the standard library.

    The libraries of tools are none of it: with those of the time it was made they go on working.
    """
    program, tools = interpreter(), _tools()
    digest = sha256(f"4 {sys.version} {_stdlib()} {sorted(tools)}".encode())
    for file in sorted({AGENT, program, *elf.libraries(program).values(), *tools.values()}):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _build(tree: Path) -> None:
    program = tree / PROGRAM.removeprefix(f"{IN_BOX}/")
    modules = tree / "lib" / program.name
    program.parent.mkdir(parents=True)
    shutil.copytree(_stdlib(), modules, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    # Not sysconfig's DESTSHARED: where a Python was moved to, that is still where it was built for.
    shared = Path(sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix}), "lib-dynload")
    if shared.is_dir() and not shared.is_relative_to(_stdlib()):
        shutil.copytree(shared, modules / "lib-dynload", ignore=shutil.ignore_patterns(*_LEFT_OUT), dirs_exist_ok=True)
    shutil.copy(interpreter(), program)
    for link in (AGENT_PROGRAM, f"{IN_BOX}/bin/python3"):
        (tree / link.removeprefix(f"{IN_BOX}/")).symlink_to(program.name)
    (tree / TOOLCHAIN.removeprefix(f"{IN_BOX}/")).mkdir()

    programs, extensions, needed = [program], [], elf.libraries(interpreter())
    for extension in (modules / "lib-dynload").glob("*.so"):
        try:
            needed |= elf.libraries(extension)
            extensions.append(extension)
        except elf.LibraryMissing:
            extension.unlink()  # it does not work on this machine either
    tools = tree / TOOLS.removeprefix(f"{IN_BOX}/")
    tools.mkdir(parents=True)
    sources = _tools()
    if "git" not in sources:
        why = "this machine has no git, so in boxes of images without git, patches are made by diff"
        structlog.get_logger().warning("closure.no_git", why=why)
    copies: dict[Path, str] = {}
    for name, source in sources.items():
        if source in copies:
            (tools / name).symlink_to(copies[source])  # a program of several names acts by its own
            continue
        with suppress(elf.LibraryMissing):
            if elf.loader_of(source):
                needed |= elf.libraries(source)
                programs.append(tools / name)
            shutil.copy(source, tools / name)
            copies[source] = name

    beside = needed["libc.so.6"].parent if "libc.so.6" in needed else Path("/nonexistent")
    needed = {name: (beside / name).resolve() for name in _PORTABLE if (beside / name).exists()} | needed
    libraries = tree / LIBRARIES.removeprefix(f"{IN_BOX}/")
    libraries.mkdir()
    for name, source in needed.items():
        shutil.copy(source, libraries / name)
    others = [library for library in libraries.iterdir() if library.name != elf.LOADER]
    elf.separate(libraries, LIBRARIES)
    elf.patch(LIBRARIES, programs=programs, others=[*extensions, *others])

    # The folder is read-only where it is used, so the compiled form of a module must be there and fit for good.
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(modules, quiet=2, workers=1, invalidation_mode=unchecked, optimize=0)
    code = tree / AGENT_CODE.removeprefix(f"{IN_BOX}/")
    py_compile.compile(os.fspath(AGENT), os.fspath(code), doraise=True, optimize=2, invalidation_mode=unchecked)
    for file in (tree, *tree.rglob("*")):
        if not file.is_symlink():
            file.chmod(0o755 if file.is_dir() or os.access(file, os.X_OK) or file.suffix == ".so" else 0o644)
