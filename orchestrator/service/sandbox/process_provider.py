"""The provider without isolation: a box is a folder, a supervisor and whatever the commands do to this machine.

Its secret: what it does not promise. A command here reads and writes what the service's user may, uses the network and
sees every process; so it declares neither ISOLATED nor ROOTED nor NETWORK_OFF, and is only ever an explicit choice.
What it does keep is order: the same agent as in a sandbox runs each box, adopts every daemon of its commands, and ends
them all when the box is stopped or the service's end of the socket closes, whatever closed it.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import anyio.to_thread

from orchestrator.service.sandbox.agentbox import AGENT, AgentBox
from orchestrator.service.sandbox.base_provider import BaseProvider
from orchestrator.service.sandbox.disk import DiskWatch
from orchestrator.service.sandbox.folders import BoxFolder
from orchestrator.service.sandbox.limits import Groups, box_rlimits
from orchestrator.service.sandbox.provider import BoxSpec, BoxStartFailed, Capability, Limit
from orchestrator.service.sandbox.safe_fs import remove

LINUX = sys.platform == "linux"
INTERPRETER = Path(sys.executable).resolve()


class ProcessBox(AgentBox):
    """A box of the `process` provider."""

    def __init__(
        self, spec: BoxSpec, state: Path, groups: Groups, watch: DiskWatch, forget: Callable[[], None]
    ) -> None:
        super().__init__(spec, BoxFolder(base=state / "boxes" / spec.id), watch, forget)
        self._agent = state / "agent"
        self._groups = groups
        self._tops: frozenset[str] = frozenset()

    def path(self, path: str) -> str:
        """The box's own folders lie below its folder; all else, and what is there already, is the host's."""
        if PurePosixPath(path).is_relative_to(self.folder.files):
            return path
        parts = PurePosixPath(path).parts
        if len(parts) > 1 and parts[0] == "/" and parts[1] in self._tops:
            return os.fspath(self.folder.files.joinpath(*parts[1:]))
        return path

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "USER", "LOGNAME") if name in os.environ}
        path = f"{kept.get('PATH', '/usr/local/bin:/usr/bin:/bin')}:{INTERPRETER.parent}"
        home, temporary = self.path("/home/user"), self.path("/tmp")  # noqa: S108
        return {
            **kept,
            "PATH": path,
            "HOME": home,
            "TMPDIR": temporary,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            # For scripts that know where a devbox's own folders are when they are not at /.
            "SWEEP_ROOT": os.fspath(self.folder.files),
        }

    def prepare(self) -> None:
        super().prepare()
        for bind in self.spec.binds:
            place = self.folder.files / bind.target.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(bind.source)
        self._tops = frozenset(place.name for place in self.folder.files.iterdir())
        self.group = self._groups.create(self.id, self.spec.resources)

    async def launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        limits = box_rlimits(self.spec.resources, processes=False)
        command = (self._agent, "-I", "-S", AGENT, str(control), limits)
        return await anyio.to_thread.run_sync(partial(_start, command, control, errors, self.folder.files))

    def strike(self) -> None:
        if self._link is not None:
            self._link.hang_up()

    def booted(self) -> None:
        """The supervisor's socket is all we hold."""

    async def release(self) -> None:
        """Nothing was lent."""


def _start(command: tuple[str | Path, ...], control: int, errors: IO[bytes], folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        cwd=folder,
        env={},
        umask=0o022,
        pass_fds=(control,),
        start_new_session=True,
    )


class ProcessProvider(BaseProvider[Groups]):
    """Boxes without walls."""

    name = "process"
    capabilities = frozenset({Capability.NETWORK_ON}) | (
        {Capability.TREE_KILL, Capability.DIES_WITH_SERVICE} if LINUX else frozenset()
    )

    async def open_machine(self) -> Groups:
        await anyio.to_thread.run_sync(_furnish, self.state)
        return await anyio.to_thread.run_sync(Groups.find)

    async def close_machine(self, machine: Groups) -> None:
        await anyio.to_thread.run_sync(machine.close)

    def limits_of(self, machine: Groups) -> frozenset[Limit]:
        return machine.limits

    def make(self, spec: BoxSpec, machine: Groups, forget: Callable[[], None], beside: AgentBox | None) -> ProcessBox:
        if beside is not None:
            raise BoxStartFailed(f"devbox {spec.id}: without walls no box can be started over another one's files")
        return ProcessBox(spec, self.state, machine, self.watch, forget)


def _furnish(state: Path) -> None:
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove(state / "boxes")
    (state / "boxes").mkdir()
    (state / "agent").unlink(missing_ok=True)
    (state / "agent").symlink_to(INTERPRETER)
