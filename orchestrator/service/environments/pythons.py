"""Python environments of `python_script_scorer`: built once outside the sandbox, bound read-only into the box.

Every script runs in a virtual environment, with or without requirements, so that it sees its own packages and not those
of the service or of the machine. The environment is made without pip and filled by the service's pip; its programs find
their interpreter beside themselves, so the folder works wherever it is bound. Why not `pip install --target`: a script
that starts `sys.executable -m pytest` would lose its packages.

Nothing in an environment may run code while it is being installed. pip installs wheels and does nothing else: it may
start no program. Its own options do not suffice, for a wheel may depend on a source distribution by address, whose
build script would run here, outside the sandbox. In requirements a source distribution, an editable install or a
version control address would do the same, and `-r`, `-c` and `${VARIABLE}` read files and the environment of the
service: these are refused by line.

In a box of an image an environment runs on the Python of the box agent (`closure`), which is the service's own: nothing
of the machine's is there.

The interpreters are this machine's, the service's own first. Others are looked for only when a constraint asks for
them: finding out an interpreter's version means running it, some ten milliseconds each. Names without a version
(`python3`) are passed over on the PATH: shims stand behind them.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote, urlsplit

import anyio
import orjson
import structlog
from anyio.to_thread import run_sync

from orchestrator.service.sandbox.build_cache import BuildCache, Built
from orchestrator.service.sandbox.closure import PROGRAM
from orchestrator.service.sandbox.provider import Bind, BoxStartFailed

#: Where the box sees an environment: one fixed folder each, named like its folder in the cache.
IN_BOX: Final = "/opt/sweep/python"
BUILD_LIMIT_S: Final = 900
#: Characters of pip's output, its end, that an error shows.
_SHOWN_CHARS: Final = 4000
#: Runs pip without the power to start a program; where libc is musl, it asks the loader for its version.
_GUARD: Final = """\
import runpy, sys
STARTS = ("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system")
def guard(event, args):
    if event in STARTS and not str(args and args[0]).startswith("/lib/ld-musl-"):
        raise PermissionError("only wheels are installed, and this package is none: its build would run a program")
