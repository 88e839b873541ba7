"""What a devbox reached and what it was refused, counted by host.

Its secret: bounds. A program may ask for any number of names; so many are told apart, the rest are counted as one.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal

#: Unreachable is what was allowed and did not answer: no connection, but worth a line.
Verdict = Literal["reached", "refused", "unreachable"]
#: Hears of each host once for each verdict.
Told = Callable[[Verdict, str], Awaitable[None]]
MAX_HOSTS: Final = 256
OTHERS: Final = "(others)"


class Tally:
    def __init__(self, told: Told) -> None:
        self._told = told
        self._counts: Mapping[Verdict, dict[str, int]] = {"reached": {}, "refused": {}, "unreachable": {}}

    async def count(self, verdict: Verdict, host: str) -> None:
        counts = self._counts[verdict]
        name = host if host in counts or len(counts) < MAX_HOSTS else OTHERS
        is_new = name not in counts
        counts[name] = counts.get(name, 0) + 1
        if is_new:
            await self._told(verdict, name)

    def document(self) -> dict[str, dict[str, int]]:
        """{"reached": {host: count}, "refused": {host: count}}."""
        return {"reached": dict(self._counts["reached"]), "refused": dict(self._counts["refused"])}
