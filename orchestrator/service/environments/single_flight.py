"""Of many who want the same thing built at once, one builds it and the others wait.

If that one is cancelled the next takes over; if the build fails, all who were waiting are told so instead of failing
one after the other. What was built is kept by the builder, who looks there first.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import anyio

from orchestrator.service.sandbox.provider import BoxStartFailed

T = TypeVar("T")


@dataclass(slots=True)
class _Flight:
    """Those who want one thing at the same time."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    users: int = 0
    failures: int = 0
    failure: str = ""


class Flights:
    """Builds under way, by name."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight] = {}

    async def take(self, name: str, build: Callable[[], Awaitable[T]]) -> T:
        """What `build` returns; it is called by one at a time. Raises BoxStartFailed, for a shared failure too."""
        flight = self._flights.setdefault(name, _Flight())
        flight.users += 1
        seen = flight.failures
        try:
            async with flight.lock:
                if flight.failures > seen:
                    raise BoxStartFailed(flight.failure)
                try:
                    return await build()
                except BoxStartFailed as error:
                    flight.failures += 1
                    flight.failure = error.message
                    raise
        finally:
            flight.users -= 1
            if not flight.users:
                del self._flights[name]
