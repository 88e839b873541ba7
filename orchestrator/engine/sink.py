"""The one road for facts: everything that happens is appended here."""

from typing import Protocol

from orchestrator.events import Event


class Sink(Protocol):
    """The journal, or a list in a test."""

    async def append(self, *batch: Event) -> None:
        """Returns when the events are durable and in the ledger. Raises JournalError when they cannot be."""

    def append_nowait(self, *batch: Event) -> None:
        """As `append`, without waiting: durable no later than the next that somebody waits for."""
