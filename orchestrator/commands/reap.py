"""`sweep reap`: lists what sweeps have on an endpoint, and releases what no process uses.

A resource belongs to a sweep if its metadata has the sweep's id; no other is ever touched. A sweep whose folder is on
this machine is released through its journal and under its lock, so that its next resume knows, and runs again what was
ended. A run that is scored is completed, never canceled: its result stays on the endpoint, where the resume finds it.
"""

import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
from rich.prompt import Confirm

from orchestrator.commands.endpoints import Where, open_endpoint
from orchestrator.commands.exit_codes import EXIT_FAILED, EXIT_OK
from orchestrator.core import events, records
from orchestrator.core.errors import SweepError, UsageError, WorldError
from orchestrator.core.ledger import INTERRUPTED, Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.protocol import RUN_ALIVE, Isolation
from orchestrator.endpoint.embedded_service import Service
from orchestrator.endpoint.gateway import Gateway
from orchestrator.endpoint.protocols import Endpoint, Resources
from orchestrator.rundir.journal import Journal, Reader
from orchestrator.rundir.manifest import lock_of, read_manifest
from orchestrator.rundir.sweep_index import Holder, find, holder, sweeps
from orchestrator.view.console import print_record, say
from orchestrator.view.formats import Format

#: Calls under way to an endpoint.
_CONCURRENCY: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSweep:
    """A sweep whose folder is on this machine. `trouble` says why its journal cannot be read."""

    folder: Path
    plan: Plan
    at_work: Holder | None
    done: int = 0
    trouble: str | None = None


@dataclass(slots=True, kw_only=True)
class Orphans:
    """The live resources of one sweep on an endpoint. `local` is None if its folder is not in the runs folder."""

    sweep: str
    local: LocalSweep | None = None
    benchmark_runs: list[records.BenchmarkRun] = field(default_factory=list)
    runs: list[records.ScenarioRun] = field(default_factory=list)
    devboxes: list[records.Devbox] = field(default_factory=list)

    @property
    def is_free(self) -> bool:
        """True if it can be released at once: its folder is here, sound, and no process works in it."""
        return self.local is not None and self.local.at_work is None and self.local.trouble is None


async def run(endpoint: str | None, *, runs: Path, sweep: str | None, is_sure: bool, output: Format) -> int:
    """List resources and release those that are not in use; returns the exit code.

    `endpoint` is a URL, None for the embedded services that run now. `sweep` is the only sweep to look at, by name or
    id. `is_sure` releases without asking. Raises UsageError without a key, WorldError if the endpoint does not answer.
    """
    if sweep is not None:
        with suppress(UsageError):  # an id
            sweep = read_manifest(find(runs, sweep)).sweep
    code = EXIT_OK
    async with AsyncExitStack() as stack:
        if endpoint is not None:
            place = Where(endpoint=endpoint, folders=(), isolation=Isolation.LOCAL, runs=runs)
            endpoints = [await stack.enter_async_context(open_endpoint(place))]
        else:
            services = await Service.running(runs)
            gateways = [Gateway.open(each.url, each.token, rate=None) for each in services]
            endpoints = [await stack.enter_async_context(each) for each in gateways]
        if not endpoints:
            say(
                f"No service of {runs} is running, so its sweeps have nothing to release. What a killed service left "
                "behind is cleaned up by the next service that a sweep starts there.",
                to_stderr=output.is_for_programs,
            )
        for each in endpoints:
            code = max(code, await _reap(each, runs, sweep, is_sure=is_sure, output=output))
    return code


async def _reap(endpoint: Endpoint, runs: Path, sweep: str | None, *, is_sure: bool, output: Format) -> int:
    found, others = await find_orphans(endpoint, runs)
    found = [each for each in found if sweep in {None, each.sweep}]
    is_told = not output.is_for_programs
    if is_told:
        for line in _describe(endpoint.url, sweep, found, others):
            say(line)
    ready = [each for each in found if each.is_free or (each.local is None and sweep is not None and is_sure)]
    is_wanted = bool(ready) and (is_sure or (is_told and await _ask(ready)))
    code = EXIT_OK
    for each in found:
        refused, local = None, each.local
        if is_wanted and each in ready:
            try:
                refused = await release(endpoint, each)
            except SweepError as error:
                refused = [error.message]
        if output.is_for_programs:
            record = {
                "event": "sweep",
                "endpoint": endpoint.url,
                "sweep": each.sweep,
                "folder": str(local.folder) if local else None,
                "in_use_by": local.at_work.name if local and local.at_work else None,
                "trials": len(local.plan) if local else None,
                "done": local.done if local else None,
                "runs": each.runs,
                "devboxes": each.devboxes,
                "benchmark_runs": each.benchmark_runs,
                "released": None if refused is None else not refused,
                "refused": refused or [],
            }
            print_record(record, output)
        elif refused is not None:
            say(f"Sweep {each.sweep}: {'; '.join(refused) or 'released'}.")
        code = max(code, EXIT_FAILED if refused else EXIT_OK)
    if ready and not is_wanted and is_told:
        say("Nothing was released: --yes releases what is not in use.")
    return code


