"""The provider of sandboxed devboxes: on the machine's own system, or on an image."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import anyio

from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.base_provider import AgentBox, BaseProvider
from orchestrator.service.sandbox.bwrap.bwrap_box import BwrapBox, HostBox
from orchestrator.service.sandbox.bwrap.host import BwrapHost
from orchestrator.service.sandbox.bwrap.image_box import ImageBox
from orchestrator.service.sandbox.bwrap.public_network import PROGRAM
from orchestrator.service.sandbox.provider import BoxNetwork, BoxSpec, BoxStartFailed, Capability, Limit

#: Our own package. It contains the bundled benchmarks and their solutions.
PACKAGE = Path(__file__).parents[3]

ALWAYS: Final = frozenset(Capability) - {Capability.PUBLIC}


class BwrapProvider(BaseProvider[BwrapHost]):
    """Boxes in bubblewrap sandboxes on this machine; `state` may be a folder that no other user can enter."""

    name = Isolation.LOCAL
    capabilities = ALWAYS

    def __init__(self, state: Path, *, hidden: Iterable[Path] = ()) -> None:
        """`hidden` are further folders that no box may see, besides `state` and the folder of this program."""
        super().__init__(state)
        self._hidden = tuple(folder.resolve() for folder in (PACKAGE, state, *hidden))

    async def open_shared(self) -> BwrapHost:
        """Raises SandboxUnavailable."""
        host = await BwrapHost.prepare(self.state, hidden=self._hidden, disk_limit=self.disk_limit)
        try:
            self.no_public = await self._try_public(host)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await host.close()
            raise
        self.capabilities = ALWAYS if self.no_public else frozenset(Capability)
        return host

    async def _try_public(self, host: BwrapHost) -> str:
        """Connect a box to the internet; return why that fails, "" if it does not."""
        if host.public is None:
            return f"{PROGRAM} is not installed here"
        box = self.make(BoxSpec(id="trial", network=BoxNetwork.PUBLIC), host, lambda: None, None)
        try:
            await box.boot()
        except BoxStartFailed as error:
            return error.message
        await box.stop()
        return ""

    async def close_shared(self, shared: BwrapHost) -> None:
        await shared.close()

    def limits_of(self, shared: BwrapHost) -> frozenset[Limit]:
        return shared.cgroups.limits | {Limit.PROCESSES}

    def make(self, spec: BoxSpec, shared: BwrapHost, forget: Callable[[], object], beside: AgentBox | None) -> BwrapBox:
        if spec.image is not None:
            return ImageBox(spec, spec.image, shared, self.watch, forget, beside)
        return HostBox(spec, shared, self.watch, forget, beside)
