"""The provider of sandboxed devboxes: on the machine's own system, or on an image."""

from collections.abc import Callable, Iterable
from pathlib import Path

from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.base_provider import AgentBox, BaseProvider
from orchestrator.service.sandbox.bwrap.bwrap_box import BwrapBox, HostBox
from orchestrator.service.sandbox.bwrap.host import BwrapHost
from orchestrator.service.sandbox.bwrap.image_box import ImageBox
from orchestrator.service.sandbox.provider import BoxSpec, Capability, Limit

#: Our own package. It contains the bundled benchmarks and their solutions.
PACKAGE = Path(__file__).parents[3]


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
        if spec.image is not None:
            return ImageBox(spec, spec.image, shared, self.watch, forget, beside)
        return HostBox(spec, shared, self.watch, forget, beside)
