"""Scorings of scenario runs, each a task of its own that outlives the request which asked for it.

Why the result is not sent with the answer to `score`: scorers may take half an hour, requests thirty seconds.
"""

import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import structlog
from msgspec.structs import replace

from orchestrator.core.protocol import RunState, ScoringMode
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.succession import Succession
from orchestrator.service.errors import ServiceError
from orchestrator.service.records import ContractResult, ScenarioRunRecord
from orchestrator.service.runs import states
from orchestrator.service.runs.settlements import Apart, Settlements, crossing, tests_program
from orchestrator.service.runs.start_request import ScenarioDefinition, scenario_as_begun
from orchestrator.service.sandbox.safe_fs import remove
from orchestrator.service.scoring.scoring import InPlace, Place, Program, Scoring
from orchestrator.service.scoring.verdict import blamed
from orchestrator.service.store import SCENARIO_RUNS, Store, insist

DEFAULT_TIMEOUT_S: Final = 1800
#: Time that scorings get to finish when the service ends.
GRACE_S: Final = 5.0
#: Time in which scorers that fail again must end once more, without what the agent left and with it: a client that
#: waits for the score waits no longer than a minute or two beyond their own time.
CONTROL_TIMEOUT_S: Final = 50.0
#: The box's own working directory, which it was booted with: the scenario's.
IN_PLACE: Final = "."


