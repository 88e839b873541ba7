"""What sweeps of ours have on an endpoint, and an end to it.

Ours is what carries a sweep's id in its metadata; nothing else is ever touched. A sweep whose folder is here is ended
through its journal and under its lock, so that its next resume knows and begins anew what was ended. A run that is
scored is completed, never canceled: its result stays on the endpoint, where the resume finds it.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio

from orchestrator.core.errors import SweepError, WorldError
from orchestrator.core.events import AttemptEnded, BenchmarkRunEnded, Event, SweepEnded
from orchestrator.core.ledger import INTERRUPTED, Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.protocol import RUN_ALIVE
from orchestrator.core.records import BenchmarkRun, Devbox, Failure, ScenarioRun
from orchestrator.endpoint.protocols import Resources
from orchestrator.rundir.journal import Journal, Reader
from orchestrator.rundir.manifest import lock_of
from orchestrator.rundir.sweep_index import Holder, holder, sweeps

_AT_ONCE: Final = 16
_RELEASED: Final = "it was released by `sweep reap`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """A sweep whose folder is on this machine, and how it stands. `trouble` is why that cannot be read."""

    folder: Path
    plan: Plan
    at_work: Holder | None
    done: int = 0
    trouble: str | None = None


@dataclass(slots=True, kw_only=True)
class Left:
    """What of one sweep lives on an endpoint. `here` is None if its folder is not in the runs folder."""

    sweep: str
    here: Here | None = None
    benchmark_runs: list[BenchmarkRun] = field(default_factory=list)
    runs: list[ScenarioRun] = field(default_factory=list)
    devboxes: list[Devbox] = field(default_factory=list)

    @property
    def is_free(self) -> bool:
        """Whether it is ours to end: the folder is here, sound, and nobody is at work in it."""
        return self.here is not None and self.here.at_work is None and self.here.trouble is None


async def look(endpoint: Resources, runs: Path) -> tuple[list[Left], int]:
    """What lives of each sweep, and how many devboxes are of none. Raises WorldError."""
    lefts = await _list(endpoint)
    nobodys = lefts.pop("", Left(sweep=""))
    await anyio.to_thread.run_sync(_look_here, runs, lefts)
    return [lefts[sweep] for sweep in sorted(lefts)], len(nobodys.devboxes)


async def _list(endpoint: Resources) -> dict[str, Left]:
    """What lives of each sweep, by the sweep's id; what is of none is under no id."""
    benchmark_runs = await endpoint.list_benchmark_runs(state="running")
    found = [run for state in sorted(RUN_ALIVE) for run in await endpoint.list_runs(state=state)]
    devboxes = await endpoint.list_devboxes()
    lefts: dict[str, Left] = {}
    for benchmark_run in benchmark_runs:
        if benchmark_run.state == "running":
            _of(benchmark_run, lefts).benchmark_runs.append(benchmark_run)
    for run in {run.id: run for run in found if run.state in RUN_ALIVE}.values():
        _of(run, lefts).runs.append(run)
    for devbox in devboxes:
        _of(devbox, lefts).devboxes.append(devbox)
    return lefts


def _of(thing: BenchmarkRun | ScenarioRun | Devbox, lefts: dict[str, Left]) -> Left:
    sweep = thing.metadata.get("sweep", "")
    return lefts.setdefault(sweep, Left(sweep=sweep))


def _look_here(runs: Path, lefts: Mapping[str, Left]) -> None:
    """Find the folders of these sweeps, and how they stand. Of a folder and its copies, one that is in use counts."""
    for folder, manifest in sweeps(runs):
        left = lefts.get(manifest.sweep)
        if left is not None and (left.here is None or holder(folder) is not None):
            left.here = _stand(folder, manifest.plan)


def _stand(folder: Path, plan: Plan) -> Here:
    at_work = holder(folder)
    try:
        ledger = Reader(folder).ledger
    except SweepError as error:
        return Here(folder=folder, plan=plan, at_work=at_work, trouble=error.message)
    return Here(folder=folder, plan=plan, at_work=at_work, done=sum(map(ledger.is_finished, plan)))


async def release(endpoint: Resources, left: Left) -> list[str]:
    """End all of it; returns what refused to end, and why. Of a sweep that is here, it is what is there by now.

    Raises UsageError if somebody is at work in the folder by now, JournalError if its journal cannot be written, and
    WorldError.
    """
    if left.here is None:
        return await _end_all(endpoint, left, is_finished=False)
    ledger = Ledger()
    async with Journal.open(left.here.folder, ledger, lock=lock_of(left.here.folder)) as journal:
        now = (await _list(endpoint)).get(left.sweep) or Left(sweep=left.sweep)
        is_finished = next(left.here.plan.pending(ledger), None) is None
        await journal.append(*_notes(ledger, now))
        refused = await _end_all(endpoint, now, is_finished=is_finished)
        await journal.append(SweepEnded(reason="finished" if is_finished else "released"))
    return refused


def _notes(ledger: Ledger, left: Left) -> Iterator[Event]:
    """What the journal says of it: attempts under way end without a score, uncounted; benchmark runs are over."""
    kept = {run.devbox_id for run in left.runs if run.state == "scored"}
    ending: list[ScenarioRun | Devbox] = [run for run in left.runs if run.state != "scored"]
    ending += [devbox for devbox in left.devboxes if devbox.id not in kept]
    attempts = {(each.metadata.get("trial"), each.metadata.get("attempt")) for each in ending}
    for key, attempt in ledger.unreleased():
        if ledger.under_way(key) is attempt and (str(key), str(attempt.number)) in attempts:
            failure = Failure(error=INTERRUPTED, message=_RELEASED, stage=str(attempt.stage)).as_dict()
            yield AttemptEnded(trial=str(key), attempt=attempt.number, failure=failure, counted=False)
    over = {run.id for run in left.benchmark_runs}
    for (arm, number), state in ledger.benchmark_runs.items():
        if state.run in over and not state.is_ended:
            yield BenchmarkRunEnded(arm=arm, number=number, run=state.run)


async def _end_all(endpoint: Resources, left: Left, *, is_finished: bool) -> list[str]:
    """Runs first, because their devboxes go with them; then devboxes without one; then what held them together.

    That stays if something refused to end: it would cancel what is left in it, a result that is there included.
    """
    with_run = {run.devbox_id for run in left.runs}
    refused = await _each(
        (run.id, endpoint.complete if run.state == "scored" else endpoint.cancel) for run in left.runs
    )
    refused += await _each((each.id, endpoint.shutdown) for each in left.devboxes if each.id not in with_run)
    end = endpoint.complete_benchmark_run if is_finished else endpoint.cancel_benchmark_run
    return refused or await _each((run.id, end) for run in left.benchmark_runs)


async def _each(calls: Iterable[tuple[str, Callable[[str], Awaitable[None]]]]) -> list[str]:
    """Make these calls, some at once; returns the ids of those that failed, and why."""
    limiter, refused = anyio.CapacityLimiter(_AT_ONCE), list[str]()

    async def end(identity: str, call: Callable[[str], Awaitable[None]]) -> None:
        async with limiter:
            try:
                await call(identity)
            except WorldError as error:
                refused.append(f"{identity}: {error.message}")

    async with anyio.create_task_group() as tasks:
        for identity, call in calls:
            tasks.start_soon(end, identity, call)
    return refused
