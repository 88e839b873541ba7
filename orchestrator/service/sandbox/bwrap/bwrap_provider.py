"""Sandboxed devboxes: bubblewrap launches each as a stranger, and it is ended through its process tree's root.

Its secret: process 1 of the sandbox. Killing it makes the kernel kill everything in the box, daemons included, and it
is gone only when all of them are; so a pidfd holds it from the boot on.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import IO

import anyio
import anyio.to_thread

from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.base_provider import AgentBox, BaseProvider
from orchestrator.service.sandbox.bwrap.bwrap_args import Mount, agent_command, box_arguments, seccomp_filter, veils
from orchestrator.service.sandbox.bwrap.host import BwrapHost, in_memory
from orchestrator.service.sandbox.bwrap.shared_files import USER
from orchestrator.service.sandbox.disk import DiskWatch
from orchestrator.service.sandbox.folders import BoxFolder
from orchestrator.service.sandbox.limits import box_rlimits
from orchestrator.service.sandbox.processes import Pidfd, remaining_processes
from orchestrator.service.sandbox.provider import HOME, BoxSpec, Capability, Limit, RemainingProcesses

#: Our own package. It contains the bundled benchmarks and their solutions.
PACKAGE = Path(__file__).parents[3]


class BwrapBox(AgentBox):
    """A box of the `local` provider."""

    def __init__(
        self,
        spec: BoxSpec,
        host: BwrapHost,
        watch: DiskWatch,
        forget: Callable[[], object],
        beside: AgentBox | None = None,
    ) -> None:
        """Raises BoxStartFailed."""
        user = host.users.lend() if beside is None else beside.folder.owner
        super().__init__(spec, BoxFolder(base=host.state / "boxes" / spec.id, owner=user), watch, forget, beside)
        self._host = host
        self._user = user
        self._info = -1
        self._root: Pidfd | None = None
        self._admitted: list[Path] = []

    @property
    def enforced(self) -> frozenset[Limit]:
        return super().enforced | {Limit.PROCESSES}

    def environment(self) -> dict[str, str]:
        path = self._host.python.path
        return {"PATH": path, "HOME": HOME, "USER": USER, "LOGNAME": USER, "LANG": "C.UTF-8", "TERM": "dumb"}

    async def is_whole(self) -> bool:
        return await anyio.to_thread.run_sync(self.folder.is_whole)

    def prepare(self) -> None:
        super().prepare()
        self.cgroup = self._host.cgroups.create(self.id, self.spec.resources)

    async def launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        self._info = os.memfd_create("devbox-info")
        return await self._host.spawner.run(partial(self._launch, control, errors))

    def _launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        paths = self._host.paths
        arguments = box_arguments(
            network=self.spec.network, shared=paths.shared, mounts=self._mounts(), info=self._info
        )
        command = agent_command(control, box_rlimits(self.spec.resources, processes=True))
        # On bubblewrap's command line every program in the box could read them.
        hidden = b"".join(os.fsencode(word) + b"\0" for word in arguments)
        with in_memory(hidden) as given, in_memory(seccomp_filter()) as calls:
            words = [paths.program, "--args", str(given.fileno()), "--seccomp", str(calls.fileno()), *command]
            fds = (control, self._info, given.fileno(), calls.fileno())
            return self._host.guard.start(words, user=self._user, fds=fds, errors=errors)

    def _mounts(self) -> Iterable[Mount]:
        """The box's own folders, then mounts in or beside them; in the spawner's thread."""
        paths, prefix = self._host.paths, self._host.python.prefix
        inside = [bind.target for bind in self.spec.binds]
        if paths.prefix is not None:
            inside.append(os.fspath(prefix or ""))
        for own in (*self.folder.tops(), *self.folder.anchors(inside)):
            yield Mount(source=f"{paths.boxes}/{self.id}/files/{own}", target=f"/{own}", writable=True)
        for bind in self.spec.binds:
            source = self._host.spawner.admit(bind.source)
            self._admitted.append(bind.source)
            yield Mount(source=source, target=bind.target, writable=bind.is_writable)
        if paths.prefix is not None:  # after a bind that may contain its folder
            yield Mount(source=paths.prefix, target=os.fspath(prefix or ""))
        seen = {bind.target: bind.source for bind in self.spec.binds}
        for place in veils(self._host.hidden, seen, prefix):
            yield Mount(source=f"{paths.shared}/nothing", target=place)

    def on_ready(self) -> None:
        info = json.loads(os.pread(self._info, 4096, 0))
        self._root = Pidfd(info["child-pid"])
        self._close_info()

    async def remaining(self) -> RemainingProcesses:
        if self._root is None or self._connection is None or self._why is not None:
            return RemainingProcesses()
        return await anyio.to_thread.run_sync(remaining_processes, self._root.pid, self._connection.running)

    def kill(self) -> None:
        if self._root is not None:
            self._root.kill()
        elif self._child is not None:
            self._child.kill_group()

    async def wait_gone(self) -> None:
        if self._root is not None:
            await self._root.gone.wait()
        await super().wait_gone()

    async def release(self) -> None:
        self._close_info()
        if self._root is not None:
            self._root.close()
        for source in self._admitted:
            await self._host.spawner.run(partial(self._host.spawner.dismiss, source))
        if self._beside is None:
            self._host.users.give_back(self._user)

    def _close_info(self) -> None:
        """Close bubblewrap's report and the guard's watch: it has booted, or it has ended."""
        if self._info >= 0:
            os.close(self._info)
            self._info = -1
        if self._child is not None:
            self._host.guard.forget(self._child.pid)


class BwrapProvider(BaseProvider[BwrapHost]):
    """Boxes in bubblewrap sandboxes on this machine; `state` may be a folder that no other user can enter."""

    name = Isolation.LOCAL
    capabilities = frozenset(Capability)

    def __init__(self, state: Path, *, hidden: Iterable[Path] = ()) -> None:
        """`hidden` are further folders that no box may see, besides `state` and the folder of this program."""
        super().__init__(state)
        self._hidden = tuple(folder.resolve() for folder in (PACKAGE, state, *hidden))

    async def open_shared(self) -> BwrapHost:
        """Raises SandboxUnavailable."""
        return await BwrapHost.prepare(self.state, hidden=self._hidden)

    async def close_shared(self, shared: BwrapHost) -> None:
        await shared.close()

    def limits_of(self, shared: BwrapHost) -> frozenset[Limit]:
        return shared.cgroups.limits | {Limit.PROCESSES}

    def make(self, spec: BoxSpec, shared: BwrapHost, forget: Callable[[], object], beside: AgentBox | None) -> BwrapBox:
        return BwrapBox(spec, shared, self.watch, forget, beside)