class Scorings:
    """Use it as a context around the fleet's: when it ends, the boxes have ended, and with them what was scored."""

    def __init__(
        self,
        *,
        store: Store,
        definitions: Definitions,
        fleet: Fleet,
        scoring: Scoring,
        settlements: Settlements,
        dialect: states.Dialect,
        folder: Path,
    ) -> None:
        """`folder` is on the host, for what scorers are given."""
        self._settlements = settlements
        self._folder = folder
        self._store = store
        self._definitions = definitions
        self._fleet = fleet
        self._scoring = scoring
        self._dialect = dialect
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._change = anyio.Event()
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(remove, self._folder)  # an earlier service's
        self._folder.mkdir(mode=0o700)
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        await self.wait_idle(GRACE_S)
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(kind, error, trace)

    async def wait_idle(self, timeout: float) -> None:
        """Wait until nothing is being scored, even while being cancelled, but no longer than `timeout` seconds."""
        with anyio.move_on_after(timeout, shield=True):
            while self._scopes:
                self._change = anyio.Event()
                await self._change.wait()

    def start_soon(self, run: ScenarioRunRecord) -> None:
        """Score a run whose move to `scoring` is committed."""
        scope = self._scopes[run.id] = anyio.CancelScope()
        self._tasks.start_soon(self._score, run, scope)

    def stop(self, run_id: str) -> None:
        """Stop scoring a run, if it is being scored; its state is the caller's business."""
        if scope := self._scopes.get(run_id):
            scope.cancel()

    async def _score(self, run: ScenarioRunRecord, scope: anyio.CancelScope) -> None:
        log = structlog.get_logger().bind(run=run.id, devbox=run.devbox_id)
        try:
            with scope:
                log.info("scoring.started")
                result, reason = await self._result(run)
                await self._finish(run.id, result, reason)
                log.info("scoring.ended", score=result.score if result else None, reason=reason)
        finally:
            if self._scopes.get(run.id) is scope:
                del self._scopes[run.id]
            self._change.set()

    async def _result(self, run: ScenarioRunRecord) -> tuple[ContractResult | None, str | None]:
        """Return the result of the scoring contract, and why the scoring failed if it did. Never raises for a fault.

        A step without tests has neither.

        Contract and scripts are of one reading, whose digest is that of the very bytes in them: what changes afterwards
        changes nothing.
        """

        async def custom(scorer_type: str) -> str | None:
            return scenario.scripts.get(scorer_type)

        try:
            scenario = await scenario_as_begun(self._definitions, run)
            contract, timeout = scenario.scoring_contract, scenario.scorer_timeout_sec or DEFAULT_TIMEOUT_S
            with self._fleet.boxes(run.devbox_id) as boxes:
                if not contract["scoring_function_parameters"]:
                    await self._settlements.settle(run, scenario, boxes)
                    return None, None
                async with self._place(run, scenario, boxes) as (place, tests):
                    score = partial(self._scoring.score, contract, place, custom=custom, tests=tests)
                    result = await score(timeout=timeout)
                    if result.faults() and run.faults and isinstance(place, Apart):
                        result = await self._tried_again(result, score, timeout, boxes)
                await boxes.need_whole()
        except ServiceError as error:
            return None, error.message
        except Exception as error:  # noqa: BLE001 - one scoring's trouble is not the service's
            structlog.get_logger().exception("scoring.crashed", run=run.id)
            return None, f"The service could not score: {type(error).__name__}: {error}"

        kept = [replace(each, is_own=False) for each in result.scoring_function_results]
        names = ", ".join(result.faults()) if self._dialect.is_error_failure else ""
        reason = f"Scoring function {names} ended in an error; its output says how." if names else None
        return replace(result, scoring_function_results=kept), reason

    async def _tried_again(
        self,
        result: ContractResult,
        score: Callable[..., Awaitable[ContractResult]],
        timeout: float,
        boxes: Succession,
    ) -> ContractResult:
        """Find out why scorers fail again: it is the agent's fault if they work without what it left.

        A scorer that hangs twice is not run a third time; one that is cut off here before its own time is not blamed.
        """
        limit = min(timeout, CONTROL_TIMEOUT_S)
        async with boxes.untouched():
            control = await score(timeout=limit)
        if set(result.faults()) & set(control.faults()):
            return result
        if _longest_fault(result) >= timeout - 1:
            return blamed(result, control)
        await boxes.empty_verifier()
        again = await score(timeout=limit)
        return result if limit < timeout and _longest_fault(again) >= limit - 1 else blamed(again, control)

    @asynccontextmanager
    async def _place(
        self, run: ScenarioRunRecord, scenario: ScenarioDefinition, boxes: Succession
    ) -> AsyncIterator[tuple[Place, Program | None]]:
        """Make the place where the run's scorers run; with the program of tests/ where it has a box of its own."""
        given = {**boxes.spec.environment, **(run.environment_variables or {})}
        variables = scenario.scorers_variables(given)
        in_place = InPlace(box=boxes.agents, working_directory=IN_PLACE, variables=variables)
        if not self._dialect.is_scored_apart:
            yield in_place, None
            return
        settled = await self._settlements.settle(run, scenario, boxes)
        if settled.mode is ScoringMode.LIVE:
            yield in_place, None
            return
        plan = scenario.plan
        folder = await anyio.to_thread.run_sync(partial(tempfile.mkdtemp, prefix="scoring-", dir=self._folder))
        try:
            crossed, is_copied = crossing(plan, boxes.working_directory), bool(scenario.several.steps)
            await boxes.lay_out(settled.mode, crossed, is_copied=is_copied, step=len(run.steps or ()))
            place = Apart(
                boxes=boxes,
                plan=plan,
                folder=Path(folder),
                binds=await self._scoring.binds(scenario.scoring_contract, is_image=boxes.tools is not None),
                variables=variables,
            )
            yield place, None if plan.tests is None else tests_program(plan.tests, boxes.tools)
            if len(scenario.scoring_contract["scoring_function_parameters"]) > 1:
                await boxes.note_judged()
                await self._settlements.settle(run, scenario, boxes)
            await boxes.show()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(remove, Path(folder))

    async def _finish(self, run_id: str, result: ContractResult | None, reason: str | None) -> None:
        """Note how the scoring ended, however long the disk refuses; not on a run that ended meanwhile."""

        def finish(db: sqlite3.Connection) -> None:
            run = SCENARIO_RUNS.get(db, run_id)
            if run.state is not RunState.SCORING:
                return
            results = result.scoring_function_results if result is not None else ()
            run = states.with_broken(run, [each.broken for each in results if each.broken])
            if reason:  # after a live scoring that came to nothing, the next one is in a box without the agent
                was_live = run.scoring is not None and run.scoring.mode == ScoringMode.LIVE
                run = replace(run, faults=run.faults + 1, is_live_over=run.is_live_over or was_live)
                states.end_run(db, replace(run, scoring_contract_result=result), RunState.FAILED, reason)
            else:
                SCENARIO_RUNS.put(db, states.judged(run, result))
            states.settle_benchmark_run(db, run.benchmark_run_id)

        await insist(partial(self._store.write, finish))


def _longest_fault(result: ContractResult) -> float:
    """Return the seconds of the slowest function in error."""
    wrong = result.faults()
    slow = [each.seconds or 0.0 for each in result.scoring_function_results if each.scoring_function_name in wrong]
    return max(slow, default=0.0)
