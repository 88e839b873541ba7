"""The one road for facts: everything that happens is appended here."""

from typing import Protocol

from orchestrator.core.events import Event


class Sink(Protocol):
    """The journal, or a list in a test."""

    async def append(self, *batch: Event) -> None:
        """Apply events to the ledger, and return when they and all before them are durable.

        Raises what the ledger says of one that cannot follow, which is not written, and JournalError if the disk
        refuses for too long. Whoever is canceled while it waits has them written all the same.
        """

    def append_nowait(self, *batch: Event) -> None:
        """As `append`, without waiting: in the ledger now, durable no later than the next that somebody waits for."""

    async def wait_writable(self) -> None:
        """Wait while the disk refuses: nothing new begins meanwhile. Raises JournalError when it refuses for good."""
