"""Scenario runs: started with their devbox, scored in the background, ended with their devbox.

A run and its devbox change in one transaction, so that neither a crash nor a lost connection leaves a devbox without
a run, or a living run without a devbox. What follows a commit (booting, scoring, ending the box) is shielded from the
request that caused it.
"""

import sqlite3
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final

import anyio

from orchestrator.service.compatibility import Dialect
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.requests import DevboxRequest, mounted_files, mounted_install
from orchestrator.service.environments.environments import Environments
from orchestrator.service.errors import BadRequest
from orchestrator.service.runs import benchmark_score
from orchestrator.service.runs.scorings import Scorings, end_run
from orchestrator.service.runs.settlements import note_broken
from orchestrator.service.runs.start_request import (
    Profile,
    StartRequest,
    check_startable,
    check_unchanged,
    environment_of,
    outwait,
    remembered,
    secret_values,
)
from orchestrator.service.runs.states import ALIVE, BenchmarkRunState, RunState, move_run
from orchestrator.service.sandbox.prepared import Prepare, Prepared
from orchestrator.service.scoring.scoring import Scoring
from orchestrator.service.scoring.verdict import COMPLETE
from orchestrator.service.serialization import view
from orchestrator.service.store import (
    BENCHMARK_RUNS,
    DEVBOXES,
    SCENARIO_RUNS,
    Document,
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
        await self._store.write(benchmark_score.prepare)
        await self._store.write(_fail_interrupted)

    async def retrieve(self, run_id: str) -> Document:
        """Raises NotFound."""
        return await self._store.read(lambda db: SCENARIO_RUNS.get(db, run_id))

    async def page(self, filters: Filters, query: ListQuery) -> Page:
        """Scenario runs, newest first. Raises NotFound for an unknown `starting_after`."""
        return await self._store.read(lambda db: SCENARIO_RUNS.page(db, filters, query))

    async def start(self, request: StartRequest, key: str | None) -> Document:
        """Start a run and its devbox, once for each key. Raises NotFound, and BadRequest naming what is wrong."""
        before, base = await self._store.read(lambda db: (answered(db, key), _base_profile(db, request)))
        if before is not None:
            return before
        profile = request.profile.over(base) if base else request.profile
        scenario = await self._definitions.scenario(request.definition_id)
        check_startable("Scenario", scenario, profile)
        run = {"id": SCENARIO_RUNS.new_id(), "scenario_id": scenario["id"], **request.view(profile)}
        run |= remembered(scenario)
        prepare = self._prepare(scenario, run, secret_values(profile, self._secrets))
        labels = run["metadata"] if self._dialect.is_devbox_labelled else {}
        devbox = _devbox_request(scenario, run, profile, labels)

        def effect(db: sqlite3.Connection) -> tuple[Document, bool]:
            return once(db, key, lambda: view(self._insert(db, request, run, devbox)))

        with anyio.CancelScope(shield=True):
            answer, is_new = await self._store.write(effect)
            if is_new:
                self._fleet.boot_soon(answer["devbox_id"], prepare)
        return answer

    def _insert(self, db: sqlite3.Connection, request: StartRequest, run: Document, devbox: DevboxRequest) -> Document:
        if request.benchmark_run_id:
            run["benchmark_run_id"] = _check_benchmark_run(db, request.benchmark_run_id, request.definition_id)
        run["devbox_id"] = self._fleet.insert(db, devbox)["id"]
        run |= {"state": str(RunState.RUNNING), "start_time_ms": now_ms()}
        SCENARIO_RUNS.insert(db, run)
        return run

    def _prepare(self, scenario: Document, run: Document, secrets: Mapping[str, str]) -> Prepare:
        async def environment() -> Prepared:
            check_unchanged(run, await self._definitions.scenario(scenario["id"]))
            return await environment_of(scenario, self._environments)

        async def prepare() -> Prepared:
            base = await outwait(environment)
            binds = await self._scoring.binds(scenario["scoring_contract"])
            return replace(base, secrets=secrets, binds=(*base.binds, *binds))

        return prepare

    async def score(self, run_id: str) -> Document:
        """Start to score a run, unless it is scoring or scored already.

        Raises NotFound, and BadRequest naming the state if the run is over or its devbox is not running. In a dialect
        without rescoring, that is every run that is not running.
        """

        def flip(db: sqlite3.Connection) -> tuple[Document, bool]:
            run = SCENARIO_RUNS.get(db, run_id)
            if not self._dialect.is_rescoring and run["state"] != RunState.RUNNING:
                raise BadRequest(f"Scenario run {run_id} is {run['state']}: only a running one can be scored.")
            if run["state"] in {RunState.SCORING, RunState.SCORED}:
                return run, False
            move_run(run, RunState.SCORING)
            _check_devbox(db, run)
            for stale in ("scoring_contract_result", "failure_reason"):
                run.pop(stale, None)
            SCENARIO_RUNS.put(db, run)
            return run, True

        with anyio.CancelScope(shield=True):
            run, is_new = await self._store.write(flip)
            if is_new:
                self._scorings.start_soon(run)
        return run

    async def complete(self, run_id: str) -> Document:
        """Complete a scored run, or a running one without a result, and shut its devbox down. Idempotent.

        Raises NotFound, and BadRequest naming the state.
        """

        def change(db: sqlite3.Connection) -> Document:
            run = SCENARIO_RUNS.get(db, run_id)
            self.end_in(db, run, RunState.COMPLETED)
            benchmark_score.settle(db, run.get("benchmark_run_id"))
            return run

        return await self._end_with_devbox(change)

    async def cancel(self, run_id: str) -> Document:
        """Cancel a living run and shut its devbox down. Idempotent.

        A run that failed or timed out stays what it is, but its devbox is shut down. Raises NotFound, and BadRequest
        for a completed run.
        """

        def change(db: sqlite3.Connection) -> Document:
            run = SCENARIO_RUNS.get(db, run_id)
            is_over = run["state"] in {RunState.FAILED, RunState.TIMEOUT}
            self.end_in(db, run, RunState(run["state"]) if is_over else RunState.CANCELED)
            benchmark_score.settle(db, run.get("benchmark_run_id"))
            return run

        return await self._end_with_devbox(change)

    async def _end_with_devbox(self, change: Callable[[sqlite3.Connection], Document]) -> Document:
        with anyio.CancelScope(shield=True):
            run = await self._store.write(change)
            self.ended(run)
        return run

    def end_in(self, db: sqlite3.Connection, run: Document, state: RunState) -> None:
        """Make sure that a run is in this state and its devbox ends, in the caller's transaction.

        Settling the benchmark run is left to the caller, as is `ended` after the commit. Raises BadRequest naming the
        run's state if it cannot come to that.
        """
        if run["state"] != state:
            end_run(db, run, state, None)
        self._fleet.shutdown_in(db, run["devbox_id"], "api_shutdown")

    def ended(self, run: Document) -> None:
        """What follows the commit of a run's end: stop its scoring, end its box.

        A sweep has brought home what it wants to keep; what else was printed in the devbox may have its secrets.
        """
        self._scorings.stop(run["id"])
        self._fleet.shutdown_soon(run["devbox_id"])
        if SWEEP in run["metadata"] and run["state"] in {RunState.COMPLETED, RunState.CANCELED}:
            self._fleet.start_soon(self._forget, run["devbox_id"])


def _base_profile(db: sqlite3.Connection, request: StartRequest) -> Profile | None:
    """The profile of the benchmark run that the request names. Raises NotFound."""
    if not request.benchmark_run_id:
        return None
    return Profile.of(BENCHMARK_RUNS.get(db, request.benchmark_run_id)["_profile"])


def _check_benchmark_run(db: sqlite3.Connection, benchmark_run_id: str, scenario_id: str) -> str:
    run = BENCHMARK_RUNS.get(db, benchmark_run_id)
    if run["state"] != BenchmarkRunState.RUNNING:
        raise BadRequest(f"Benchmark run {run['id']} is {run['state']}: no scenario can be started in it any more.")
    if scenario_id not in run["_scenario_ids"]:
        raise BadRequest(f"Scenario {scenario_id} is not in benchmark run {run['id']}.")
    return benchmark_run_id


def _devbox_request(scenario: Document, run: Document, profile: Profile, labels: Mapping[str, str]) -> DevboxRequest:
    environment = scenario.get("environment") or {}
    if environment.get("snapshot_id"):
        raise BadRequest(f"Scenario {scenario['id']}: environment.snapshot_id: snapshots are not served here.")
    launch = environment.get("launch_parameters") or {}
    return DevboxRequest(
        name=run.get("name") or scenario["name"],
        metadata=labels,
        environment_variables=dict(profile.environment),
        blueprint_id=environment.get("blueprint_id"),
        launch_parameters={**launch, **profile.launch_parameters},
        scenario_policy_id=launch.get("network_policy_id"),
        file_mounts=mounted_files("runProfile.mounts", profile.mounts),
        install=mounted_install("runProfile.mounts", profile.mounts),
        initiator_type="scenario",
        initiator_id=run["id"],
    )


def _check_devbox(db: sqlite3.Connection, run: Document) -> None:
    status = DEVBOXES.get(db, run["devbox_id"])["status"]
    if status != "running":
        raise BadRequest(f"Scenario run {run['id']} cannot be scored: its devbox {run['devbox_id']} is {status}.")


def _devbox_ended(db: sqlite3.Connection, devbox: Document) -> None:
    """In the transaction that ends a devbox: its run, if it is still at it, ends too."""
    for run in SCENARIO_RUNS.select(db, {"devbox_id": devbox["id"]}):
        if run["state"] in ALIVE and devbox.get("broken_by_agent"):
            _score_broken(db, run, _how_ended(run, devbox))
        elif run["state"] in ALIVE:
            is_timeout = run["state"] == RunState.RUNNING and devbox.get("shutdown_reason") == "keep_alive_timeout"
            end_run(db, run, RunState.TIMEOUT if is_timeout else RunState.FAILED, _how_ended(run, devbox))


def _score_broken(db: sqlite3.Connection, run: Document, how: str) -> None:
    """Who breaks its own devbox has not solved anything: a 0, and no failure of ours."""
    output = f"The agent broke its own devbox. {how}\n"
    results = [
        {"scoring_function_name": name, "score": 0.0, "output": output, "state": COMPLETE}
        for name in run.get("_functions", ())
    ]
    run["scoring_contract_result"] = {"score": 0.0, "scoring_function_results": results}
    note_broken(run, [how])
    end_run(db, run, RunState.SCORED)
    benchmark_score.settle(db, run.get("benchmark_run_id"))


def _how_ended(run: Document, devbox: Document) -> str:
    how = devbox.get("shutdown_reason") or devbox.get("failure_reason") or devbox["status"]
    words = f" ({devbox['_failure']})" if devbox.get("_failure") else ""
    return f"Devbox {devbox['id']} ended while the run was {run['state']}: {how}{words}"


def _fail_interrupted(db: sqlite3.Connection) -> None:
    for run in SCENARIO_RUNS.select(db, {"state": RunState.SCORING}):
        end_run(db, run, RunState.FAILED, "The service ended while the run was scoring.")
