"""The state of this sweep on its endpoint: its runs and devboxes, strays among them, and the process that works on it.

Runs and devboxes are read in a few lists instead of one call for each trial. A list may have missed what was there
while its pages were read, and grows old: what it does not show is asked for by itself before it is believed gone.

One process works on a sweep. The folder's lock keeps others out of the folder, not out of its copy: two copies on one
endpoint have the same sweep's id, and would end each other's devboxes as strays. So the process that works on a sweep
says so on the endpoint every few seconds; one that comes later and finds it there begins nothing. An endpoint that is
not ours cannot tell.
"""

import os
import re
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from typing import Final

import anyio
import structlog

from orchestrator.common.locks import birth
from orchestrator.core import errors, events, records
from orchestrator.core.ledger import Attempt
from orchestrator.core.protocol import RUN_ALIVE, RunState
from orchestrator.endpoint.protocols import Endpoint, Resources

#: Seconds for which a list is believed.
FRESH_S: Final = 60.0
#: Seconds in which all lists must be read, and in which one thing must end.
_ANSWER_S: Final = 300.0
_END_S: Final = 30.0
#: Seconds between two signs of life.
SIGN_EVERY_S: Final = 5.0
#: Seconds after which an endpoint has forgotten a client that gives none, and a little more.
FORGOTTEN_S: Final = 25.0
#: Seconds that a sign of life may take where others wait for it.
BRIEFLY_S: Final = 5.0
_CLIENT: Final = re.compile(r"process (\d+) on (.*), of (.*)")
COPY: Final = "Is there a copy of this sweep's folder?"


class Remote:
    """`read()` the lists, then ask for runs and devboxes by their ids."""

    def __init__(self, sweep: str, endpoint: Resources) -> None:
        self._sweep = sweep
        self._endpoint = endpoint
        self._read_at = float("-inf")
        self._runs: dict[str, records.ScenarioRun] = {}
        self._devboxes: dict[str, records.Devbox] = {}
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

    async def run(self, run_id: str) -> records.ScenarioRun:
        """A scenario run. Raises WorldError, Missing among them."""
        return (self._is_fresh and self._runs.get(run_id)) or await self._endpoint.run(run_id)

    async def devbox(self, devbox_id: str) -> records.Devbox:
        """A devbox. Raises WorldError, Missing among them."""
        return (self._is_fresh and self._devboxes.get(devbox_id)) or await self._endpoint.devbox(devbox_id)

    @property
    def _is_fresh(self) -> bool:
        return anyio.current_time() - self._read_at <= FRESH_S

    async def reap(
        self,
        sink: events.Sink,
        attempts: Iterable[tuple[records.TrialKey, Attempt]],
        to_resume: Iterable[tuple[records.TrialKey, Attempt]],
    ) -> None:
        """End the sweep's runs and devboxes in the lists just read that belong to none of these `attempts`.

        Those `to_resume` may have a run whose id nobody knows. What refuses to end is left to its keep-alive, and
        logged.
        """
        known, boxes = set(), set()
        for _, attempt in attempts:
            known.add(attempt.run)
            boxes.add(attempt.devbox)
        owed = {(str(key), str(attempt.number)) for key, attempt in to_resume if attempt.run is None}
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

    def _is_ours(self, thing: records.ScenarioRun | records.Devbox) -> bool:
        return thing.metadata.get("sweep") == self._sweep

    async def _end(self, sink: events.Sink, end: Callable[[], Awaitable[None]], run: str | None, devbox: str) -> None:
        log = structlog.get_logger().bind(run=run, devbox=devbox)
        await sink.append(events.StrayFound(run=run, devbox=devbox))
        try:
            with anyio.fail_after(_END_S):
                await end()
        except (errors.WorldError, TimeoutError) as error:
            self.refusing.append(run or devbox)
            log.warning("stray.not_ended", error=str(error))
        else:
            log.warning("stray.ended")


class Presence:
    """The sign on the endpoint that this process works on a sweep. Use `claim` once, `keep` until the end, `leave`."""

    def __init__(self, endpoint: Endpoint, sweep: str) -> None:
        self._endpoint = endpoint
        self._sweep = sweep
        self._here = os.uname().nodename
        self._me = f"process {os.getpid()} on {self._here}, of {birth(os.getpid())}"

    async def claim(self) -> None:
        """Raise UsageError if another process is at work on this sweep."""
        until = anyio.current_time() + FORGOTTEN_S
        while others := await self._others():
            if anyio.current_time() >= until:
                await self.leave()
                raise errors.UsageError(
                    f"{_words(others)} is at work on this sweep, on the same endpoint. {COPY} Stop one of the two: "
                    "each would take the other's devboxes for its own."
                )
            await anyio.sleep(SIGN_EVERY_S / 2)

    async def keep(self, tell: Callable[[str], None]) -> None:
        """Give signs of life, and `tell` once of each other process that is there. Runs until it is canceled."""
        told: set[str] = set()
        while True:
            await anyio.sleep(SIGN_EVERY_S)
            if new := set(await self._others()) - told:
                told |= new
                tell(f"{_words(new)} wants to work on this sweep, too, and is kept out. {COPY}")

    async def leave(self) -> None:
        with anyio.move_on_after(BRIEFLY_S, shield=True), suppress(errors.WorldError):
            await self._endpoint.leave(self._me)

    async def _others(self) -> list[str]:
        """Names of the others at work, without processes of this machine that the endpoint has yet to forget."""
        with anyio.move_on_after(BRIEFLY_S), suppress(errors.WorldError):
            names = await self._endpoint.at_work(self._sweep, self._me)
            known = [(name, _CLIENT.fullmatch(name)) for name in names]
            return [
                name
                for name, match in known
                if not (match and match[2] == self._here and birth(int(match[1])) != match[3])
            ]
        return []


def _words(names: Iterable[str]) -> str:
    known = (_CLIENT.fullmatch(name) for name in sorted(names))
    return " and ".join(f"process {match[1]} on {match[2]}" for match in known if match) or "another process"
