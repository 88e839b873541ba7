"""A program of this machine as an agent: an agent file with `where = "host"`.

It gets a key to its devbox and no other (see `relay`), and runs below the same supervisor as a Python agent, so that it
ends as a tree: with its time, and with us. Whatever language it is in, `sweep workspace` is on its PATH.

What its file says is to come home lies on this machine. It goes to the devbox first, so that there is one way home,
with one set of limits and one place where secrets are taken out.
"""

import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import anyio

from orchestrator.agentkit.agent import Leavings, Result, Task, Where, Workspace
from orchestrator.agentkit.file.command import CommandAgent, as_bytes, tail
from orchestrator.agentkit.file.definition import OUTPUT
from orchestrator.agentkit.process import Worker
from orchestrator.common import program

if TYPE_CHECKING:
    from orchestrator.agentkit.host.devbox_proxy import Access

#: Where it works, and where the `sweep` command is, below the attempt's folder.
WORK: Final = "work"
BIN: Final = "bin"
#: In the home of the devbox's user; not below what is ours there, which never comes home.
_SHARE: Final = ".sweep-host"
#: Files, and bytes of one, that go home by way of the devbox; further limits are set there.
_MOST: Final = 1000
_LARGEST: Final = 64 << 20
_HELPER: Final = """#!/bin/sh
exec {command} "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCommandAgent(CommandAgent):
    """A definition whose command runs here, with all of the user's environment, `environ`."""

    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, agent: CommandAgent, environ: Mapping[str, str], *, confidential: Collection[str] = ()) -> Self:
        """The agent, to run here; what it reaches, it reaches from here. `confidential` of its `environ` is secret."""
        told = {each.name: getattr(agent, each.name) for each in fields(agent)}
        secrets = {**agent.secrets, **{name: environ[name] for name in confidential if environ.get(name)}}
        return cls(**{**told, "hosts": (), "secrets": secrets}, environ=environ)

    @property
    def where(self) -> Where:
        return "host"

    @property
    def leavings(self) -> Leavings:
        """As it lies in the devbox once the program has ended."""
        artifacts, trajectory = self.definition.gather.files, self.definition.trajectory
        is_file = trajectory is not None and trajectory.source != OUTPUT
        return Leavings(
            artifacts=(f"~/{_SHARE}/artifacts/*",) if artifacts else (),
            trajectory=(f"~/{_SHARE}/trajectory/*",) if is_file else (),
            trajectory_format=None if trajectory is None else trajectory.format,
        )

    async def prepare(self, workspace: Workspace) -> None:
        """Nothing to install: what runs here was installed by its owner."""

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Run the command in a fresh folder below the attempt's, until it ends or its time does."""
        from orchestrator.agentkit.host.devbox_proxy import open_relay  # a web server and a client take long to import

        folder, problem = await anyio.to_thread.run_sync(_lay_out, task)
        assert self.definition.run is not None, f"{self.name}: its argument was not filled in"
        job = {
            "op": "command",
            "argv": ["bash", "-c", self.definition.run],
            "cwd": str(folder),
            "stdin": str(problem),
        }
        async with open_relay(task.upstream, task.devbox_id) as access:
            environment = self._environment(task, access, workspace, problem)
            worker = await Worker.start(Path(sys.executable), job, environment=environment)
            ended = await worker.run(log=log, started=task.started, time_limit=task.time_limit)
        await self._share(folder, workspace)
        usage, reason = await self.report(task, workspace)
        message = "" if ended.exit_status == 0 else tail(ended.output)
        return Result(exit_status=ended.exit_status, usage=usage, exit_reason=reason, message=message)

    def _environment(self, task: Task, access: "Access", workspace: Workspace, problem: Path) -> dict[str, str]:
        """The user's, under what the agent's file says, under what we say."""
        environment = {**self.environ, **self.environment, **self.secrets, **self.facts(task)}
        return environment | {
            "RUNLOOP_BASE_URL": access.url,
            "RUNLOOP_API_KEY": access.token,
            "SWEEP_DEVBOX_ID": task.devbox_id,
            "SWEEP_PROBLEM_FILE": str(problem),
            "SWEEP_WORKING_DIRECTORY": workspace.working_directory,
            "SWEEP_SCRATCH": workspace.scratch,
            "PATH": f"{task.folder.absolute() / BIN}:{environment.get('PATH', '/usr/local/bin:/usr/bin:/bin')}",
        }

    async def report(self, task: Task, workspace: Workspace) -> tuple[Mapping[str, float], str]:
        usage = self.definition.usage
        if usage is None or usage.source == OUTPUT:
            return await CommandAgent.report(self, task, workspace)
        shared = usage.model_copy(update={"source": f"~/{_SHARE}/usage/*"})
        definition = self.definition.model_copy(update={"usage": shared})
        return await CommandAgent.report(replace(self, definition=definition), task, workspace)

    async def _share(self, folder: Path, workspace: Workspace) -> None:
        """Put what the agent's file names into the devbox, from where it comes home."""
        definition = self.definition
        named = {
            "artifacts": definition.gather.files,
            "trajectory": () if definition.trajectory is None else (definition.trajectory.source,),
            "usage": () if definition.usage is None else (definition.usage.source,),
        }
        for group, patterns in named.items():
            files = await anyio.to_thread.run_sync(_found, folder, [each for each in patterns if each != OUTPUT])
            for number, file in enumerate(files):
                name = f"{number}-{file.name}" if number else file.name
                data = await anyio.Path(file).read_bytes()
                await workspace.write(f"{workspace.home}/{_SHARE}/{group}/{name}", data)


def _lay_out(task: Task) -> tuple[Path, Path]:
    """Make the attempt's folders and files; returns the folder to work in and the problem statement's file."""
    folder, problem = task.folder.absolute() / WORK, task.folder.absolute() / "problem.md"
    for left in (folder, task.folder / BIN):
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(parents=True)
    problem.write_bytes(as_bytes(task.prompt))
    helper = task.folder / BIN / "sweep"
    helper.parent.mkdir()
    helper.write_text(_HELPER.format(command=shlex.join(program.command())))
    helper.chmod(0o755)
    return folder, problem


def _found(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files that match, oldest first; relative patterns start in the folder, `~` is the user's home."""
    paths = [
        Path(folder, path)
        for pattern in patterns
        for path in glob(str(Path(pattern).expanduser()), root_dir=folder, recursive=True)  # noqa: PTH207 - absolute too
    ]
    files = [path for path in dict.fromkeys(paths) if path.is_file() and path.stat().st_size <= _LARGEST]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns)[-_MOST:]
