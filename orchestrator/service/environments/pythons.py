"""Python environments of `python_script_scorer`: built once outside the sandbox, bound read-only into the box.

Every script runs in a virtual environment, with or without requirements, so that it sees its own packages and not those
of the service or of the machine. The environment is made without pip and filled by the service's pip; its programs find
their interpreter beside themselves, so the folder works wherever it is bound.

pip installs wheels and does nothing else: it may start no program. Its own options do not suffice, for a wheel may
depend on a source distribution by address, whose build script would run here, outside the sandbox.

Why not `pip install --target`: a script that starts `sys.executable -m pytest` would lose its packages.
"""

import os
import subprocess
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import anyio
import orjson
import structlog
from anyio.to_thread import run_sync

from orchestrator.service.environments.build_cache import BuildCache, Built
from orchestrator.service.environments.interpreters import Interpreter, Interpreters
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

    async def binds(self, *, requirements: str | None, constraint: str | None) -> tuple[Bind, ...]:
        """Return what the box must see of an environment, which is built unless it is there.

        Raises BoxStartFailed with pip's own words.
        """
        interpreter = await self._interpreter(constraint)
        name = _name(interpreter, requirements)
        tree = await self._cache.get(name, partial(_build, name, interpreter, requirements or ""))
        environment = Bind(source=tree, target=f"{IN_BOX}/{name}")
        if interpreter == self.interpreters.own or interpreter.prefix.is_relative_to("/usr"):
            return (environment,)
        return environment, Bind(source=interpreter.prefix, target=str(interpreter.prefix))

    async def program(self, *, requirements: str | None, constraint: str | None) -> tuple[str, str]:
        """Return the path of the interpreter in the box, and its version. Raises BoxStartFailed if there is none."""
        interpreter = await self._interpreter(constraint)
        return f"{IN_BOX}/{_name(interpreter, requirements)}/bin/python", interpreter.version

    async def _interpreter(self, constraint: str | None) -> Interpreter:
        found = await run_sync(self.interpreters.find, constraint)
        if found is None:
            raise BoxStartFailed(f"No installed Python meets {constraint!r}.")
        return found


def _name(interpreter: Interpreter, requirements: str | None) -> str:
    key = orjson.dumps([interpreter.version, str(interpreter.program), (requirements or "").strip()])
    return sha256(key).hexdigest()[:20]


def _measure(tree: Path) -> list[int]:
    """Count files and their bytes without byte code, which scorers write too where nothing is read-only for them."""
    files = [f"{folder}/{name}" for folder, _, names in os.walk(tree) for name in names if not name.endswith(".pyc")]
    return [len(files), sum(os.lstat(file).st_size for file in files)]


async def _build(name: str, interpreter: Interpreter, requirements: str, folder: Path) -> Built:
    log = structlog.get_logger()
    log.info("scoring.python_building", environment=name, python=interpreter.version)
    tree = folder / "environment"
    with anyio.move_on_after(BUILD_LIMIT_S) as scope:
        await _run([str(interpreter.program), "-I", "-m", "venv", "--without-pip", str(tree)], "made")
        if requirements.strip():
            listed = tree / "requirements.txt"
            await anyio.Path(listed).write_text(requirements)
            pip = await _pip(tree)
            await _run([*pip, "install", "--only-binary", ":all:", "--requirement", str(listed)], "filled")
        await run_sync(_make_relocatable, tree)
    if scope.cancelled_caught:
        raise BoxStartFailed(f"The scorer's Python environment was not built within {BUILD_LIMIT_S} s.")
    log.info("scoring.python_built", environment=name)
    return Built(tree=tree, facts={"python": interpreter.version})


async def _pip(tree: Path) -> list[str]:
    """Return how to run a pip that installs into the environment: the service's own, else the one of its Python."""
    guarded = [str(tree / "bin" / "python"), "-I", "-c", _GUARD]
    quiet = ["--disable-pip-version-check", "--no-input", "--no-color"]
    found = find_spec("pip")
    if found is not None and found.origin is not None:
        # What `pip --python` would start: it finds pip, and nothing else, beside itself.
        return [*guarded, str(Path(found.origin).with_name("__pip-runner__.py")), *quiet]
    await _run([str(tree / "bin" / "python"), "-I", "-m", "ensurepip"], "given pip")
    return [*guarded, "pip", *quiet]


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
