"""A sandboxed devbox: bubblewrap launches it as a stranger, and it is ended through its process tree's root.

Its secret: process 1 of the sandbox. Killing it makes the kernel kill everything in the box, daemons included, and it
is gone only when all of them are; so a pidfd holds it from the boot on.
"""

import json
import os
import subprocess
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Network
from typing import IO, TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from orchestrator.service.sandbox.base_provider import AgentBox
from orchestrator.service.sandbox.bwrap.bwrap_args import Mount, agent_command, box_arguments, seccomp_filter, veils
from orchestrator.service.sandbox.bwrap.disks import RESERVE, Disks
from orchestrator.service.sandbox.bwrap.host import BwrapHost, in_memory
from orchestrator.service.sandbox.bwrap.shared_files import USER
from orchestrator.service.sandbox.closure import IN_BOX
from orchestrator.service.sandbox.disk import DiskWatch
from orchestrator.service.sandbox.egress.addresses import closed_networks, own_networks
from orchestrator.service.sandbox.folders import BoxFolder
from orchestrator.service.sandbox.limits import box_rlimits
from orchestrator.service.sandbox.processes import Pidfd, remaining_processes
from orchestrator.service.sandbox.provider import (
    HOME,
    Bind,
    BoxNetwork,
    BoxSpec,
    BoxStartFailed,
    Limit,
    RemainingProcesses,
)
from orchestrator.service.sandbox.safe_fs import remove

if TYPE_CHECKING:
    from orchestrator.service.sandbox.bwrap.public_network import Link


