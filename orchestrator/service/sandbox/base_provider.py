"""The books of a provider on this machine: prepared once, booting a few at a time, and nothing left at the end.

Its secret: that boots queue. Two hundred interpreters starting at once on two cores would each take seconds; a few at
a time are each ready in a blink, and the last is ready no later.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import anyio

from orchestrator.service.sandbox.agentbox import AgentBox
from orchestrator.service.sandbox.disk import DiskWatch
from orchestrator.service.sandbox.provider import Box, BoxSpec, BoxStartFailed, Capability, Limit

M = TypeVar("M")
#: An id names a folder and a control group.
GOOD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class BaseProvider(ABC, Generic[M]):
    """A provider whose boxes live below `state`, a folder that one service owns; `M` is what they share."""

    name: ClassVar[str]
    capabilities: ClassVar[frozenset[Capability]]

    def __init__(self, state: Path) -> None:
        self.state = state.absolute()
        self.watch = DiskWatch(self.state)
        self._boxes: dict[str, AgentBox] = {}
        self._machine: M | None = None
        self._preparing = anyio.Lock()
        self._boots = anyio.CapacityLimiter(2 + 2 * (os.cpu_count() or 1))

    @abstractmethod
    async def open_machine(self) -> M:
        """Make what the boxes share; what an earlier service left in `state` is removed."""

    @abstractmethod
    async def close_machine(self, machine: M) -> None:
        """Give back what the boxes shared; none is left."""

    @property
    def enforced(self) -> frozenset[Limit]:
        """The limits that this machine holds boxes to; none before `prepare`."""
        return frozenset() if self._machine is None else self.limits_of(self._machine) | {Limit.DISK}

    @abstractmethod
    def limits_of(self, machine: M) -> frozenset[Limit]:
        """The limits beside the disk's that the machine holds boxes to."""

    @abstractmethod
    def make(self, spec: BoxSpec, machine: M, forget: Callable[[], None], beside: AgentBox | None) -> AgentBox:
        """A box that has not been booted; it calls `forget` when it is gone. Raises BoxStartFailed."""

    async def start(self, spec: BoxSpec, *, beside: Box | None = None) -> AgentBox:
        """Boot a box. Raises BoxStartFailed, and SandboxUnavailable where this machine does not permit it at all."""
        if not GOOD_ID.fullmatch(spec.id):
            raise BoxStartFailed(f"devbox {spec.id!r}: an id has letters, digits, '.', '_' and '-' only")
        machine = await self.prepare()
        async with self._boots:
            if spec.id in self._boxes:
                raise BoxStartFailed(f"devbox {spec.id}: there is one of this id already")
            host = None if beside is None else self._boxes.get(beside.id)
            if host is not beside:
                raise BoxStartFailed(f"devbox {spec.id}: the box whose files it was to use is gone")
            box = self._boxes[spec.id] = self.make(spec, machine, lambda: self._forget(spec.id), host)
            await box.boot()
        return box

    async def prepare(self) -> M:
        """Make the machine ready, once."""
        async with self._preparing:
            if self._machine is None:
                self._machine = await self.open_machine()
            return self._machine

    async def close(self) -> None:
        """Stop every box."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as stops:
                for box in list(self._boxes.values()):
                    stops.start_soon(box.stop)
            await self.watch.close()
            machine, self._machine = self._machine, None
            if machine is not None:
                await self.close_machine(machine)

    def _forget(self, name: str) -> None:
        self._boxes.pop(name, None)
