"""Python interpreters of this machine for scorers, the service's own first.

Others are looked for only when a constraint asks for them: finding out an interpreter's version means running it, some
ten milliseconds each. Names without a version (`python3`) are passed over on the PATH: shims stand behind them.
"""

import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

_NAME: Final = re.compile(r"python3\.\d+")
_PYENV: Final = "~/.pyenv"
_USUAL: Final = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin", "~/.local/bin")
_ASK_LIMIT_S: Final = 10
_ASK: Final = (
    "import json, platform, sys; "
    "print(json.dumps([platform.python_version(), sys.base_prefix, getattr(sys, '_base_executable', sys.executable)]))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python outside any virtual environment: its version, its program and the folder of its installation.

    Both paths are free of links, so that a box needs to see no more than the folder.
    """

    version: str
    program: Path
    prefix: Path


def own_interpreter() -> Interpreter:
    """The interpreter that runs the service."""
    prefix = Path(sys.base_prefix).resolve()
    program = prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not program.exists():
        program = Path(getattr(sys, "_base_executable", sys.executable))
    return Interpreter(version=platform.python_version(), program=program.resolve(), prefix=prefix)


class Interpreters:
    """The service's own interpreter and, once a constraint asked for another one, all others. Safe in any thread."""

    def __init__(self) -> None:
        self.own = own_interpreter()
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
            interpreter = _ask(program) if program.resolve() not in seen else None
            if interpreter is not None and interpreter.program not in seen:
                seen |= {program.resolve(), interpreter.program}
                yield interpreter


def _ask(program: Path) -> Interpreter | None:
    """Ask a program for its version and its paths; None if it is not a working interpreter."""
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
    return Interpreter(version=version, program=Path(executable).resolve(), prefix=Path(prefix).resolve())
