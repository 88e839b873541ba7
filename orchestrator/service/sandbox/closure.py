"""Programs of this machine in a folder that runs in any root, an empty one too: the service's own Python, and tools.

The folder is mounted read-only at IN_BOX in each box of an image, and the place stands in the files: see `elf`. Its
Python runs the box agent. Its tools are for our own steps, which so depend on nothing that an image lacks or an agent
has changed.

It takes seconds to make and is the same for every service, so it is made once for all of a user. When a file that it is
made of changes, another one is made, and the old one goes when no process uses it. Which libraries the programs need
takes a start of each to find out, so the description of a folder has them; they are compared by size and time.
"""

import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Final, Self

import orjson
import structlog
from anyio.to_thread import run_sync

from orchestrator.service.sandbox import elf
from orchestrator.service.sandbox.base_provider import AGENT
from orchestrator.service.sandbox.build_cache import Built, UserCache
from orchestrator.service.sandbox.provider import BoxStartFailed

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
#: Another one, the place of this machine's settings of package managers (`environments.package_managers`).
SETTINGS: Final = f"{IN_BOX}/settings"
#: The places in a box that binds have in our own folder.
PLACES: Final = (TOOLCHAIN, SETTINGS)
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
_LEFT_OUT: Final = shutil.ignore_patterns(
    *("test", "tests", "idlelib", "tkinter", "turtledemo", "turtle.py", "lib2to3", "pydoc_data"),
    *("site-packages", "dist-packages", "config-*", "__pycache__", "_tkinter*.so", "_test*.so", "_ctypes_test*.so"),
    *("xxlimited*.so", "*.a", "EXTERNALLY-MANAGED"),
)
#: The folder of Python's own modules that are libraries.
_EXTENSIONS: Final = "lib-dynload"
#: What says where the loader finds libraries.
_LOADER_CACHE: Final = Path("/etc/ld.so.cache")
#: Days after which a closure that no process used goes when another one is made: it takes much room and little time.
_KEPT_DAYS: Final = 1
#: Characters of a digest in a closure's name.
_NAME_CHARS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What works of this machine's programs, and all that they need.

    `extensions` are Python's own, and `linked` are the tools that need libraries. `tools` and `libraries` are
    {name: file}, by the names that they are asked for.
    """

    extensions: Sequence[Path]
    tools: Mapping[str, Path]
    linked: frozenset[Path]
    libraries: Mapping[str, Path]

    @classmethod
    def find(cls) -> Self:
        """Blocking. Raises OSError and SubprocessError."""
        extensions, linked, libraries = list[Path](), set[Path](), elf.libraries(interpreter())
        tools: dict[str, Path] = {}
        for extension in (file for file in _python_files() if file.match(f"{_EXTENSIONS}/*.so")):
            with suppress(elf.LibraryMissing):
                libraries |= elf.libraries(extension)
                extensions.append(extension)
        for name, program in _tools().items():
            with suppress(elf.LibraryMissing):
                if program not in tools.values() and elf.loader_of(program):
                    libraries |= elf.libraries(program)
                    linked.add(program)
                tools[name] = program
        beside = libraries["libc.so.6"].parent if "libc.so.6" in libraries else Path("/nonexistent")
        portable = {name: (beside / name).resolve() for name in _PORTABLE if (beside / name).exists()}
        return cls(extensions=extensions, tools=tools, linked=frozenset(linked), libraries=portable | libraries)


class Closures:
    """This user's closures, below the folder `cache`."""

    def __init__(self, cache: Path) -> None:
        self._cache = UserCache(
            cache, "closures", kind="closure", tree="files", read=lambda built: built.tree, kept_days=_KEPT_DAYS
        )

    async def get(self) -> Path:
        """Return the folder that is made of this machine's files as they are now, made unless it is there.

        No process removes it until `close`. Raises BoxStartFailed.
        """
        try:
            programs = await run_sync(_digest)
            return await run_sync(self._find, programs) or await self._make(programs)
        except (OSError, subprocess.SubprocessError) as error:
            raise BoxStartFailed(f"the service's Python cannot be made ready for images: {error}") from error

    def _find(self, programs: str) -> Path | None:
        """Return what was made of these programs, and of their libraries as they are now. Blocking. Raises OSError."""
        for name in self._cache.names():
            facts = self._cache.facts(name) if name.startswith(programs) else None
            if facts and facts["libraries"] == _states(facts["libraries"]) and (found := self._cache.find(name)):
                return found
        return None

    async def _make(self, programs: str) -> Path:
        """Raises OSError and SubprocessError."""
        parts = await run_sync(Parts.find)
        libraries = await run_sync(_states, map(os.fspath, parts.libraries.values()))

        async def build(folder: Path) -> Built:
            tree = folder / "files"
            await run_sync(_build, tree, parts)
            if programs != await run_sync(_digest) or libraries != await run_sync(_states, libraries):
                raise OSError("this machine's programs were changed meanwhile")
            return Built(tree=tree, facts={"libraries": libraries})

        of_libraries = sha256(orjson.dumps(libraries, option=orjson.OPT_SORT_KEYS)).hexdigest()[:_NAME_CHARS]
        return await self._cache.get(f"{programs}-{of_libraries}", build)

    def prune(self) -> int:
        """Remove those that no process uses; returns how many bytes they had. Blocking. Raises OSError."""
        gone = 0
        for name in self._cache.names():
            facts = self._cache.facts(name)
            if self._cache.discard(name) and facts:
                gone += facts["amount"][1]
        return gone

    def close(self) -> None:
        """Let other processes remove what was got. Blocking, shortly."""
        self._cache.close()


