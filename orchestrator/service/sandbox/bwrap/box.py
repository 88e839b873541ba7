"""One sandboxed devbox: launched by bubblewrap as a stranger, ended through its process tree's root.

Its secret: process 1 of the sandbox. Killing it is the kernel's business of killing everything in the box, daemons
included, and it is gone only when all of them are; so it is held by a pidfd from the boot on.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterable
from functools import partial
from typing import IO, TYPE_CHECKING

import anyio.to_thread

from orchestrator.service.sandbox.agentbox import AgentBox
from orchestrator.service.sandbox.bwrap.bwrap_args import Mount, agent_command, box_arguments, veils
from orchestrator.service.sandbox.bwrap.host import Machine, in_memory
from orchestrator.service.sandbox.bwrap.leftovers import left_in
from orchestrator.service.sandbox.bwrap.seccomp import program
from orchestrator.service.sandbox.bwrap.shared_rootfs import USER
from orchestrator.service.sandbox.child_process import Pidfd
from orchestrator.service.sandbox.disk import DiskWatch
from orchestrator.service.sandbox.folders import BoxFolder
from orchestrator.service.sandbox.limits import box_rlimits
from orchestrator.service.sandbox.provider import HOME, BoxSpec, Limit, RemainingProcesses

if TYPE_CHECKING:
    from pathlib import Path


class BwrapBox(AgentBox):
    """A box of the `local` provider."""

    def __init__(
        self,
        spec: BoxSpec,
        machine: Machine,
        watch: DiskWatch,
        forget: Callable[[], None],
        beside: AgentBox | None = None,
    ) -> None:
        """Raises BoxStartFailed."""
        user = machine.users.lend() if beside is None else beside.folder.owner
        super().__init__(spec, BoxFolder(base=machine.state / "boxes" / spec.id, owner=user), watch, forget, beside)
        self._machine = machine
        self._user = user
        self._info = -1
        self._root: Pidfd | None = None
        self._admitted: list[Path] = []

    @property
    def enforced(self) -> frozenset[Limit]:
        return super().enforced | {Limit.PROCESSES}

    def environment(self) -> dict[str, str]:
        path = self._machine.interpreter.path
        return {"PATH": path, "HOME": HOME, "USER": USER, "LOGNAME": USER, "LANG": "C.UTF-8", "TERM": "dumb"}

    async def is_whole(self) -> bool:
        return await anyio.to_thread.run_sync(self.folder.is_whole)

    def prepare(self) -> None:
        super().prepare()
        self.group = self._machine.groups.create(self.id, self.spec.resources)

    async def launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        self._info = os.memfd_create("devbox-info")
        return await self._machine.spawner.run(partial(self._launch, control, errors))

    def _launch(self, control: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        names = self._machine.names
        arguments = box_arguments(
            network=self.spec.network,
            shared=names.shared,
            mounts=self._mounts(),
            info=self._info,
        )
        limits = box_rlimits(self.spec.resources, processes=True)
        command = agent_command(control, limits)
        # On bubblewrap's command line everybody in the box could read them.
        hidden = b"".join(os.fsencode(word) + b"\0" for word in arguments)
        with in_memory(hidden) as given, in_memory(program()) as calls:
            words = [names.program, "--args", str(given.fileno()), "--seccomp", str(calls.fileno()), *command]
            fds = (control, self._info, given.fileno(), calls.fileno())
            return self._machine.guard.start(words, user=self._user, fds=fds, errors=errors)

    def _mounts(self) -> Iterable[Mount]:
        """The box's own folders, then what lies in or beside them; in the spawner's thread."""
        names, prefix = self._machine.names, self._machine.interpreter.prefix
        inside = [bind.target for bind in self.spec.binds]
        if names.prefix is not None:
            inside.append(os.fspath(prefix or ""))
        for own in (*self.folder.tops(), *self.folder.anchors(inside)):
            yield Mount(source=f"{names.boxes}/{self.id}/files/{own}", target=f"/{own}", writable=True)
        for bind in self.spec.binds:
            source = self._machine.spawner.admit(bind.source)
            self._admitted.append(bind.source)
            yield Mount(source=source, target=bind.target, writable=bind.is_writable)
        if names.prefix is not None:  # behind a bind that has its folder in it
            yield Mount(source=names.prefix, target=os.fspath(prefix or ""))
        seen = {bind.target: bind.source for bind in self.spec.binds}
        for place in veils(self._machine.hidden, seen, prefix):
            yield Mount(source=f"{names.shared}/nothing", target=place)

    def booted(self) -> None:
        info = json.loads(os.pread(self._info, 4096, 0))
        self._root = Pidfd(info["child-pid"])
        self._close_info()
        self._forget_group()

    async def remaining(self) -> RemainingProcesses:
        if self._root is None or self._link is None or self._why is not None:
            return RemainingProcesses()
        return await anyio.to_thread.run_sync(left_in, self._root.pid, self._link.running)

    def strike(self) -> None:
        if self._root is not None:
            self._root.kill()
        elif self._child is not None:
            self._child.kill_group()

    async def everything_gone(self) -> None:
        if self._root is not None:
            await self._root.gone.wait()
        await super().everything_gone()

    async def release(self) -> None:
        self._close_info()
        self._forget_group()
        if self._root is not None:
            self._root.close()
        await self._machine.spawner.run(self._dismiss)
        if self._host is None:
            self._machine.users.give_back(self._user)

    def _close_info(self) -> None:
        if self._info >= 0:
            os.close(self._info)
            self._info = -1

    def _forget_group(self) -> None:
        if self._child is not None:
            self._machine.guard.forget(self._child.pid)

    def _dismiss(self) -> None:
        while self._admitted:
            self._machine.spawner.dismiss(self._admitted.pop())
