"""The provider without isolation: a box is a folder, a supervisor and whatever the commands do to this machine.

Its secret: what it does not promise. A command here reads and writes with the rights of the service's user, uses the
network and sees every process; so the provider declares neither ISOLATED nor ROOTED nor NETWORK_OFF, and is only ever
an explicit choice. It does keep order: the same agent as in a sandbox runs each box, adopts every daemon of its
commands, and ends them all when the box is stopped or the service's end of the socket closes, for whatever reason.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

import anyio.to_thread

from orchestrator.core.errors import SandboxUnavailable
from orchestrator.core.protocol import DiskLimit, Isolation
from orchestrator.service.sandbox.base_provider import AGENT, AgentBox, BaseProvider
from orchestrator.service.sandbox.disk import DiskWatch
from orchestrator.service.sandbox.folders import BoxFolder
from orchestrator.service.sandbox.limits import Cgroups, box_rlimits
from orchestrator.service.sandbox.provider import BoxSpec, BoxStartFailed, Capability, Limit
from orchestrator.service.sandbox.safe_fs import remove

LINUX = sys.platform == "linux"
INTERPRETER = Path(sys.executable).resolve()


class ProcessBox(AgentBox):
    """A box without isolation."""

    def __init__(
        self, spec: BoxSpec, state: Path, cgroups: Cgroups, watch: DiskWatch, forget: Callable[[], object]
    ) -> None:
        super().__init__(spec, BoxFolder(base=state / "boxes" / spec.id), watch, forget)
        self._agent = state / "agent"
        self._cgroups = cgroups
        self._tops: frozenset[str] = frozenset()

    def path(self, path: str) -> str:
        """Paths in the box's own folders lie below its folder; all others, and those below it already, stay."""
        if PurePosixPath(path).is_relative_to(self.folder.files):
            return path
        parts = PurePosixPath(path).parts
        if len(parts) > 1 and parts[0] == "/" and parts[1] in self._tops:
            return os.fspath(self.folder.files.joinpath(*parts[1:]))
        return path

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "USER", "LOGNAME") if name in os.environ}
        return {
            **kept,
            "PATH": f"{kept.get('PATH', '/usr/local/bin:/usr/bin:/bin')}:{INTERPRETER.parent}",
            "HOME": self.path("/home/user"),
            "TMPDIR": self.path("/tmp"),  # noqa: S108
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            # For scripts that look for the devbox's own folders when those are not at /.
            "SWEEP_ROOT": os.fspath(self.folder.files),
        }

    def prepare(self) -> None:
        super().prepare()
        for bind in self.spec.binds:
            place = self.folder.files / bind.target.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(bind.source)
        self._tops = frozenset(place.name for place in self.folder.files.iterdir())
        self.cgroup = self._cgroups.create(self.id, self.spec.resources)

    async def launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        limits = box_rlimits(self.spec.resources, processes=False)

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [self._agent, "-I", "-S", AGENT, str(control), limits],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=self.folder.files,
                env={},
                umask=0o022,
                pass_fds=(control,),
                start_new_session=True,
            )

        return await anyio.to_thread.run_sync(start)

    async def on_ready(self) -> None:
        """Nothing to do: the supervisor's socket is all that is held."""

    def kill(self) -> None:
        if self._connection is not None:
            self._connection.hang_up()

    async def release(self) -> None:
        """Nothing to do: nothing was lent."""


class ProcessProvider(BaseProvider[Cgroups]):
    """Boxes without walls."""

    name = Isolation.NONE
    capabilities = frozenset({Capability.NETWORK_ON}) | (
        {Capability.TREE_KILL, Capability.DIES_WITH_SERVICE} if LINUX else frozenset()
    )

    async def open_shared(self) -> Cgroups:
        """Raises SandboxUnavailable."""
        if self.disk_limit is DiskLimit.HARD:
            raise SandboxUnavailable(
                f"--disk-limit {DiskLimit.HARD} is for sandboxes: leave out it or --isolation none"
            )

        def furnish() -> None:
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove(self.state / "boxes")
            (self.state / "boxes").mkdir()
            (self.state / "agent").unlink(missing_ok=True)
            (self.state / "agent").symlink_to(INTERPRETER)

        await anyio.to_thread.run_sync(furnish)
        return await anyio.to_thread.run_sync(Cgroups.find)

    async def close_shared(self, shared: Cgroups) -> None:
        await anyio.to_thread.run_sync(shared.close)

    def limits_of(self, shared: Cgroups) -> frozenset[Limit]:
        return shared.limits

    def make(self, spec: BoxSpec, shared: Cgroups, forget: Callable[[], object], beside: AgentBox | None) -> ProcessBox:
        if spec.image is not None:
            raise BoxStartFailed(f"devbox {spec.id}: without walls no box can be of an image")
        if beside is not None:
            raise BoxStartFailed(f"devbox {spec.id}: without walls no box can be started over another one's files")
        return ProcessBox(spec, self.state, shared, self.watch, forget)
