"""Lists what sweeps of ours left on an endpoint, and releases what nobody is at work with."""

import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
from rich.prompt import Confirm

from orchestrator.commands.endpoints import Where, open_endpoint
from orchestrator.commands.exit_codes import EXIT_FAILED, EXIT_OK
from orchestrator.commands.orphans import Left, look, release
from orchestrator.core.errors import SweepError, UsageError
from orchestrator.core.records import TrialKey
from orchestrator.endpoint.embedded_service import Service
from orchestrator.endpoint.gateway import Gateway
from orchestrator.endpoint.protocols import Endpoint
from orchestrator.rundir.manifest import read_manifest
from orchestrator.rundir.sweep_index import find
from orchestrator.view.console import say, say_json


async def run(endpoint: str | None, *, runs: Path, sweep: str | None, is_sure: bool, as_json: bool) -> int:
    """List, and release what may be; returns the exit code. `sweep` is the name or id of the only one to look at.

    Raises UsageError where the endpoint needs a key, and WorldError where it does not answer.
    """
    wanted = None if sweep is None else _id_of(runs, sweep)
    code = EXIT_OK
    async with _endpoints(endpoint, runs) as endpoints:
        if not endpoints:
            say(
                f"No service of {runs} is running, so nothing of its sweeps is alive. What a service that was killed "
                "had in hand is cleaned up by the next one that a sweep starts there.",
                to_stderr=as_json,
            )
        for each in endpoints:
            code = max(code, await _reap(each, runs, wanted, is_sure=is_sure, as_json=as_json))
    return code


def _id_of(runs: Path, sweep: str) -> str:
    """A sweep's id; what is no name in the runs folder is one."""
    try:
        return read_manifest(find(runs, sweep)).sweep
    except UsageError:
        return sweep


@asynccontextmanager
async def _endpoints(endpoint: str | None, runs: Path) -> AsyncIterator[list[Endpoint]]:
    """The endpoint, or the embedded services that run; none is started."""
    async with AsyncExitStack() as stack:
        if endpoint is not None:
            place = Where(endpoint=endpoint, folders=(), isolation="local", runs=runs)
            yield [await stack.enter_async_context(open_endpoint(place))]
            return
        services = await Service.running(runs)
        yield [await stack.enter_async_context(Gateway.open(each.url, each.token, rate=None)) for each in services]


async def _reap(endpoint: Endpoint, runs: Path, sweep: str | None, *, is_sure: bool, as_json: bool) -> int:
    lefts, nobodys = await look(endpoint, runs)
    lefts = [left for left in lefts if sweep in {None, left.sweep}]
    if not as_json:
        for line in _listed(endpoint.url, sweep, lefts, nobodys):
            say(line)
    ready = [left for left in lefts if left.is_free or (left.here is None and sweep is not None and is_sure)]
    is_wanted = bool(ready) and (is_sure or (not as_json and await _ask(ready)))
    code = EXIT_OK
    for left in lefts:
        refused = await _release(endpoint, left) if is_wanted and left in ready else None
        if as_json:
            _emit(endpoint.url, left, refused)
        elif refused is not None:
            say(f"Sweep {left.sweep}: {'; '.join(refused) or 'released'}.")
        code = max(code, EXIT_FAILED if refused else EXIT_OK)
    if ready and not is_wanted and not as_json:
        say("Nothing was released: --yes releases what is not in use.")
    return code


async def _release(endpoint: Endpoint, left: Left) -> list[str]:
    try:
        return await release(endpoint, left)
    except SweepError as error:
        return [error.message]


async def _ask(ready: Sequence[Left]) -> bool:
    """Ask whoever sits at a terminal; nobody there says no."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    devboxes = sum(len(left.devboxes) for left in ready)
    owed = sum(len(left.here.plan) - left.here.done for left in ready if left.here)
    question = f"Release what is not in use ({devboxes} devboxes)?"
    if owed:
        question += f" Sweeps with {owed} trials to do are among it: a resume runs again what is released now."
    try:
        return await anyio.to_thread.run_sync(lambda: Confirm.ask(question, default=False), abandon_on_cancel=True)
    except EOFError:  # Ctrl-D
        return False


def _listed(url: str, sweep: str | None, lefts: Sequence[Left], nobodys: int) -> Iterator[str]:
    yield f"{url}: " + ("this is there of sweeps:" if lefts else f"nothing there is of {_called(sweep)}.")
    for left in lefts:
        yield f"sweep {left.sweep}: {_standing(left)}"
        things = [
            *(("run", run.id, run.state, run.metadata) for run in left.runs),
            *(("devbox", devbox.id, devbox.status, devbox.metadata) for devbox in left.devboxes),
            *(("benchmark run", run.id, run.state, run.metadata) for run in left.benchmark_runs),
        ]
        for kind, identity, state, metadata in things:
            yield f"  {kind} {identity}  {state}  {_what(left, metadata)}"
    if nobodys:
        yield f"{nobodys} devboxes there are of no sweep of ours; they are left alone."


def _called(sweep: str | None) -> str:
    return "a sweep" if sweep is None else f"sweep {sweep}"


def _standing(left: Left) -> str:
    here = left.here
    if here is None:
        return f"its folder is not here. If it is yours and nobody is at work with it: --sweep {left.sweep} --yes"
    if here.trouble is not None:
        return here.trouble
    stands = f"{here.folder}, {here.done} of {len(here.plan)} trials done"
    return f"{stands}, in use by {here.at_work.name}" if here.at_work else f"{stands}, not in use"


def _what(left: Left, metadata: Mapping[str, str]) -> str:
    """Which trial it is for."""
    trial, attempt = metadata.get("trial"), metadata.get("attempt")
    if trial is None:
        return f"{metadata.get('arm', '')} #{metadata.get('number', '')}"
    try:
        key = TrialKey.parse(trial)
    except ValueError:
        return trial  # who else says `sweep` may mean anything
    names = {scenario.id: scenario.name for scenario in left.here.plan.scenarios} if left.here else {}
    return f"{names.get(key.scenario, key.scenario)} {key.arm} #{key.number}, attempt {attempt}"


def _emit(url: str, left: Left, refused: list[str] | None) -> None:
    here = left.here
    line = {
        "event": "sweep",
        "endpoint": url,
        "sweep": left.sweep,
        "folder": str(here.folder) if here else None,
        "in_use_by": here.at_work.name if here and here.at_work else None,
        "trials": len(here.plan) if here else None,
        "done": here.done if here else None,
        "runs": left.runs,
        "devboxes": left.devboxes,
        "benchmark_runs": left.benchmark_runs,
        "released": None if refused is None else not refused,
        "refused": refused or [],
    }
    say_json(line, default=sorted)  # a set has no order
