"""Agents that were written for Harbor: `harbor:NAME` for one of its own, `harbor:module:Class` for anybody's.

They are Python agents that `builtin/harbor_bridge.py` builds. Harbor needs a newer Python than we do, so it is never
imported here: it comes with the interpreter of --python or of the active virtual environment, else from an environment
that is made for it once and kept.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import anyio

from orchestrator.agentkit import builtin
from orchestrator.agentkit.agent import Outputs, Result, Task, Workspace
from orchestrator.agentkit.file.command import tail
from orchestrator.agentkit.python.python_agent import PythonAgent, Target, digest_of, find_interpreter
from orchestrator.agentkit.worker_process import Frame
from orchestrator.common.cache_folder import cache_folder
from orchestrator.core.errors import UsageError

NAME: Final = "harbor"
VERSION: Final = "0.26.0"
#: For making the environment: it downloads some 100 MB.
MAKING_S: Final = 1800.0
_BRIDGE: Final = Path(builtin.__file__).with_name("harbor_bridge.py")
_IS_NEW_ENOUGH: Final = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))"


@dataclass(frozen=True, slots=True, kw_only=True)
class HarborAgent(PythonAgent):
    """An agent of Harbor's. Its settings are what Harbor calls the agent's kwargs."""

    #: It ends by itself when its time is over, and then reads its logs.
    grace: ClassVar[float] = 60.0

    @classmethod
    def load(
        cls,
        reference: str,
        *,
        python: Path | None,
        settings: Mapping[str, Any],
        environ: Mapping[str, str],
        model: str | None,
        secret: Collection[str],
    ) -> Self:
        """Make the agent of `harbor:…`. Raises UsageError for a missing interpreter; `check` does for all else."""
        name = reference.removeprefix(f"{NAME}:")
        where, _, entry = name.rpartition(":")
        target = Target(file=_BRIDGE, entry="Bridge")
        meaning = name
        if where:
            file = Path(where) if where.endswith(".py") else None
            if file is not None and not file.is_file():
                raise UsageError(f"--agent {reference}: there is no file {where}")
            theirs = Target(file=file, module=None if file else where, entry=entry)
            meaning = digest_of(theirs, Path(sys.executable), environ)
        told = {
            "SWEEP_HARBOR_AGENT": name,
            "SWEEP_HARBOR_MODEL": model or "",
            "SWEEP_HARBOR_SETTINGS": json.dumps(dict(settings), default=str),
        }
        return cls(
            name=reference,
            target=target,
            python=_interpreter(python, environ),
            digest=sha256(f"{VERSION} {meaning}".encode()).hexdigest(),
            environ={**environ, **told},
            model=model,
            confidential=frozenset(secret),
            leaves=Outputs(trajectory=("/logs/agent/trajectory.json",), trajectory_format="atif"),
        )

    async def check(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Make Harbor's environment if it is to be the one of ours and is missing, then check as any Python agent."""
        if self.python == _own_python() and not self.python.exists():
            tell(f"installing Harbor {VERSION}, once")
            await _make_environment(self.python.parents[1], self.environ)
        await PythonAgent.check(self, tell)

    async def prepare(self, task: Task, workspace: Workspace) -> None:
        try:
            await PythonAgent.prepare(self, task, workspace)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_remove, _folder(task))
            raise

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        try:
            return await PythonAgent.solve(self, task, workspace, log)
        finally:  # what is to be kept was collected from the devbox, where secrets are masked
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_remove, _folder(task))

    def _frame(self, task: Task, workspace: Workspace) -> Frame:
        header, body = PythonAgent._frame(self, task, workspace)  # noqa: SLF001 - it is one
        environment = {**header["environment"], "SWEEP_HARBOR_FOLDER": str(_folder(task))}
        return {**header, "environment": environment}, body


def _folder(task: Task) -> Path:
    """The folder for the files that Harbor keeps on this machine while the agent works: none of them is masked yet."""
    return Path(tempfile.gettempdir()) / f"sweep-{NAME}-{task.devbox_id}"


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _own_python() -> Path:
    return cache_folder() / f"{NAME}-{VERSION}" / "bin" / "python"


def _interpreter(python: Path | None, environ: Mapping[str, str]) -> Path:
    """The interpreter of --python, else of the active virtual environment if it has Harbor, else that of ours."""
    active = find_interpreter(python, environ)
    has_harbor = any(active.parent.parent.glob(f"lib/python3*/site-packages/{NAME}/__init__.py"))
    return active if python is not None or has_harbor else _own_python()


async def _make_environment(folder: Path, environ: Mapping[str, str]) -> None:
    """Make a virtual environment with Harbor. Raises UsageError that names the fix."""
    base = await _new_python(environ)
    making = folder.with_name(f"{folder.name}.{os.getpid()}")
    commands = (
        [base, "-m", "venv", "--clear", str(making)],
        [str(making / "bin/python"), "-m", "pip", "install", "--quiet", f"{NAME}=={VERSION}"],
    )
    try:
        await anyio.Path(folder.parent).mkdir(parents=True, exist_ok=True)
        for command in commands:
            with anyio.fail_after(MAKING_S):
                done = await anyio.run_process(command, check=False, stderr=subprocess.STDOUT, env=environ)
            if done.returncode != 0:
                raise UsageError(
                    f"Harbor {VERSION} could not be installed with {base}; --python PATH names an interpreter that has "
                    f"it:\n{tail(done.stdout.decode(errors='replace'))}"
                )
        with suppress(OSError):  # somebody else may have been quicker
            await anyio.Path(making).rename(folder)
    except TimeoutError:
        raise UsageError(f"Harbor {VERSION} was not installed in {MAKING_S:g} s: is the package index slow?") from None
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_remove, making)


async def _new_python(environ: Mapping[str, str]) -> str:
    """Find a Python that Harbor can run on. Raises UsageError if this machine has none."""
    path = environ.get("PATH")
    found = [shutil.which(name, path=path) for name in (*(f"python3.{minor}" for minor in range(12, 20)), "python3")]
    pyenv = await anyio.Path(environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    found += sorted([str(each) async for each in pyenv.glob("versions/3.*/bin/python3")])
    for python in dict.fromkeys(filter(None, (sys.executable, *found))):
        if (await anyio.run_process([python, "-c", _IS_NEW_ENOUGH], check=False, env=environ)).returncode == 0:
            return python
    raise UsageError(
        "Harbor needs Python 3.12 or newer with venv, and there is none on PATH: install one, such as with "
        "`uv python install 3.13`, or name one that has Harbor with --python PATH"
    )