sys.addaudithook(guard)
sys.argv = sys.argv[1:]
if sys.argv[0] == "pip":
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
#: How a program of the environment begins: shell that starts the Python beside it, which takes this for a string.
_BESIDE: Final = b'#!/bin/sh\n\'\'\'exec\' "$(dirname -- "$(realpath -- "$0")")/python" "$0" "$@"\n\' \'\'\'\n'
_HOME: Final = os.path.dirname(PROGRAM)  # noqa: PTH120
_NAME: Final = re.compile(r"python3\.\d+")
_PYENV: Final = "~/.pyenv"
_USUAL: Final = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin", "~/.local/bin")
_ASK_LIMIT_S: Final = 10
_ASK: Final = (
    "import json, platform, sys; "
    "print(json.dumps([platform.python_version(), sys.base_prefix, getattr(sys, '_base_executable', sys.executable)]))"
)
_FLAGS: Final = frozenset({"--no-index", "--prefer-binary", "--require-hashes", "--pre"})
_WITH_VALUE: Final = frozenset(
    {"-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--trusted-host", "--only-binary"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python outside any virtual environment: its version, its program and the folder of its installation.

    Both paths are free of links, so that a box needs to see no more than the folder.
    """

    version: str
    program: Path
    prefix: Path

    @classmethod
    def own(cls) -> Self:
        """Return the interpreter that runs the service."""
        prefix = Path(sys.base_prefix).resolve()
        program = prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        if not program.exists():
            program = Path(getattr(sys, "_base_executable", sys.executable))
        return cls(version=platform.python_version(), program=program.resolve(), prefix=prefix)

    @classmethod
    def ask(cls, program: Path) -> Self | None:
        """Ask a program for its version and its paths; None if it is not a working interpreter. Blocking."""
        try:
            answer = subprocess.run(
                [program, "-I", "-S", "-c", _ASK],
                capture_output=True,
                timeout=_ASK_LIMIT_S,
                check=True,
                stdin=subprocess.DEVNULL,
            )
            version, prefix, executable = orjson.loads(answer.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            return None
        return cls(version=version, program=Path(executable).resolve(), prefix=Path(prefix).resolve())


class Interpreters:
    """The service's own interpreter and, once a constraint asked for another one, all others. Safe in any thread."""

    def __init__(self) -> None:
        self.own = Interpreter.own()
        self._lock = threading.Lock()
        self._others: tuple[Interpreter, ...] | None = None

    def find(self, constraint: str | None) -> Interpreter | None:
        """Return the service's own if it meets a PEP 440 constraint (it meets an empty one), else the newest that does.

        Runs the other interpreters when the own one does not meet it: call it in a worker thread. Raises ValueError for
        a constraint that cannot be read.
        """
        if not constraint:
            return self.own
        from packaging.specifiers import InvalidSpecifier, SpecifierSet  # slow to import, and few constraints are given

        try:
            specifiers = SpecifierSet(constraint)
        except InvalidSpecifier:
            raise ValueError(f"{constraint!r} is not a version specifier such as '==3.12.*' or '>=3.11'") from None
        if specifiers.contains(self.own.version, prereleases=True):
            return self.own
        fitting = (each for each in self.installed() if specifiers.contains(each.version, prereleases=True))
        return next(fitting, None)

    def problem(self, constraint: str) -> str | None:
        """Return the reason why no interpreter meets a constraint, None if one does. Blocking as `find` is."""
        try:
            found = self.find(constraint)
        except ValueError as error:
            return str(error)
        if found is not None:
            return None
        installed = ", ".join(each.version for each in self.installed())
        return f"no installed Python meets {constraint!r}; installed: {installed}"

    def installed(self) -> tuple[Interpreter, ...]:
        """Return all interpreters: the own first, then the newest.

        Blocks for some ten milliseconds per interpreter, the first time.
        """
        from packaging.version import Version

        with self._lock:
            if self._others is None:
                self._others = tuple(sorted(_others(self.own), key=lambda each: Version(each.version), reverse=True))
            return (self.own, *self._others)


def _others(own: Interpreter) -> Iterator[Interpreter]:
    """Find programs called python3.X: on the PATH, in the usual folders, and those that pyenv built."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or _PYENV).expanduser()
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    folders += [Path(folder).expanduser() for folder in _USUAL]
    folders += sorted(pyenv.glob("versions/*/bin"), reverse=True)

    seen = {own.program}
    for folder in folders:
        if folder == pyenv / "shims":
            continue
        try:
            programs = [program for program in folder.iterdir() if _NAME.fullmatch(program.name)]
        except OSError:
            continue
        for program in sorted(programs, key=lambda program: int(program.suffix[1:]), reverse=True):
            interpreter = Interpreter.ask(program) if program.resolve() not in seen else None
            if interpreter is not None and interpreter.program not in seen:
                seen |= {program.resolve(), interpreter.program}
                yield interpreter


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonBuild:
    """One way to make an environment; `requirements` are the text of a file, which may be empty."""

    interpreter: Interpreter
    requirements: str
    is_image: bool = False

    @property
    def name(self) -> str:
        program = PROGRAM if self.is_image else str(self.interpreter.program)
        key = orjson.dumps([self.interpreter.version, program, self.requirements.strip()])
        return sha256(key).hexdigest()[:20]

    async def carry_out(self, folder: Path) -> Built:
        """Make the environment below the empty folder `folder`. Raises BoxStartFailed with pip's own words."""
        log = structlog.get_logger()
        log.info("scoring.python_building", environment=self.name, python=self.interpreter.version)
        tree = folder / "environment"
        python = [str(tree / "bin" / "python"), "-I"]
        with anyio.move_on_after(BUILD_LIMIT_S) as scope:
            await _run([str(self.interpreter.program), "-I", "-m", "venv", "--without-pip", str(tree)], "made")
            if self.requirements.strip():
                listed = tree / "requirements.txt"
                await anyio.Path(listed).write_text(self.requirements)
                found, pip = find_spec("pip"), "pip"
                if found is not None and found.origin is not None:  # the service's own, else the one of its Python
                    # What `pip --python` would start: it finds pip, and nothing else, beside itself.
                    pip = str(Path(found.origin).with_name("__pip-runner__.py"))
                else:
                    await _run([*python, "-m", "ensurepip"], "given pip")
                quiet = ("--disable-pip-version-check", "--no-input", "--no-color")
                wanted = ("install", "--only-binary", ":all:", "--requirement", str(listed))
                await _run([*python, "-c", _GUARD, pip, *quiet, *wanted], "filled")
            await run_sync(_make_relocatable, tree)
            if self.is_image:
                await run_sync(_rebase, tree)
        if scope.cancelled_caught:
            raise BoxStartFailed(f"The scorer's Python environment was not built within {BUILD_LIMIT_S} s.")
        log.info("scoring.python_built", environment=self.name)
        return Built(tree=tree, facts={"python": self.interpreter.version})


class PythonEnvironments:
    """The environments of a service, below `cache`.

    `requirements` are the text of a requirements file and `constraint` is a PEP 440 one for the version of Python; None
    stands for none.
    """

    def __init__(self, cache: Path) -> None:
        self.interpreters = Interpreters()
        self._cache = BuildCache(
            cache / "python", kind="python", tree="files", read=lambda built: built.tree, measure=_measure
        )

    async def binds(
        self, *, requirements: str | None, constraint: str | None, is_image: bool = False
    ) -> tuple[Bind, ...]:
        """Return what a box, of an image or not, must see of an environment, which is built unless it is there.

        Raises BoxStartFailed with pip's own words.
        """
        build = await self._plan(requirements, constraint, is_image=is_image)
        tree = await self._cache.get(build.name, build.carry_out)
        environment, interpreter = Bind(source=tree, target=f"{IN_BOX}/{build.name}"), build.interpreter
        if is_image or interpreter == self.interpreters.own or interpreter.prefix.is_relative_to("/usr"):
            return (environment,)
        return environment, Bind(source=interpreter.prefix, target=str(interpreter.prefix))

    async def program(
        self, *, requirements: str | None, constraint: str | None, is_image: bool = False
    ) -> tuple[str, str]:
        """Return the path of the interpreter in the box, and its version. Raises BoxStartFailed if there is none."""
        build = await self._plan(requirements, constraint, is_image=is_image)
        return f"{IN_BOX}/{build.name}/bin/python", build.interpreter.version

    async def _plan(self, requirements: str | None, constraint: str | None, *, is_image: bool) -> PythonBuild:
        found = await run_sync(self.interpreters.find, constraint)
        if found is None:
            raise BoxStartFailed(f"No installed Python meets {constraint!r}.")
        own = self.interpreters.own
        if is_image and found != own:
            raise BoxStartFailed(
                f"In a devbox of an image a scorer's Python is this service's, {own.version}, which does not meet "
                f"{constraint!r}: start the service with one that does."
            )
        return PythonBuild(interpreter=found, requirements=requirements or "", is_image=is_image)


def _measure(tree: Path) -> list[int]:
    """Count files and their bytes without byte code, which scorers write too where nothing is read-only for them."""
    files = [f"{folder}/{name}" for folder, _, names in os.walk(tree) for name in names if not name.endswith(".pyc")]
    return [len(files), sum(os.lstat(file).st_size for file in files)]


async def _run(argv: Sequence[str], what: str) -> None:
    """Raises BoxStartFailed with the end of what the program printed."""
    done = await anyio.run_process(argv, check=False, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        words = done.stdout.decode(errors="replace").strip()[-_SHOWN_CHARS:]
        raise BoxStartFailed(f"A scorer's Python environment could not be {what}:\n{words}")


def _make_relocatable(tree: Path) -> None:
    """Have the environment's programs start the Python beside them, wherever the tree is."""
    here = f"{tree}/bin/python".encode()
    for program in (tree / "bin").iterdir():
        if not program.is_file() or program.is_symlink():
            continue
        # One line names the interpreter, or three where its path is long.
        first, _, rest = program.read_bytes().partition(b"\n")
        lines = rest.split(b"\n", 2)
        if first.startswith(b"#!" + here):
            program.write_bytes(_BESIDE + rest)
        elif first == b"#!/bin/sh" and here in lines[0]:
            program.write_bytes(_BESIDE + lines[2])


def _rebase(tree: Path) -> None:
    """Have the environment run on the Python of boxes of images."""
    settings, link = tree / "pyvenv.cfg", tree / "bin/python"
    lines = settings.read_text().splitlines()
    settings.write_text("".join(f"{line}\n" for line in lines if not line.startswith("home ")) + f"home = {_HOME}\n")
    link.unlink()
    link.symlink_to(PROGRAM)


def check_requirements(contents: str) -> None:
    """Raises ValueError naming each line of a requirements file that may not be installed, and why.

    A line that continues is named by the number of its first one.
    """
    lines: list[tuple[int, str]] = []
    pending, start = "", 0
    for number, line in enumerate(contents.splitlines(), 1):
        start = start if pending else number
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            pending += line[:-1]
        else:
            lines.append((start, re.sub(r"(^|\s+)#.*$", "", pending + line).strip()))
            pending = ""
    lines.append((start, pending.strip()))
    problems = [f"line {number}: {why}" for number, line in lines if line and (why := _problem(line))]
    if problems:
        raise ValueError("; ".join(problems))


def _problem(line: str) -> str | None:
    """Return the reason why a line is refused, None if it is not.

    Options are taken word by word, each by its full name, for one line may hold several, and pip lets `--only-binary
    :none:` or `--no-binary` in the file undo the options of the command line.
    """
    if "${" in line:
        return "variables of the service's environment are not filled in"
    if line.startswith("-"):
        try:
            words = iter(shlex.split(line))
        except ValueError as error:
            return f"{line!r} cannot be read: {error}"
        for word in words:
            option, has_value, value = word.partition("=")
            if option in _WITH_VALUE:
                value = value if has_value else next(words, "")
                if option == "--only-binary" and value != ":all:":
                    return "only wheels are installed, so --only-binary can only be :all:"
            elif word not in _FLAGS:
                return f"the option {option} is not allowed in a scorer's requirements"
        return None

    requirement, *options = re.split(r"\s+(?=--)", line)
    if wrong := [option for option in options if not option.startswith("--hash")]:
        return f"the option {wrong[0]} is not allowed in a scorer's requirements"
    requirement = requirement.strip()
    if " " not in requirement and _is_wheel(requirement):
        return None

    from packaging.requirements import InvalidRequirement, Requirement  # slow to import, and few scorers have any

    try:
        url = Requirement(requirement).url
    except InvalidRequirement:
        return f"{requirement!r} is neither a requirement by name nor a wheel; only wheels are installed"
    return f"{url} is not a wheel; only wheels are installed" if url and not _is_wheel(url) else None


def _is_wheel(place: str) -> bool:
    """Tell whether an address or a path names the file of a wheel; a folder of such a name would be built.

    An address is judged as pip judges it: by the path alone, for a query or a fragment that ends with `.whl` makes no
    wheel.
    """
    try:
        parts = urlsplit(place)
    except ValueError:
        return False
    if parts.scheme not in {"", "http", "https", "file"}:
        return False
    path = unquote(parts.path) if parts.scheme else place
    return path.endswith(".whl") and not (parts.scheme in {"", "file"} and Path(path).is_dir())