#: What boxes with a network of their own do not reach.
_UNREACHABLE: Final[Mapping[BoxNetwork, Callable[[], list[IPv4Network]]]] = {
    BoxNetwork.PUBLIC: closed_networks,
    BoxNetwork.NEIGHBOURS: own_networks,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BwrapStart:
    """How a box is started: arguments for bubblewrap, the command, open files to pass on, and the host's user.

    `calls` is the filter of its system calls.
    """

    arguments: Sequence[str]
    command: Sequence[str]
    fds: tuple[int, ...] = ()
    user: int | None
    calls: bytes = field(default_factory=seccomp_filter)


class BwrapBox(AgentBox):
    """A box of the `local` provider."""

    def __init__(
        self,
        spec: BoxSpec,
        folder: BoxFolder,
        host: BwrapHost,
        watch: DiskWatch,
        forget: Callable[[], object],
        beside: AgentBox | None,
    ) -> None:
        super().__init__(spec, folder, watch, forget, beside)
        self._host = host
        self._info = -1
        self._root: Pidfd | None = None
        self._link: Link | None = None
        self._admitted: list[Bind] = []
        self._disk: str | None = None

    @abstractmethod
    def how_to_start(self, control: int, limits: str) -> BwrapStart:
        """Return how the box is started with the socket `control`; in the spawner's thread. Raises OSError."""

    @abstractmethod
    def give_back(self) -> None:
        """Give back the ids that it was lent and no other box uses."""

    @property
    def enforced(self) -> frozenset[Limit]:
        return super().enforced | {Limit.PROCESSES}

    @property
    def has_own_disk(self) -> bool:
        return self._disk is not None

    async def is_whole(self) -> bool:
        return await anyio.to_thread.run_sync(self.folder.is_whole)

    def prepare(self) -> None:
        if self._host.disks is not None and self._beside is None and self.spec.layer is None:
            self._mount_disk(self._host.disks)
        super().prepare()
        self.cgroup = self._host.cgroups.create(self.id, self.spec.resources)

    def _mount_disk(self, disks: Disks) -> None:
        """Raises OSError."""
        place, mount = f"{self._host.paths.boxes}/{self.id}", disks.open(self.id, self.spec.resources.disk)
        try:
            self._disk = self._host.spawner.run_blocking(partial(self._host.spawner.attach, mount, place))
        finally:
            os.close(mount)
        self.folder = replace(self.folder, base=self._host.spawner.outside(place))

    async def unmount(self) -> None:
        disk, self._disk = self._disk, None
        if disk is not None:
            await self._host.spawner.run(partial(self._host.spawner.detach, disk))

    async def retire(self) -> None:
        await super().retire()
        if self.has_own_disk:
            await anyio.to_thread.run_sync(remove, self.folder.base / RESERVE)

    async def launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        if self.spec.network in _UNREACHABLE and self._host.public is None:
            raise BoxStartFailed(f"devbox {self.id}: this machine gives no box a network on the internet")
        self._info = os.memfd_create("devbox-info")
        return await self._host.spawner.run(partial(self._launch, control, errors))

    def _launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        how = self.how_to_start(control, box_rlimits(self.spec.resources, processes=True))
        # On bubblewrap's command line every program in the box could read them.
        hidden = b"".join(os.fsencode(word) + b"\0" for word in (*how.arguments, "--info-fd", str(self._info)))
        with in_memory(hidden) as given, in_memory(how.calls) as calls:
            program = self._host.paths.program
            words = [program, "--args", str(given.fileno()), "--seccomp", str(calls.fileno()), *how.command]
            fds = (control, self._info, given.fileno(), calls.fileno(), *how.fds)
            return self._host.guard.start(words, user=how.user, fds=fds, errors=errors)

    def bound(self) -> Iterator[Mount]:
        """The mounts of its binds; in the spawner's thread. Raises OSError."""
        for bind in self.spec.binds:
            source = self._host.spawner.admit(bind.source)
            self._admitted.append(bind)
            yield Mount(source=source, target=bind.target, writable=bind.is_writable)

    async def on_ready(self) -> None:
        info = json.loads(os.pread(self._info, 4096, 0))
        self._root = Pidfd(info["child-pid"])
        self._close_info()
        unreachable = _UNREACHABLE.get(self.spec.network)
        if unreachable is not None:
            assert self._host.public is not None
            lost = partial(self.end, "its connection to the internet was lost")
            self._link = await self._host.public.connect(self._root.pid, self.folder.owner, lost, unreachable())

    def pids(self) -> Iterable[int]:
        link = () if self._link is None or self._link.gone.is_set() else (self._link.pid,)
        return (*super().pids(), *link)

    async def remaining(self) -> RemainingProcesses:
        if self._root is None or self._connection is None or self._why is not None:
            return RemainingProcesses()
        return await anyio.to_thread.run_sync(remaining_processes, self._root.pid, self._connection.running)

    def kill(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._root is not None:
            self._root.kill()
        elif self._child is not None:
            self._child.kill_group()

    async def wait_gone(self) -> None:
        if self._root is not None:
            await self._root.gone.wait()
        if self._link is not None:
            await self._link.gone.wait()
        await super().wait_gone()

    async def release(self) -> None:
        self._close_info()
        if self._root is not None:
            self._root.close()
        for bind in self._admitted:
            await self._host.spawner.run(partial(self._host.spawner.dismiss, bind.source))
        if self._beside is None:
            self.give_back()

    def _close_info(self) -> None:
        """Close bubblewrap's report and the guard's watch: it has booted, or it has ended."""
        if self._info >= 0:
            os.close(self._info)
            self._info = -1
        if self._child is not None:
            self._host.guard.forget(self._child.pid)


class HostBox(BwrapBox):
    """A box on the machine's own system."""

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
        super().__init__(spec, BoxFolder(base=host.state / "boxes" / spec.id, owner=user), host, watch, forget, beside)

    def environment(self) -> dict[str, str]:
        path = self._host.python.path
        return {"PATH": path, "HOME": HOME, "USER": USER, "LOGNAME": USER, "LANG": "C.UTF-8", "TERM": "dumb"}

    async def launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        if self.spec.closure:
            await self._host.images.prepare()
        return await super().launch(control, errors)

    def how_to_start(self, control: int, limits: str) -> BwrapStart:
        arguments = box_arguments(network=self.spec.network, shared=self._host.paths.shared, mounts=self._mounts())
        return BwrapStart(arguments=arguments, command=agent_command(control, limits), user=self.folder.owner)

    def give_back(self) -> None:
        self._host.users.give_back(self.folder.owner)

    def _mounts(self) -> Iterable[Mount]:
        """The box's own folders, then mounts in or beside them; in the spawner's thread."""
        paths, prefix = self._host.paths, self._host.python.prefix
        inside = [bind.target for bind in self.spec.binds]
        if paths.prefix is not None:
            inside.append(os.fspath(prefix or ""))
        for own in (*self.folder.tops(), *self.folder.anchors(inside)):
            yield Mount(source=f"{paths.boxes}/{self.id}/files/{own}", target=f"/{own}", writable=True)
        if self.spec.closure:
            yield Mount(source=self._host.images.closure, target=IN_BOX)
        yield from self.bound()
        if paths.prefix is not None:  # after a bind that may contain its folder
            yield Mount(source=paths.prefix, target=os.fspath(prefix or ""))
        seen = {bind.target: bind.source for bind in self.spec.binds}
        for place in veils(self._host.hidden, seen, prefix):
            yield Mount(source=f"{paths.shared}/nothing", target=place)
