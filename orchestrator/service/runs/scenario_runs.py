"""Scenario runs: started with their devbox, scored in the background, ended with their devbox, their logs in a zip.

A run and its devbox change in one transaction, so that neither a crash nor a lost connection leaves a devbox without
a run, or a living run without a devbox. What follows a commit (booting, scoring, ending the box) is shielded from the
request that caused it.

The zip has everything that a run left behind, for people; it is built on disk, so that a run with gigabytes of output
costs no memory. Output of commands is gone once a sweep's run is completed or canceled (`ScenarioRuns.ended`).

    run.json              the run as the wire shows it        scoring/<function>.txt    output of scoring functions
    devbox.json           its devbox                          executions/<id>.stdout    output of commands; .stderr
    devbox.log.jsonl      the devbox's log, one entry a line  LEFT-OUT.txt              list of what was too large
"""

import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Final

import anyio
import orjson
from msgspec.structs import replace as replaced

from orchestrator.core.protocol import BenchmarkRunState, DevboxStatus, RunState
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.devboxes.executions import Executions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.output import STREAMS, collect, spool_path
from orchestrator.service.devboxes.snapshots import Snapshots
from orchestrator.service.environments.environments import Environments
from orchestrator.service.errors import BadRequest
from orchestrator.service.records import (
    DevboxRecord,
    ExecutionRecord,
    RunProfile,
    ScenarioRunRecord,
    StepTerms,
    view,
)
from orchestrator.service.runs import start_request, states
from orchestrator.service.runs.scorings import Scorings
from orchestrator.service.sandbox.prepared import Preparation, Prepare, Prepared
from orchestrator.service.scoring.scoring import Scoring
from orchestrator.service.store import (
    BENCHMARK_RUNS,
    DEVBOXES,
    EXECUTIONS,
    SCENARIO_RUNS,
    Filters,
    ListQuery,
    Page,
    Store,
    answered,
    now_ms,
)