async def _ask(ready: Sequence[Orphans]) -> bool:
    """Ask on a terminal; elsewhere the answer is no."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    devboxes = sum(len(each.devboxes) for each in ready)
    owed = sum(len(each.local.plan) - each.local.done for each in ready if each.local)
    question = f"Release what is not in use ({devboxes} devboxes)?"
    if owed:
        question += f" It includes sweeps with {owed} trials to do: a resume runs again what is released now."
    try:
        return await anyio.to_thread.run_sync(lambda: Confirm.ask(question, default=False), abandon_on_cancel=True)
    except EOFError:  # Ctrl-D
        return False


def _describe(url: str, sweep: str | None, found: Sequence[Orphans], others: int) -> Iterator[str]:
    if not found:
        yield f"{url}: " + ("no sweep has anything here." if sweep is None else f"sweep {sweep} has nothing here.")
    for each in found:
        local = each.local
        if local is None:
            standing = f"its folder is not here. If it is yours and not in use, release it: --sweep {each.sweep} --yes"
        elif local.trouble is not None:
            standing = local.trouble
        else:
            use = f"in use by {local.at_work.name}" if local.at_work else "not in use"
            standing = f"{local.folder}, {local.done} of {len(local.plan)} trials done, {use}"
        yield f"{url}: sweep {each.sweep}: {standing}"
        resources = [
            *(("run", run.id, run.state, run.metadata) for run in each.runs),
            *(("devbox", devbox.id, devbox.status, devbox.metadata) for devbox in each.devboxes),
            *(("benchmark run", run.id, run.state, run.metadata) for run in each.benchmark_runs),
        ]
        for kind, identity, state, metadata in resources:
            yield f"  {kind} {identity}  {state}  {_purpose(each, metadata)}"
    if others:
        yield f"Devboxes that belong to no sweep and are left alone: {others}."


def _purpose(orphans: Orphans, metadata: Mapping[str, str]) -> str:
    """The trial and attempt that a resource is for."""
    trial, attempt = metadata.get("trial"), metadata.get("attempt")
    if trial is None:
        return f"{metadata.get('arm', '')} #{metadata.get('number', '')}"
    try:
        key = records.TrialKey.parse(trial)
    except ValueError:
        return trial  # another program's metadata may have a `sweep` too
    names = {scenario.id: scenario.name for scenario in orphans.local.plan.scenarios} if orphans.local else {}
    return f"{names.get(key.scenario, key.scenario)} {key.arm} #{key.number}, attempt {attempt}"


async def find_orphans(endpoint: Resources, runs: Path) -> tuple[list[Orphans], int]:
    """Return the live resources of each sweep, and the number of devboxes of no sweep. Raises WorldError."""
    found = await _list(endpoint)
    others = found.pop("", Orphans(sweep=""))
    await anyio.to_thread.run_sync(_look_up, runs, found)
    return [found[sweep] for sweep in sorted(found)], len(others.devboxes)


def _look_up(runs: Path, found: Mapping[str, Orphans]) -> None:
    """Fill in `local` of these sweeps, by id. Of a folder and its copies, one that is in use counts."""
    for folder, manifest in sweeps(runs):
        if (orphans := found.get(manifest.sweep)) is None:
            continue
        at_work = holder(folder)
        if orphans.local is not None and at_work is None:
            continue
        try:
            done, trouble = sum(map(Reader(folder).ledger.is_finished, manifest.plan)), None
        except SweepError as error:
            done, trouble = 0, error.message
        orphans.local = LocalSweep(folder=folder, plan=manifest.plan, at_work=at_work, done=done, trouble=trouble)


async def _list(endpoint: Resources) -> dict[str, Orphans]:
    """Return live resources by sweep id; those without one are under ""."""
    benchmark_runs = await endpoint.list_benchmark_runs(state="running")
    runs = [run for state in sorted(RUN_ALIVE) for run in await endpoint.list_runs(state=state)]
    devboxes = await endpoint.list_devboxes()
    found: dict[str, Orphans] = {}

    def of(resource: records.BenchmarkRun | records.ScenarioRun | records.Devbox) -> Orphans:
        sweep = resource.metadata.get("sweep", "")
        return found.setdefault(sweep, Orphans(sweep=sweep))

    for benchmark_run in benchmark_runs:
        if benchmark_run.state == "running":
            of(benchmark_run).benchmark_runs.append(benchmark_run)
    for run in {run.id: run for run in runs if run.state in RUN_ALIVE}.values():
        of(run).runs.append(run)
    for devbox in devboxes:
        of(devbox).devboxes.append(devbox)
    return found


async def release(endpoint: Resources, orphans: Orphans) -> list[str]:
    """Release everything; returns the ids that could not be ended, with the reasons.

    For a local sweep the list is read again under its lock. Raises UsageError if a process works in the folder by now,
    JournalError if its journal cannot be written, and WorldError.
    """
    if orphans.local is None:
        return await _end_all(endpoint, orphans, is_finished=False)
    folder, ledger = orphans.local.folder, Ledger()
    async with Journal.open(folder, ledger, lock=lock_of(folder)) as journal:
        now = (await _list(endpoint)).get(orphans.sweep) or Orphans(sweep=orphans.sweep)
        is_finished = next(orphans.local.plan.pending(ledger), None) is None
        await journal.append(*_events(ledger, now))
        refused = await _end_all(endpoint, now, is_finished=is_finished)
        await journal.append(events.SweepEnded(reason="finished" if is_finished else "released"))
    return refused


def _events(ledger: Ledger, orphans: Orphans) -> Iterator[events.Event]:
    """Events for the journal: attempts under way end without a score, uncounted; benchmark runs end."""
    kept = {run.devbox_id for run in orphans.runs if run.state == "scored"}
    ending: list[records.ScenarioRun | records.Devbox] = [run for run in orphans.runs if run.state != "scored"]
    ending += [devbox for devbox in orphans.devboxes if devbox.id not in kept]
    attempts = {(each.metadata.get("trial"), each.metadata.get("attempt")) for each in ending}
    for key, attempt in ledger.unreleased():
        if ledger.under_way(key) is attempt and (str(key), str(attempt.number)) in attempts:
            failure = records.Failure(
                error=INTERRUPTED, message="it was released by `sweep reap`", stage=str(attempt.stage)
            )
            yield events.AttemptEnded(trial=str(key), attempt=attempt.number, failure=failure.as_dict(), counted=False)
    over = {run.id for run in orphans.benchmark_runs}
    for (arm, number), state in ledger.benchmark_runs.items():
        if state.run in over and not state.is_ended:
            yield events.BenchmarkRunEnded(arm=arm, number=number, run=state.run)


async def _end_all(endpoint: Resources, orphans: Orphans, *, is_finished: bool) -> list[str]:
    """End runs first, because their devboxes end with them; then devboxes without a run; then benchmark runs.

    If anything could not be ended, the benchmark run is kept: canceling it would also cancel what remains in it, a
    result included.
    """
    with_run = {run.devbox_id for run in orphans.runs}
    refused = await _call_each(
        (run.id, endpoint.complete if run.state == "scored" else endpoint.cancel) for run in orphans.runs
    )
    refused += await _call_each((each.id, endpoint.shutdown) for each in orphans.devboxes if each.id not in with_run)
    end = endpoint.complete_benchmark_run if is_finished else endpoint.cancel_benchmark_run
    return refused or await _call_each((run.id, end) for run in orphans.benchmark_runs)


async def _call_each(calls: Iterable[tuple[str, Callable[[str], Awaitable[None]]]]) -> list[str]:
    """Make these calls concurrently; returns the ids of those that failed, with the reasons."""
    limiter, refused = anyio.CapacityLimiter(_CONCURRENCY), list[str]()

    async def call(identity: str, end: Callable[[str], Awaitable[None]]) -> None:
        async with limiter:
            try:
                await end(identity)
            except WorldError as error:
                refused.append(f"{identity}: {error.message}")

    async with anyio.create_task_group() as tasks:
        for each in calls:
            tasks.start_soon(call, *each)
    return refused
