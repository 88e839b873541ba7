"""The provider of sandboxed devboxes, and the question whether this machine permits them."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import anyio
import anyio.to_thread

from orchestrator.service.sandbox.agentbox import AgentBox
from orchestrator.service.sandbox.base_provider import BaseProvider
from orchestrator.service.sandbox.bwrap.box import BwrapBox
from orchestrator.service.sandbox.bwrap.host import Machine
from orchestrator.service.sandbox.provider import BoxSpec, Capability, Limit
from orchestrator.service.sandbox.safe_fs import remove

#: With the bundled benchmarks in it, and their solutions.
PROGRAM = Path(__file__).parents[3]


class BwrapProvider(BaseProvider[Machine]):
    """Boxes in bubblewrap sandboxes on this machine; `state` may be a folder that nobody else can enter."""

    name = "local"
    capabilities = frozenset(Capability)

    def __init__(self, state: Path, *, hidden: Iterable[Path] = ()) -> None:
        """`hidden` are further folders that no box may see, besides `state` and the folder of this program."""
        super().__init__(state)
        self._hidden = tuple(folder.resolve() for folder in (PROGRAM, state, *hidden))

    async def open_machine(self) -> Machine:
        """Raises SandboxUnavailable."""
        return await Machine.prepare(self.state, hidden=self._hidden)

    async def close_machine(self, machine: Machine) -> None:
        await machine.close()

    def limits_of(self, machine: Machine) -> frozenset[Limit]:
        return machine.groups.limits | {Limit.PROCESSES}

    def make(self, spec: BoxSpec, machine: Machine, forget: Callable[[], None], beside: AgentBox | None) -> BwrapBox:
        return BwrapBox(spec, machine, self.watch, forget, beside)


async def check_sandbox() -> None:
    """Try whether this machine permits sandboxes (0.1 s). Raises SandboxUnavailable, saying why and what to do."""
    place = Path(await anyio.to_thread.run_sync(tempfile.mkdtemp))
    try:
        machine = await Machine.prepare(place, furnished=False)
        await machine.close()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(remove, place)