#: Bytes of the output of commands in one zip, and of one copying.
MAX_ZIPPED_BYTES: Final = 512 << 20
_PIECE_BYTES: Final = 1 << 20
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
        snapshots: Snapshots,
        scoring: Scoring,
        scorings: Scorings,
        executions: Executions,
        dialect: states.Dialect,
        secrets: Mapping[str, str],
    ) -> None:
        self._store = store
        self._definitions = definitions
        self._fleet = fleet
        self._environments = environments
        self._snapshots = snapshots
        self._scoring = scoring
        self._scorings = scorings
        self._executions = executions
        self._dialect = dialect
        self._secrets = secrets

    async def retrieve(self, run_id: str) -> ScenarioRunRecord:
        """Raises NotFound."""
        return await self._store.read(lambda db: SCENARIO_RUNS.get(db, run_id))

    async def page(self, filters: Filters, query: ListQuery) -> Page[ScenarioRunRecord]:
        """Scenario runs, newest first. Raises NotFound for an unknown `starting_after`."""
        return await self._store.read(lambda db: SCENARIO_RUNS.page(db, filters, query))

    async def start(self, request: start_request.StartRequest, key: str | None) -> ScenarioRunRecord:
        """Start a run and its devbox, once for each key. Raises NotFound, and BadRequest naming what is wrong."""

        def look(db: sqlite3.Connection) -> tuple[ScenarioRunRecord | None, RunProfile]:
            base = BENCHMARK_RUNS.get(db, request.benchmark_run_id).profile if request.benchmark_run_id else None
            return answered(db, key, ScenarioRunRecord), request.profile.over(base) if base else request.profile

        before, profile = await self._store.read(look)
        if before is not None:
            return before
        scenario = await start_request.scenario_of(self._definitions, request.definition_id)
        start_request.check_startable("Scenario", scenario, profile)
        secrets = start_request.secret_values(profile, self._secrets)
        run_id = SCENARIO_RUNS.new_id()
        labels = request.metadata if self._dialect.is_devbox_labelled else {}
        devbox = start_request.devbox_request(scenario, profile, run_id=run_id, name=request.name, labels=labels)

        def insert(db: sqlite3.Connection) -> ScenarioRunRecord:
            if request.benchmark_run_id:
                benchmark_run = BENCHMARK_RUNS.get(db, request.benchmark_run_id)
                if benchmark_run.state is not BenchmarkRunState.RUNNING:
                    words = f"is {benchmark_run.state}: no scenario can be started in it any more."
                    raise BadRequest(f"Benchmark run {benchmark_run.id} {words}")
                if scenario.id not in benchmark_run.scenario_ids:
                    raise BadRequest(f"Scenario {scenario.id} is not in benchmark run {benchmark_run.id}.")
            run = ScenarioRunRecord(
                id=run_id,
                scenario_id=scenario.id,
                **request.fields(profile),
                digest=scenario.digest,
                parts=scenario.parts,
                functions=[each["name"] for each in scenario.scoring_contract["scoring_function_parameters"]],
                planned=[StepTerms(name=each.name, min_reward=each.min_reward) for each in scenario.several.steps],
                strategy=scenario.several.strategy,
                benchmark_run_id=request.benchmark_run_id or None,
                devbox_id=self._fleet.insert(db, devbox).id,
                state=RunState.RUNNING,
                start_time_ms=now_ms(),
            )
            SCENARIO_RUNS.insert(db, run)
            return run

        with anyio.CancelScope(shield=True):
            run, is_new = await self._store.once(key, ScenarioRunRecord, insert)
            if is_new:
                self._fleet.boot_soon(run.devbox_id, self._prepare(scenario, run, secrets))
        return run

    def _prepare(
        self, scenario: start_request.ScenarioDefinition, run: ScenarioRunRecord, secrets: Mapping[str, str]
    ) -> Prepare:
        async def environment(preparation: Preparation) -> Prepared:
            start_request.check_unchanged(run, await start_request.scenario_of(self._definitions, scenario.id))
            return await start_request.environment_of(scenario, self._environments, self._snapshots, preparation)

        async def prepare(preparation: Preparation) -> Prepared:
            base = await start_request.outwait(partial(environment, preparation))
            binds = await self._scoring.binds(scenario.scoring_contract, is_image=base.image is not None)
            return replace(base, secrets=secrets, binds=(*base.binds, *binds))

        return prepare

    async def score(self, run_id: str) -> ScenarioRunRecord:
        """Start to score a run, unless it is scoring or scored already.

        Of several steps it is the one under way; one that no agent has begun is not scored. Raises NotFound, and
        BadRequest naming the state if the run is over or its devbox is not running. In a dialect without rescoring,
        that is every run that is not running.
        """

        def flip(db: sqlite3.Connection) -> tuple[ScenarioRunRecord, bool]:
            run = SCENARIO_RUNS.get(db, run_id)
            if not self._dialect.is_rescoring and run.state is not RunState.RUNNING:
                raise BadRequest(f"Scenario run {run_id} is {run.state}: only a running one can be scored.")
            if run.state in {RunState.SCORING, RunState.SCORED} or (run.steps and not run.is_step_begun):
                return run, False
            run = replaced(states.moved_run(run, RunState.SCORING), scoring_contract_result=None, failure_reason=None)
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
            states.settle_benchmark_run(db, run.benchmark_run_id)
            return run

        with anyio.CancelScope(shield=True):
            run = await self._store.write(change)
            self.ended(run)
        return run

    async def zip_logs(self, run_id: str) -> IO[bytes]:
        """Return an open temporary file at its start, which the caller closes. Raises NotFound."""

        def find(db: sqlite3.Connection) -> tuple[ScenarioRunRecord, DevboxRecord, list[ExecutionRecord]]:
            run = SCENARIO_RUNS.get(db, run_id)
            return run, DEVBOXES.get(db, run.devbox_id), EXECUTIONS.select(db, {"devbox_id": run.devbox_id})

        found = await self._store.read(find)
        return await anyio.to_thread.run_sync(partial(_zip, self._fleet.output, *found))

    def end_in(self, db: sqlite3.Connection, run: ScenarioRunRecord, state: RunState) -> ScenarioRunRecord:
        """Make sure that a run is in this state and its devbox ends, in the caller's transaction.

        Settling the benchmark run is left to the caller, as is `ended` after the commit. Raises BadRequest naming the
        run's state if it cannot come to that.
        """
        if run.state is not state:
            run = states.end_run(db, run, state)
        self._fleet.shutdown_in(db, run.devbox_id, "api_shutdown")
        return run

    def ended(self, run: ScenarioRunRecord) -> None:
        """Call after the commit of a run's end: stop its scoring, end its box.

        A sweep has collected what it wants to keep; what else was printed in the devbox may have its secrets.
        """
        self._scorings.stop(run.id)
        self._fleet.shutdown_soon(run.devbox_id)
        if SWEEP in run.metadata and run.state in {RunState.COMPLETED, RunState.CANCELED}:
            self._fleet.start_soon(self._executions.forget, run.devbox_id)


def _zip(
    output: Path, run: ScenarioRunRecord, devbox: DevboxRecord, executions: Sequence[ExecutionRecord]
) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("run.json", orjson.dumps(view(run), option=orjson.OPT_INDENT_2))
            archive.writestr("devbox.json", orjson.dumps(view(devbox), option=orjson.OPT_INDENT_2))
            entries = collect(output, devbox, executions, with_setup=True)
            archive.writestr("devbox.log.jsonl", b"".join(orjson.dumps(view(entry)) + b"\n" for entry in entries))
            for each in run.scoring_contract_result.scoring_function_results if run.scoring_contract_result else ():
                archive.writestr(f"scoring/{each.scoring_function_name}.txt", each.output)
            if left_out := _add_output(archive, output, executions):
                archive.writestr("LEFT-OUT.txt", left_out)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def _add_output(archive: zipfile.ZipFile, output: Path, executions: Sequence[ExecutionRecord]) -> str:
    """Add the output of commands, the newest first, as far as there is room; list the rest."""
    room, left_out = MAX_ZIPPED_BYTES, ""
    for execution in reversed(executions):
        for stream in STREAMS:
            path = spool_path(output, execution.devbox_id, execution.id, stream)
            size = path.stat().st_size if path.exists() else 0
            name = f"executions/{execution.id}.{stream}"
            if size > room:
                left_out += f"{name}: {size} bytes\n"
            elif size:
                room -= size
                with path.open("rb") as source, archive.open(name, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, _PIECE_BYTES)
    return left_out
