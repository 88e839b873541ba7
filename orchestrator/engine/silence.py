"""Time in which the endpoint does not answer is no stage's.

A service that is suspended, restarted or cut off would otherwise use up the time limits of all that is in flight, and
work would be thrown away that goes on in its devboxes meanwhile. So the deadlines of stages move while it is silent; if
that takes too long, the sweep stops, and everything is as it was for whoever resumes it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import anyio

from orchestrator.core.errors import WorldError
from orchestrator.endpoint.protocols import Endpoint

#: Seconds between two looks.
LOOK_EVERY_S: Final = 1.0
#: Seconds without an answer after which one is asked for, and after which the endpoint is called silent.
ASK_S: Final = 5.0
SILENT_S: Final = 8.0


class Silence:
    """`limited(seconds)` is a stage's time limit; `watch` runs meanwhile."""

    def __init__(self, endpoint: Endpoint, *, unreachable: float = 1800.0) -> None:
        self._endpoint = endpoint
        self._unreachable = unreachable
        self._scopes: set[anyio.CancelScope] = set()
        self._is_asking = False
        #: By how much the deadlines were moved for the silence that there is now.
        self._moved = 0.0

    @property
    def seconds(self) -> float:
        """Seconds without an answer; 0 while the endpoint answers, or nobody waits for it."""
        silent = anyio.current_time() - self._endpoint.answered_at
        return silent if self._scopes and silent >= SILENT_S else 0.0

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Raises TimeoutError after so many seconds in which the endpoint was there."""
        with anyio.fail_after(seconds) as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)

    async def watch(self, give_up: Callable[[str], None]) -> None:
        """Move the deadlines while the endpoint is silent; `give_up` is told why when it was so for too long.

        Runs until it is canceled.
        """
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.sleep(LOOK_EVERY_S)
                if self._scopes and not self._is_asking and anyio.current_time() - self._endpoint.answered_at >= ASK_S:
                    self._is_asking = True
                    tasks.start_soon(self._ask)
                moved, self._moved = self._moved, self.seconds
                if self._moved > moved:
                    for scope in self._scopes:
                        scope.deadline += self._moved - moved
                if self.seconds > self._unreachable:
                    give_up(f"the endpoint has not answered for {self.seconds / 60:.0f} minutes. Check that it is up")
                    return

    async def _ask(self) -> None:
        with suppress(WorldError, TimeoutError), anyio.fail_after(SILENT_S):
            await self._endpoint.ping()
        self._is_asking = False
