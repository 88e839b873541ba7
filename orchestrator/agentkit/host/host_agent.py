"""A program of this machine as an agent: an agent file with `where = "host"`.

It gets a key to its devbox and no other (see `devbox_proxy`), and runs below the same supervisor as a Python agent, so
that its whole tree ends with its time, and with us. `sweep workspace` is on its PATH, for programs in any language.

Its outputs lie on this machine. They are copied to the devbox first, so that all outputs are collected in one way, with
one set of limits and one place where secrets are masked.
"""

import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from glob import glob
from pathlib import Path
from stat import S_ISREG
from typing import Final, Self

import anyio
import structlog

from orchestrator.agentkit.agent import Outputs, Result, Task, Where, Workspace
from orchestrator.agentkit.file.command import CommandAgent, as_bytes, tail
from orchestrator.agentkit.file.definition import OUTPUT, Definition
from orchestrator.agentkit.worker_process import Worker
from orchestrator.common import sweep_command
from orchestrator.core.errors import DevboxLost, Unauthorized, WorldError

#: Below the attempt's folder: its working folder, and the folder of the `sweep` command.
WORK: Final = "work"
BIN: Final = "bin"
#: In the home of the devbox's user; not below our own folder there, which is never collected.
_SHARE: Final = ".sweep-host"
#: Files to copy to the devbox, and bytes of one; collecting has further limits.
_MAX_FILES: Final = 1000
_MAX_FILE_BYTES: Final = 64 << 20
#: For copying all of them.
_SHARE_TIMEOUT_S: Final = 1800.0
_SWEEP_SCRIPT: Final = """#!/bin/sh
exec {command} "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCommandAgent(CommandAgent):
    """A definition whose command runs on this machine, with all of the user's environment, `environ`."""

    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, agent: CommandAgent, environ: Mapping[str, str], *, confidential: Collection[str] = ()) -> Self:
        """Make `agent` run on this machine and reach its hosts from here. `confidential` names secrets in `environ`."""
        given = {each.name: getattr(agent, each.name) for each in fields(agent)}
        secrets = {**agent.secrets, **{name: environ[name] for name in confidential if environ.get(name)}}
        return cls(**{**given, "hosts": (), "secrets": secrets}, environ=environ)

    @property
    def where(self) -> Where:
        return "host"

    @property
    def outputs(self) -> Outputs:
        """The outputs in the devbox, where they are copied once the program has ended."""
        artifacts, trajectory = self.definition.gather.files, self.definition.trajectory
        is_file = trajectory is not None and trajectory.source != OUTPUT
        return Outputs(
            artifacts=(f"~/{_SHARE}/artifacts/*",) if artifacts else (),
            trajectory=(f"~/{_SHARE}/trajectory/*",) if is_file else (),
            trajectory_format=None if trajectory is None else trajectory.format,
        )

    async def prepare(self, task: Task, workspace: Workspace) -> None:
        """Install nothing: a program of this machine was installed by its owner."""

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Run the command in a fresh folder below the attempt's, until it ends or its time does."""
        from orchestrator.agentkit.host.devbox_proxy import open_proxy  # a web server and a client take long to import

        folder, problem = await anyio.to_thread.run_sync(_make_folders, task)
        assert self.definition.run is not None, f"{self.name}: its argument was not filled in"
        job = {
            "op": "command",
            "argv": ["bash", "-c", self.definition.run],
            "cwd": str(folder),
            "stdin": str(problem),
        }
        async with open_proxy(task.upstream, task.devbox_id) as access:
            below = {**self.environ, **self.environment, **self.secrets, **self.facts(task)}
            environment = below | {
                "RUNLOOP_BASE_URL": access.url,
                "RUNLOOP_API_KEY": access.token,
                "SWEEP_DEVBOX_ID": task.devbox_id,
                "SWEEP_PROBLEM_FILE": str(problem),
                "SWEEP_WORKING_DIRECTORY": workspace.working_directory,
                "SWEEP_SCRATCH": workspace.scratch,
                "PATH": f"{task.folder.absolute() / BIN}:{below.get('PATH', '/usr/local/bin:/usr/bin:/bin')}",
            }
            worker = await Worker.start(Path(sys.executable), job, environment=environment)
            ended = await worker.run(log=log, started=task.started, time_limit=task.time_limit)
        await _share(await anyio.to_thread.run_sync(_files_to_share, self.definition, folder), workspace)
        usage, reason = await self.report(task, workspace)
        message = "" if ended.exit_status == 0 else tail(ended.output)
        return Result(exit_status=ended.exit_status, usage=usage, exit_reason=reason, message=message)

    async def report(self, task: Task, workspace: Workspace) -> tuple[Mapping[str, float], str]:
        usage = self.definition.usage
        if usage is None or usage.source == OUTPUT:
            return await CommandAgent.report(self, task, workspace)
        shared = usage.model_copy(update={"source": f"~/{_SHARE}/usage/*"})
        definition = self.definition.model_copy(update={"usage": shared})
        return await CommandAgent.report(replace(self, definition=definition), task, workspace)


