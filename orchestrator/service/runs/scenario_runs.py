"""Scenario runs: started with their devbox, scored in the background, ended with their devbox.

A run and its devbox change in one transaction, so that neither a crash nor a lost connection leaves a devbox without
a run, or a living run without a devbox. What follows a commit (booting, scoring, ending the box) is shielded from the
request that caused it.
"""

import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import anyio
from msgspec.structs import replace as replaced

from orchestrator.service.compatibility import Dialect
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.requests import DevboxRequest, mounted_files, mounted_install
from orchestrator.service.environments.environments import Environments
from orchestrator.service.errors import BadRequest
from orchestrator.service.records import (
    BenchmarkRunStatus,
    ContractResult,
    DevboxRecord,
    DevboxStatus,
    FunctionResult,
    FunctionState,
    RunProfile,
    RunState,
    ScenarioRunRecord,
)
from orchestrator.service.runs import benchmark_score
from orchestrator.service.runs.scorings import Scorings, end_run
from orchestrator.service.runs.settlements import with_broken
from orchestrator.service.runs.start_request import (
    EnvironmentDefinition,
    ScenarioDefinition,
    StartRequest,
    check_startable,
    check_unchanged,
    environment_of,
    outwait,
    scenario_of,
    secret_values,
)
from orchestrator.service.runs.states import ALIVE, moved_run
from orchestrator.service.sandbox.prepared import Prepare, Prepared
from orchestrator.service.scoring.scoring import Scoring
from orchestrator.service.store import (
    BENCHMARK_RUNS,
    DEVBOXES,
    SCENARIO_RUNS,
    Filters,
    ListQuery,
    Page,
    Store,
    answered,
    now_ms,
    once,
)

#: The key in its metadata that says that a run is a sweep's.
SWEEP: Final = "sweep"


