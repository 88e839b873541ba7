"""The endpoint's runs and devboxes of this sweep, read in a few lists instead of one call for each trial.

A list may have missed what was there while its pages were read, and grows old: what it does not show is asked for by
itself before anybody believes it gone.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from typing import Final

import anyio
import structlog

from orchestrator.core.errors import WorldError
from orchestrator.core.events import Sink, StrayFound
from orchestrator.core.ledger import Attempt
from orchestrator.core.protocol import RUN_ALIVE, RunState
from orchestrator.core.records import Devbox, ScenarioRun, TrialKey
from orchestrator.endpoint.protocols import Resources

#: Seconds for which a list is believed.
FRESH_S: Final = 60.0
#: Seconds in which all lists must be read, and in which one thing must end.
_ANSWER_S: Final = 300.0
_END_S: Final = 30.0


class Remote:
    """`read()` the lists, then ask for runs and devboxes by their ids."""

    def __init__(self, sweep: str, endpoint: Resources) -> None:
        self._sweep = sweep
        self._endpoint = endpoint
        self._read_at = float("-inf")
        self._runs: dict[str, ScenarioRun] = {}
        self._devboxes: dict[str, Devbox] = {}
        #: The ids of what refused to end.
        self.refusing: list[str] = []

    async def read(self, benchmark_runs: Collection[str]) -> None:
        """Read the runs of these benchmark runs, and every devbox that lives. Raises WorldError."""
        with anyio.fail_after(_ANSWER_S):
            lists = [await self._endpoint.list_runs(benchmark_run=run) for run in benchmark_runs]
            devboxes = await self._endpoint.list_devboxes()
        self._runs = {run.id: run for runs in lists for run in runs}
        self._devboxes = {devbox.id: devbox for devbox in devboxes}
        self._read_at = anyio.current_time()

    async def run(self, run_id: str) -> ScenarioRun:
        """A scenario run. Raises WorldError, Missing among them."""
        return (self._is_fresh and self._runs.get(run_id)) or await self._endpoint.run(run_id)

    async def devbox(self, devbox_id: str) -> Devbox:
        """A devbox. Raises WorldError, Missing among them."""
        return (self._is_fresh and self._devboxes.get(devbox_id)) or await self._endpoint.devbox(devbox_id)

    @property
    def _is_fresh(self) -> bool:
        return anyio.current_time() - self._read_at <= FRESH_S

    async def reap(self, sink: Sink, attempts: Iterable[tuple[TrialKey, Attempt]]) -> None:
        """End what lives on the endpoint under our sweep's id, in the lists just read, and belongs to none of these.

        What refuses to end is left to its keep-alive, and said.
        """
        known, boxes, owed = set(), set(), set()
        for key, attempt in attempts:
            known.add(attempt.run)
            boxes.add(attempt.devbox)
            if attempt.run is None:
                owed.add((str(key), str(attempt.number)))
        for run in filter(self._is_ours, self._runs.values()):
            is_owed = (run.metadata.get("trial"), run.metadata.get("attempt")) in owed
            if run.state in RUN_ALIVE or is_owed:
                boxes.add(run.devbox_id)
            if run.state in RUN_ALIVE and run.id not in known and not is_owed:
                end = self._endpoint.complete if run.state == RunState.SCORED else self._endpoint.cancel
                await self._end(sink, partial(end, run.id), run.id, run.devbox_id)
        for devbox in filter(self._is_ours, self._devboxes.values()):
            if devbox.id not in boxes:
                await self._end(sink, partial(self._endpoint.shutdown, devbox.id), None, devbox.id)

    def _is_ours(self, thing: ScenarioRun | Devbox) -> bool:
        return thing.metadata.get("sweep") == self._sweep

    async def _end(self, sink: Sink, end: Callable[[], Awaitable[None]], run: str | None, devbox: str) -> None:
        log = structlog.get_logger().bind(run=run, devbox=devbox)
        await sink.append(StrayFound(run=run, devbox=devbox))
        try:
            with anyio.fail_after(_END_S):
                await end()
        except (WorldError, TimeoutError) as error:
            self.refusing.append(run or devbox)
            log.warning("stray.not_ended", error=str(error))
        else:
            log.warning("stray.ended")
