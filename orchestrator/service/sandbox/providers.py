"""The table of providers: the one place that knows them all, by the word that `--isolation` takes.

A new provider is its module, its word in `core.protocol.Isolation` (which the runner reads too, and may not read this
file) and its line here. The settings, the command line and its messages follow from the word, and the conformance suite
from the table.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from orchestrator.core.protocol import DiskLimit, Isolation
from orchestrator.service.sandbox.base_provider import BaseProvider
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.process_provider import ProcessProvider
from orchestrator.service.sandbox.provider import Capability
from orchestrator.service.state_folder import needing

MakeProvider = Callable[[Path, Sequence[Path]], BaseProvider[Any]]
"""Makes a provider of its state folder and the folders that no box may see, if it can hide any."""

#: Its `capabilities` tell what each isolates; `check` tells whether this machine permits it.
PROVIDERS: Final[Mapping[Isolation, MakeProvider]] = {
    Isolation.LOCAL: lambda state, hidden: BwrapProvider(state, hidden=hidden),
    Isolation.NONE: lambda state, _hidden: ProcessProvider(state),
}


@asynccontextmanager
async def open_provider(
    isolation: Isolation,
    state: Path,
    hidden: Sequence[Path],
    *,
    lends_network: bool = False,
    disk_limit: DiskLimit = DiskLimit.WATCHED,
) -> AsyncIterator[BaseProvider[Any]]:
    """Open a provider that can boot devboxes, and stop every box on leaving.

    Unless it `lends_network`, one with walls does not declare NETWORK_ON.

    Raises SandboxUnavailable now, not once for each devbox of the night, and UsageError for a `state` that cannot be
    written.
    """
    provider = PROVIDERS[isolation](state, hidden)
    provider.disk_limit = disk_limit
    try:
        with needing(state):
            await provider.prepare()
        if Capability.ISOLATED in provider.capabilities and not lends_network:
            provider.capabilities -= {Capability.NETWORK_ON}
        yield provider
    finally:
        await provider.close()


async def check(isolation: Isolation) -> None:
    """Try whether a provider can be had here (0.3 s). Raises SandboxUnavailable, naming the reason and the fix."""
    with TemporaryDirectory() as place:
        async with open_provider(isolation, Path(place, "state"), ()):
            return
