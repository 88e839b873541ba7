"""One scenario by itself, reported step by step: the documented single-run flow."""

import time
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Final

import anyio
from msgspec import structs

from orchestrator.commands import run_sweep
from orchestrator.commands.endpoints import find_benchmark, open_endpoint, where_of
from orchestrator.commands.exit_codes import EXIT_FAILED, EXIT_OK
from orchestrator.core import events
from orchestrator.core.config import SweepConfig
from orchestrator.core.errors import UsageError
from orchestrator.core.events import Event
from orchestrator.core.ledger import Ledger
from orchestrator.core.printable import printable_lines
from orchestrator.core.records import Outcome, TrialKey, path_part
from orchestrator.core.retry_policy import Action
from orchestrator.engine import concurrency, lifecycle, redact
from orchestrator.rundir.files import AGENT_LOG, attempt_folder
from orchestrator.rundir.journal import now
from orchestrator.rundir.sweep_index import make_folder
from orchestrator.view.console import print_log, say
from orchestrator.view.report import duration, number

#: Facts that are not printed: others say them, or they are not worth a line.
_UNTOLD: Final = ("files", "network")


class Teller:
    """A sink that applies each event to the ledger and prints it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def append(self, *batch: Event) -> None:
        self.append_nowait(*batch)

    async def wait_writable(self) -> None:
        """Nothing is written here."""

    def append_nowait(self, *batch: Event) -> None:
        for event in batch:
            self._ledger.apply(structs.replace(event, at=now()))
            match event:
                case events.StageEntered():
                    say(f"{event.stage} …")
                case events.RunStarted():
                    say(f"  scenario run {event.run}, devbox {event.devbox}")
                case events.ExecutionStarted():
                    say(f"  the agent works in the devbox, execution {event.execution}")
                case events.StageFinished():
                    told = [(name, fact) for name, fact in event.facts.items() if fact not in ({}, [], None, "")]
                    facts = "".join(f", {name} {fact}" for name, fact in told if name not in _UNTOLD)
                    say(f"  {event.stage} done in {duration(event.seconds)}{facts}")
                case events.AttemptEnded():
                    for line in printable_lines(f"  {event.failure['class']}: {event.failure['message']}"):
                        say(line)
                case events.TrialFinished():
                    say(f"{event.result['outcome']}, score {number(event.result['score'])}")
                    for scorer in event.result["scorers"]:
                        say(f"  {scorer['name']} {number(scorer['score'])}")
                case _:
                    pass


async def run(scenario: str, config: SweepConfig, *, runs: Path, given: Mapping[str, str]) -> int:
    """Run a scenario once; returns the exit code. Raises UsageError for an unknown one."""
    place, name = await where_of(config, runs)
    arms = await run_sweep.load_arms(config.arms, config.python, given, place=place, tell=say)
    ledger, hidden = Ledger(), run_sweep.secrets_of(arms)
    async with open_endpoint(place, rate=config.rate, hidden=hidden) as endpoint:
        benchmark = await find_benchmark(endpoint, name)
        arms = await run_sweep.supply_arms(arms, endpoint)
        summaries = await endpoint.summaries(benchmark)
        summary = next((each for each in summaries if scenario in {each.id, each.name}), None)
        if summary is None:
            near = get_close_matches(scenario, [each.name for each in summaries], 3)
            hint = f"Did you mean {', '.join(near)}?" if near else "`sweep benchmarks show BENCHMARK` lists them."
            raise UsageError(f"There is no scenario {scenario!r}. {hint}")
        if summary.unsupported:
            raise UsageError(f"{summary.name} cannot run here: {summary.unsupported}")
        if why := run_sweep.unmet(arms, summary):
            raise UsageError(f"{summary.name}: {why}. Use one that does.")
        variables = run_sweep.variables_of([summary], given)
        redactor = run_sweep.redactor_of(arms, variables)
        await run_sweep.check_needs(config, arms, endpoint)
        for notice in run_sweep.network_notices(config, [summary]):
            say(notice)
        if redactor.unmasked:
            say(run_sweep.TOO_SHORT.format(", ".join(redactor.unmasked)))
        for notice in await run_sweep.notices_of(endpoint, config, [summary]):
            say(notice)
        folder = runs / f"scenario-{path_part(summary.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
        await anyio.to_thread.run_sync(make_folder, folder)
        key = TrialKey(summary.id, config.arms[0].name, 1)
        ctx = run_sweep.make_context(
            config,
            sweep=folder.name,
            folder=folder,
            benchmark=benchmark,
            has_benchmark_runs=False,
            scenarios=[summary],
            arms=arms,
            endpoint=endpoint,
            sink=redact.MaskingSink(Teller(ledger), redactor),
            ledger=ledger,
            limits=concurrency.Limits(devboxes=1, agents=1),
            redactor=redactor,
            variables=variables,
        )
        while (decision := await lifecycle.attempt(ctx, key)) is not None and decision.action is Action.LATER:
            say(f"  It is tried again in {duration(decision.delay)}.")
            await anyio.sleep(decision.delay)
    log = attempt_folder(folder, key, summary.name, 1) / AGENT_LOG
    if log.exists():
        print_log(log.read_text(errors="replace").rstrip())
    say(f"Files: {log.parent}")
    return EXIT_OK if ledger.trials[key].outcome is Outcome.SCORED else EXIT_FAILED
