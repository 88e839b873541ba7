"""Python environments for `python_script_scorer`: built once outside the sandbox, bound read-only into the box.

Every script runs in a virtual environment, with or without requirements, so that it sees its own packages and not those
of the service or of the machine. The environment is made without pip and filled by the service's pip; its programs find
their interpreter beside themselves, so the folder works wherever it is bound. It is built beside its final name and
renamed, so a folder that exists is whole; there is one service per cache folder.

pip installs wheels and does nothing else: it may start no program. Its own options do not suffice, for a wheel may
depend on a source distribution by address, whose build script would run here, outside the sandbox.

Why not `pip install --target`: a script that starts `sys.executable -m pytest` would lose its packages.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import anyio
import orjson
import structlog
from anyio import to_thread

from orchestrator.service.environments.interpreters import Interpreter, Interpreters
from orchestrator.service.environments.single_flight import Flights
from orchestrator.service.sandbox.provider import Bind, BoxStartFailed
from orchestrator.service.scoring.contract import PythonScript

#: Where the box sees an environment: one fixed folder each, named like its folder in the cache.
IN_BOX: Final = "/opt/sweep/python"
BUILD_TIMEOUT: Final = 900.0
#: How much of pip's output an error shows.
SHOWN: Final = 4000
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
    """The environments of a service, below `cache`."""

    def __init__(self, cache: Path) -> None:
        self.interpreters = Interpreters()
        self._folder = cache / "python"
        self._flights = Flights()

    async def binds(self, scorer: PythonScript) -> tuple[Bind, ...]:
        """Build the scorer's environment unless it is there, and say what the box must see of it.

        Raises BoxStartFailed with pip's own words.
        """
        interpreter = await self._interpreter(scorer)
        name = _name(interpreter, scorer.requirements_contents)
        requirements = scorer.requirements_contents or ""
        await self._flights.take(name, lambda: self._have(name, interpreter, requirements))
        environment = Bind(source=self._folder / name, target=f"{IN_BOX}/{name}")
        if interpreter == self.interpreters.own or interpreter.prefix.is_relative_to("/usr"):
            return (environment,)
        return environment, Bind(source=interpreter.prefix, target=str(interpreter.prefix))

    async def program(self, scorer: PythonScript) -> tuple[str, str]:
        """The path in the box of the scorer's interpreter, and its version. Raises BoxStartFailed if there is none."""
        interpreter = await self._interpreter(scorer)
        return f"{IN_BOX}/{_name(interpreter, scorer.requirements_contents)}/bin/python", interpreter.version

    async def _interpreter(self, scorer: PythonScript) -> Interpreter:
        found = await to_thread.run_sync(self.interpreters.find, scorer.python_version_constraint)
        if found is None:
            raise BoxStartFailed(f"No installed Python meets {scorer.python_version_constraint!r}.")
        return found

    async def _have(self, name: str, interpreter: Interpreter, requirements: str) -> None:
        if not await to_thread.run_sync((self._folder / name).is_dir):
            await self._build(name, interpreter, requirements)

    async def _build(self, name: str, interpreter: Interpreter, requirements: str) -> None:
        building = Path(await to_thread.run_sync(self._building_folder, name))
        log = structlog.get_logger()
        log.info("scoring.python_building", environment=name, python=interpreter.version)
        try:
            with anyio.move_on_after(BUILD_TIMEOUT) as scope:
                await self._fill(building, interpreter, requirements)
                await to_thread.run_sync(building.rename, self._folder / name)
            if scope.cancelled_caught:
                raise BoxStartFailed(f"The scorer's Python environment was not built within {BUILD_TIMEOUT:.0f} s.")
        finally:
            with anyio.move_on_after(30, shield=True):
                await to_thread.run_sync(partial(shutil.rmtree, building, ignore_errors=True))
        log.info("scoring.python_built", environment=name)

    def _building_folder(self, name: str) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{name}-", dir=self._folder)
        Path(folder).chmod(0o755)  # the box reads it as another user
        return folder

    async def _fill(self, folder: Path, interpreter: Interpreter, requirements: str) -> None:
        await _run([str(interpreter.program), "-I", "-m", "venv", "--without-pip", str(folder)], "made")
        if requirements.strip():
            listed = folder / "requirements.txt"
            await anyio.Path(listed).write_text(requirements)
            pip = await _pip(folder)
            await _run([*pip, "install", "--only-binary", ":all:", "--requirement", str(listed)], "filled")
        await to_thread.run_sync(_make_relocatable, folder)


def _name(interpreter: Interpreter, requirements: str | None) -> str:
    key = orjson.dumps([interpreter.version, str(interpreter.program), (requirements or "").strip()])
    return sha256(key).hexdigest()[:20]


async def _pip(folder: Path) -> list[str]:
    """How to run a pip that installs into the environment: the service's own, else the one Python brings along."""
    guarded = [str(folder / "bin" / "python"), "-I", "-c", _GUARD]
    quiet = ["--disable-pip-version-check", "--no-input", "--no-color"]
    found = find_spec("pip")
    if found is not None and found.origin is not None:
        # What `pip --python` would start: it finds pip, and nothing else, beside itself.
        return [*guarded, str(Path(found.origin).with_name("__pip-runner__.py")), *quiet]
    await _run([str(folder / "bin" / "python"), "-I", "-m", "ensurepip"], "given pip")
    return [*guarded, "pip", *quiet]


async def _run(argv: Sequence[str], what: str) -> None:
    """Raises BoxStartFailed with the end of what the program printed."""
    done = await anyio.run_process(argv, check=False, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip()[-SHOWN:]
        raise BoxStartFailed(f"A scorer's Python environment could not be {what}:\n{said}")


def _make_relocatable(folder: Path) -> None:
    """Have the environment's programs start the Python beside them, wherever the folder is."""
    for program in (folder / "bin").iterdir():
        if program.is_file() and not program.is_symlink() and (body := _body(program.read_bytes(), folder)) is not None:
            program.write_bytes(_BESIDE + body)


def _body(data: bytes, folder: Path) -> bytes | None:
    """A program without the lines that name its interpreter: one of them, or three where the path is long."""
    here = f"{folder}/bin/python".encode()
    first, _, rest = data.partition(b"\n")
    if first.startswith(b"#!" + here):
        return rest
    lines = rest.split(b"\n", 2)
    return lines[2] if first == b"#!/bin/sh" and here in lines[0] else None