def interpreter() -> Path:
    """Return the program that runs this service, without a virtual environment around it."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _tools() -> dict[str, Path]:
    """Return the programs of _TOOLS that this machine has, by their names."""
    folders = ("/usr/bin", "/bin", os.fspath(Path(sys.executable).parent), os.environ.get("PATH", ""))
    found = {name: shutil.which(name, path=os.pathsep.join(folders)) for name in _TOOLS}
    files = {name: Path(program).resolve() for name, program in found.items() if program}
    return {name: file for name, file in files.items() if elf.is_elf(file)}


def _python_folders() -> Mapping[Path, str]:
    """Return the folders of Python's own modules, with the place of each in the folder of the copies."""
    folders = {Path(sysconfig.get_path("stdlib")): ""}
    # Not sysconfig's DESTSHARED: where a Python was moved to, that is still where it was built for.
    shared = Path(sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix}), _EXTENSIONS)
    if shared.is_dir() and not any(shared.is_relative_to(folder) for folder in folders):
        folders[shared] = _EXTENSIONS
    return folders


def _python_files() -> Iterator[Path]:
    """Yield the files in these folders that are copied."""
    for top in _python_folders():
        for place, folders, names in os.walk(top):
            left_out = _LEFT_OUT(place, [*folders, *names])
            folders[:] = [name for name in folders if name not in left_out]
            yield from (Path(place, name) for name in names if name not in left_out)


def _digest() -> str:
    """Return a digest of all that a closure is made of, but libraries: of these, where the loader finds them."""
    code = {"elf": Path(elf.__file__), "closure": Path(__file__), "agent": AGENT}
    digests = {}
    for name, file in {**_tools(), **code, "python": interpreter(), "loader": _LOADER_CACHE}.items():
        for path, state in _states([os.fspath(file)]).items():
            digests[name] = _digest_of(path, *state)
    made_of = [
        PLACES,
        sys.version,
        os.environ.get("LD_LIBRARY_PATH"),
        digests,
        _states(map(os.fspath, _python_files())),
    ]
    return sha256(orjson.dumps(made_of, option=orjson.OPT_SORT_KEYS)).hexdigest()[:_NAME_CHARS]


@cache
def _digest_of(file: str, _size: int, _changed: int) -> str:
    """Return the digest of a file's content; nothing is read twice while size and time are the same."""
    with Path(file).open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()


def _states(files: Iterable[str]) -> dict[str, list[int]]:
    """Return size and time of change of the files that are there, by path."""
    states = {}
    for file in files:
        with suppress(FileNotFoundError):
            found = Path(file).stat()
            states[file] = [found.st_size, found.st_mtime_ns]
    return states


def _build(tree: Path, parts: Parts) -> None:
    """Raises OSError and SubprocessError."""
    program = tree / PROGRAM.removeprefix(f"{IN_BOX}/")
    modules = tree / "lib" / program.name
    program.parent.mkdir(parents=True)
    for source, place in _python_folders().items():
        shutil.copytree(source, modules / place, ignore=_LEFT_OUT, dirs_exist_ok=True)
    shutil.copy(interpreter(), program)
    for link in (AGENT_PROGRAM, f"{IN_BOX}/bin/python3"):
        (tree / link.removeprefix(f"{IN_BOX}/")).symlink_to(program.name)
    for place in PLACES:
        (tree / place.removeprefix(f"{IN_BOX}/")).mkdir()

    programs, extensions = [program], [modules / _EXTENSIONS / file.name for file in parts.extensions]
    for extension in {*(modules / _EXTENSIONS).glob("*.so")}.difference(extensions):
        extension.unlink()  # it does not work on this machine either
    tools = tree / TOOLS.removeprefix(f"{IN_BOX}/")
    tools.mkdir(parents=True)
    if "git" not in parts.tools:
        why = "this machine has no git, so in boxes of images without git, patches are made by diff"
        structlog.get_logger().warning("closure.no_git", why=why)
    copies: dict[Path, str] = {}
    for name, source in parts.tools.items():
        if source in copies:
            (tools / name).symlink_to(copies[source])  # a program of several names acts by its own
            continue
        shutil.copy(source, tools / name)
        copies[source] = name
        if source in parts.linked:
            programs.append(tools / name)

    libraries = tree / LIBRARIES.removeprefix(f"{IN_BOX}/")
    libraries.mkdir()
    for name, source in parts.libraries.items():
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