def _make_folders(task: Task) -> tuple[Path, Path]:
    """Make the attempt's folders and files; returns the folder to work in and the problem statement's file."""
    folder, problem = task.folder.absolute() / WORK, task.folder.absolute() / "problem.md"
    for left in (folder, task.folder / BIN):
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(parents=True)
    problem.write_bytes(as_bytes(task.prompt))
    script = task.folder / BIN / "sweep"
    script.parent.mkdir()
    script.write_text(_SWEEP_SCRIPT.format(command=shlex.join(sweep_command())))
    script.chmod(0o755)
    return folder, problem


def _files_to_share(definition: Definition, folder: Path) -> list[tuple[str, Path]]:
    """The files that the agent's file names, each with its path below `_SHARE`; of each kind the oldest first.

    Relative patterns start in `folder`, `~` is the user's home.
    """
    named = {
        "artifacts": definition.gather.files,
        "trajectory": () if definition.trajectory is None else (definition.trajectory.source,),
        "usage": () if definition.usage is None else (definition.usage.source,),
    }
    shared = []
    for kind, patterns in named.items():
        paths = [
            Path(folder, path)
            for pattern in patterns
            if pattern != OUTPUT
            for path in glob(str(Path(pattern).expanduser()), root_dir=folder, recursive=True)  # noqa: PTH207 - absolute too
        ]
        ages = {}
        for path in dict.fromkeys(paths):
            with suppress(OSError):
                found = path.stat()
                if S_ISREG(found.st_mode) and found.st_size <= _MAX_FILE_BYTES:
                    ages[path] = found.st_mtime_ns
        newest = sorted(ages, key=ages.__getitem__)[-_MAX_FILES:]
        for number, file in enumerate(newest):
            shared.append((f"{kind}/{number}-{file.name}" if number else f"{kind}/{file.name}", file))
    return shared


async def _share(files: Iterable[tuple[str, Path]], workspace: Workspace) -> None:
    """Copy files to the devbox, each to its path below `_SHARE`. Bounded.

    One that cannot be copied is left out, with a warning in the log: the agent has done its work.
    """
    with anyio.move_on_after(_SHARE_TIMEOUT_S) as sharing:
        for name, file in files:
            try:
                await workspace.write(f"{workspace.home}/{_SHARE}/{name}", await anyio.Path(file).read_bytes())
            except (DevboxLost, Unauthorized):
                raise
            except (OSError, ValueError, WorldError) as error:
                structlog.get_logger().warning("output.not_shared", file=str(file), error=str(error))
    if sharing.cancelled_caught:
        structlog.get_logger().warning("output.not_shared", error=f"it took longer than {_SHARE_TIMEOUT_S:g} s")