class ScenarioRuns:
    def __init__(
        self,
        *,
        store: Store,
        definitions: Definitions,
        fleet: Fleet,
        environments: Environments,
        scoring: Scoring,
        scorings: Scorings,
        dialect: Dialect,
        secrets: Mapping[str, str],
        forget: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        self._store = store
        self._definitions = definitions
        self._fleet = fleet
        self._environments = environments
        self._scoring = scoring
        self._scorings = scorings
        self._dialect = dialect
        self._secrets = secrets
        self._forget = forget
        fleet.on_end.append(_devbox_ended)

    async def recover(self) -> None:
        """Call once, after the fleet has opened: what an earlier process was scoring is `failed`."""

        def fail_interrupted(db: sqlite3.Connection) -> None:
            for run in SCENARIO_RUNS.select(db, {"state": RunState.SCORING}):
                end_run(db, run, RunState.FAILED, "The service ended while the run was scoring.")

        await self._store.write(benchmark_score.prepare)
        await self._store.write(fail_interrupted)

    async def retrieve(self, run_id: str) -> ScenarioRunRecord:
        """Raises NotFound."""
        return await self._store.read(lambda db: SCENARIO_RUNS.get(db, run_id))

    async def page(self, filters: Filters, query: ListQuery) -> Page[ScenarioRunRecord]:
        """Scenario runs, newest first. Raises NotFound for an unknown `starting_after`."""
        return await self._store.read(lambda db: SCENARIO_RUNS.page(db, filters, query))

    async def start(self, request: StartRequest, key: str | None) -> ScenarioRunRecord:
        """Start a run and its devbox, once for each key. Raises NotFound, and BadRequest naming what is wrong."""

        def look(db: sqlite3.Connection) -> tuple[ScenarioRunRecord | None, RunProfile]:
            base = BENCHMARK_RUNS.get(db, request.benchmark_run_id).profile if request.benchmark_run_id else None
            return answered(db, key, ScenarioRunRecord), request.profile.over(base) if base else request.profile

        before, profile = await self._store.read(look)
        if before is not None:
            return before
        scenario = await scenario_of(self._definitions, request.definition_id)
        check_startable("Scenario", scenario, profile)
        secrets = secret_values(profile, self._secrets)
        run_id = SCENARIO_RUNS.new_id()
        labels = request.metadata if self._dialect.is_devbox_labelled else {}
        devbox = _devbox_request(scenario, profile, run_id=run_id, name=request.name, labels=labels)

        def insert(db: sqlite3.Connection) -> ScenarioRunRecord:
            if request.benchmark_run_id:
                _check_benchmark_run(db, request.benchmark_run_id, scenario.id)
            run = ScenarioRunRecord(
                id=run_id,
                scenario_id=scenario.id,
                **request.fields(profile),
                digest=scenario.digest,
                parts=scenario.parts,
                functions=[each["name"] for each in scenario.scoring_contract["scoring_function_parameters"]],
                benchmark_run_id=request.benchmark_run_id or None,
                devbox_id=self._fleet.insert(db, devbox).id,
                state=RunState.RUNNING,
                start_time_ms=now_ms(),
            )
            SCENARIO_RUNS.insert(db, run)
            return run

        with anyio.CancelScope(shield=True):
            run, is_new = await self._store.write(lambda db: once(db, key, ScenarioRunRecord, lambda: insert(db)))
            if is_new:
                self._fleet.boot_soon(run.devbox_id, self._prepare(scenario, run, secrets))
        return run

    def _prepare(self, scenario: ScenarioDefinition, run: ScenarioRunRecord, secrets: Mapping[str, str]) -> Prepare:
        async def environment() -> Prepared:
            check_unchanged(run, await scenario_of(self._definitions, scenario.id))
            return await environment_of(scenario, self._environments)

        async def prepare() -> Prepared:
            base = await outwait(environment)
            binds = await self._scoring.binds(scenario.scoring_contract)
            return replace(base, secrets=secrets, binds=(*base.binds, *binds))

        return prepare

    async def score(self, run_id: str) -> ScenarioRunRecord:
        """Start to score a run, unless it is scoring or scored already.

        Raises NotFound, and BadRequest naming the state if the run is over or its devbox is not running. In a dialect
        without rescoring, that is every run that is not running.
        """

        def flip(db: sqlite3.Connection) -> tuple[ScenarioRunRecord, bool]:
            run = SCENARIO_RUNS.get(db, run_id)
            if not self._dialect.is_rescoring and run.state is not RunState.RUNNING:
                raise BadRequest(f"Scenario run {run_id} is {run.state}: only a running one can be scored.")
            if run.state in {RunState.SCORING, RunState.SCORED}:
                return run, False
            run = replaced(moved_run(run, RunState.SCORING), scoring_contract_result=None, failure_reason=None)
            status = DEVBOXES.get(db, run.devbox_id).status
            if status is not DevboxStatus.RUNNING:
                raise BadRequest(f"Scenario run {run.id} cannot be scored: its devbox {run.devbox_id} is {status}.")
            SCENARIO_RUNS.put(db, run)
            return run, True

        with anyio.CancelScope(shield=True):
            run, is_new = await self._store.write(flip)
            if is_new:
                self._scorings.start_soon(run)
        return run

    async def complete(self, run_id: str) -> ScenarioRunRecord:
        """Complete a scored run, or a running one without a result, and shut its devbox down. Idempotent.

        Raises NotFound, and BadRequest naming the state.
        """
        return await self._end(run_id, RunState.COMPLETED)

    async def cancel(self, run_id: str) -> ScenarioRunRecord:
        """Cancel a living run and shut its devbox down. Idempotent.

        A run that failed or timed out stays what it is, but its devbox is shut down. Raises NotFound, and BadRequest
        for a completed run.
        """
        return await self._end(run_id, RunState.CANCELED, unless=(RunState.FAILED, RunState.TIMEOUT))

    async def _end(self, run_id: str, state: RunState, *, unless: Sequence[RunState] = ()) -> ScenarioRunRecord:
        def change(db: sqlite3.Connection) -> ScenarioRunRecord:
            run = SCENARIO_RUNS.get(db, run_id)
            run = self.end_in(db, run, run.state if run.state in unless else state)
            benchmark_score.settle(db, run.benchmark_run_id)
            return run

        with anyio.CancelScope(shield=True):
            run = await self._store.write(change)
            self.ended(run)
        return run

    def end_in(self, db: sqlite3.Connection, run: ScenarioRunRecord, state: RunState) -> ScenarioRunRecord:
        """Make sure that a run is in this state and its devbox ends, in the caller's transaction.

        Settling the benchmark run is left to the caller, as is `ended` after the commit. Raises BadRequest naming the
        run's state if it cannot come to that.
        """
        if run.state is not state:
            run = end_run(db, run, state)
        self._fleet.shutdown_in(db, run.devbox_id, "api_shutdown")
        return run

    def ended(self, run: ScenarioRunRecord) -> None:
        """Call after the commit of a run's end: stop its scoring, end its box.

        A sweep has collected what it wants to keep; what else was printed in the devbox may have its secrets.
        """
        self._scorings.stop(run.id)
        self._fleet.shutdown_soon(run.devbox_id)
        if SWEEP in run.metadata and run.state in {RunState.COMPLETED, RunState.CANCELED}:
            self._fleet.start_soon(self._forget, run.devbox_id)


def _check_benchmark_run(db: sqlite3.Connection, benchmark_run_id: str, scenario_id: str) -> None:
    run = BENCHMARK_RUNS.get(db, benchmark_run_id)
    if run.state is not BenchmarkRunStatus.RUNNING:
        raise BadRequest(f"Benchmark run {run.id} is {run.state}: no scenario can be started in it any more.")
    if scenario_id not in run.scenario_ids:
        raise BadRequest(f"Scenario {scenario_id} is not in benchmark run {run.id}.")


def _devbox_request(
    scenario: ScenarioDefinition, profile: RunProfile, *, run_id: str, name: str | None, labels: Mapping[str, str]
) -> DevboxRequest:
    environment = scenario.environment or EnvironmentDefinition()
    if environment.snapshot_id:
        raise BadRequest(f"Scenario {scenario.id}: environment.snapshot_id: snapshots are not served here.")
    launch = environment.launch_parameters or {}
    return DevboxRequest(
        name=name or scenario.name,
        metadata=labels,
        environment_variables=profile.environment,
        blueprint_id=environment.blueprint_id,
        launch_parameters={**launch, **profile.launch_parameters},
        scenario_policy_id=launch.get("network_policy_id"),
        file_mounts=mounted_files("runProfile.mounts", profile.mounts),
        install=mounted_install("runProfile.mounts", profile.mounts),
        initiator_type="scenario",
        initiator_id=run_id,
    )


def _devbox_ended(db: sqlite3.Connection, devbox: DevboxRecord) -> None:
    """In the transaction that ends a devbox: end its run, too, if it is alive."""
    for run in SCENARIO_RUNS.select(db, {"devbox_id": devbox.id}):
        if run.state not in ALIVE:
            continue
        words = f" ({devbox.end_message})" if devbox.end_message else ""
        how = f"Devbox {devbox.id} ended while the run was {run.state}: {devbox.end_reason or devbox.status}{words}"
        if devbox.broken_by_agent:
            # An agent that breaks its own devbox has not solved anything: a 0, and no failure of ours.
            output = f"The agent broke its own devbox. {how}\n"
            results = [
                FunctionResult(scoring_function_name=name, score=0.0, output=output, state=FunctionState.COMPLETE)
                for name in run.functions
            ]
            result = ContractResult(score=0.0, scoring_function_results=results)
            end_run(db, with_broken(replaced(run, scoring_contract_result=result), [how]), RunState.SCORED)
            benchmark_score.settle(db, run.benchmark_run_id)
        else:
            is_timeout = run.state is RunState.RUNNING and devbox.shutdown_reason == "keep_alive_timeout"
            end_run(db, run, RunState.TIMEOUT if is_timeout else RunState.FAILED, how)
