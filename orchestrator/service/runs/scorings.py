"""Scenario runs being scored, each a task of its own that outlives the request which asked for it.

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

from orchestrator.service.compatibility import Dialect
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.succession import Mode, Succession
from orchestrator.service.errors import ServiceError
from orchestrator.service.runs import benchmark_score
from orchestrator.service.runs.separate_scoring import Apart, tests_program
from orchestrator.service.runs.settlements import Settlements, crossing, note_broken, note_live_fault, plan_of
from orchestrator.service.runs.start_request import check_unchanged, outwait
from orchestrator.service.runs.states import RunState, move_run
from orchestrator.service.sandbox.provider import BoxDied
from orchestrator.service.sandbox.safe_fs import remove
from orchestrator.service.scoring.scorers import InPlace, Place, Program
from orchestrator.service.scoring.scoring import Scoring
from orchestrator.service.scoring.verdict import blamed, faults
from orchestrator.service.store import SCENARIO_RUNS, Document, Store, insist

DEFAULT_TIMEOUT: Final = 1800
#: Seconds that scorings get to finish when the service ends.
GRACE: Final = 5.0
#: Seconds in which scorers that fail again must end once more, without what the agent left and with it: who waits for
#: the score waits no longer than a minute or two beyond their own time.
CONTROL: Final = 50.0
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
        dialect: Dialect,
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
        await anyio.to_thread.run_sync(self._clear)
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        await self.wait_idle(GRACE)
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(kind, error, trace)

    def _clear(self) -> None:
        """What an earlier service left goes."""
        remove(self._folder)
        self._folder.mkdir(mode=0o700)

    async def wait_idle(self, timeout: float) -> None:
        """Wait until nothing is being scored, even while being cancelled, but no longer than `timeout` seconds."""
        with anyio.move_on_after(timeout, shield=True):
            while self._scopes:
                self._change = anyio.Event()
                await self._change.wait()

    def start_soon(self, run: Document) -> None:
        """Score a run whose move to `scoring` is committed."""
        scope = self._scopes[run["id"]] = anyio.CancelScope()
        self._tasks.start_soon(self._score, run, scope)

    def stop(self, run_id: str) -> None:
        """Stop scoring a run, if it is being scored; its state is the caller's business."""
        if scope := self._scopes.get(run_id):
            scope.cancel()

    async def _score(self, run: Document, scope: anyio.CancelScope) -> None:
        log = structlog.get_logger().bind(run=run["id"], devbox=run["devbox_id"])
        try:
            with scope:
                log.info("scoring.started")
                result, reason = await self._result(run)
                await self._finish(run["id"], result, reason)
                log.info("scoring.ended", score=(result or {}).get("score"), reason=reason)
        finally:
            if self._scopes.get(run["id"]) is scope:
                del self._scopes[run["id"]]
            self._change.set()

    async def _result(self, run: Document) -> tuple[Document | None, str | None]:
        """The result of the scoring contract, and why the scoring failed if it did. Never raises for a fault.

        Contract and scripts are of one reading, whose digest is that of the very bytes in them: what changes afterwards
        changes nothing.
        """

        async def custom(scorer_type: str) -> str | None:
            return scripts.get(scorer_type)

        try:
            scenario = await outwait(partial(insist, partial(self._definitions.scenario, run["scenario_id"])))
            check_unchanged(run, scenario)
            scripts: dict[str, str] = scenario["_scorers"]
            contract, timeout = scenario["scoring_contract"], scenario.get("scorer_timeout_sec") or DEFAULT_TIMEOUT
            with self._fleet.boxes(run["devbox_id"]) as boxes:
                async with self._place(run, scenario, boxes) as (place, tests):
                    score = partial(self._scoring.score, contract, place, custom=custom, tests=tests)
                    result = await score(timeout=timeout)
                    if faults(result) and run.get("_faults") and isinstance(place, Apart):
                        result = await self._tried_again(result, score, timeout, boxes)
                await _need_whole(boxes)
        except ServiceError as error:
            return None, error.message
        except Exception as error:  # noqa: BLE001 - one scoring's trouble is not the service's
            structlog.get_logger().exception("scoring.crashed", run=run["id"])
            return None, f"The service could not score: {type(error).__name__}: {error}"
        for each in result["scoring_function_results"]:
            each.pop("_is_own", None)
        return result, _fault(result) if self._dialect.is_error_failure else None

    async def _tried_again(
        self, result: Document, score: Callable[..., Awaitable[Document]], timeout: float, boxes: Succession
    ) -> Document:
        """Learn whose fault it is that scorers fail again: the agent's, if they work without what it left.

        Who hangs twice is not waited for once more; and who is cut off here before its own time is over is not blamed.
        """
        limit = min(timeout, CONTROL)
        async with boxes.untouched():
            control = await score(timeout=limit)
        if set(faults(result)) & set(faults(control)):
            return result
        if _longest_fault(result) >= timeout - 1:
            return blamed(result, control)
        await boxes.empty_verifier()
        again = await score(timeout=limit)
        return result if limit < timeout and _longest_fault(again) >= limit - 1 else blamed(again, control)

    @asynccontextmanager
    async def _place(
        self, run: Document, scenario: Document, boxes: Succession
    ) -> AsyncIterator[tuple[Place, Program | None]]:
        """Where the run's scorers run, and the program of tests/ where there is a box of its own for it."""
        in_place = InPlace(box=boxes.agents, working_directory=IN_PLACE)
        if not self._dialect.is_scored_apart:
            yield in_place, None
            return
        settled = await self._settlements.settle(run, scenario, boxes)
        if settled.mode is Mode.LIVE:
            yield in_place, None
            return
        plan = plan_of(scenario)
        folder = await anyio.to_thread.run_sync(partial(tempfile.mkdtemp, prefix="scoring-", dir=self._folder))
        try:
            await boxes.lay_out(settled.mode, crossing(plan))
            place = Apart(
                boxes=boxes,
                plan=plan,
                folder=Path(folder),
                binds=await self._scoring.binds(scenario["scoring_contract"]),
                variables=scenario.get("required_environment_variables") or (),
            )
            yield place, None if plan.tests is None else tests_program(plan.tests)
            await boxes.show()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(remove, Path(folder))

    async def _finish(self, run_id: str, result: Document | None, reason: str | None) -> None:
        """Note how the scoring ended, however long the disk refuses; not on a run that ended meanwhile."""

        def finish(db: sqlite3.Connection) -> None:
            run = SCENARIO_RUNS.get(db, run_id)
            if run["state"] != RunState.SCORING:
                return
            if result is not None:
                run["scoring_contract_result"] = result
                note_broken(run, [each["broken"] for each in result["scoring_function_results"] if "broken" in each])
            if reason:
                run["_faults"] = run.get("_faults", 0) + 1
                note_live_fault(run)
            end_run(db, run, RunState.FAILED if reason else RunState.SCORED, reason)
            benchmark_score.settle(db, run.get("benchmark_run_id"))

        await insist(partial(self._store.write, finish))


async def _need_whole(boxes: Succession) -> None:
    """Raise BoxDied where what the scorers looked at was removed under them."""
    if not await boxes.is_whole():
        raise BoxDied(f"devbox {boxes.agents.id}: its files were removed from the host")


def _longest_fault(result: Document) -> float:
    """Seconds of the slowest function in error."""
    functions, wrong = result["scoring_function_results"], faults(result)
    return max((each["seconds"] for each in functions if each["scoring_function_name"] in wrong), default=0.0)


def end_run(db: sqlite3.Connection, run: Document, state: RunState, reason: str | None = None) -> None:
    """Move a run and keep it, in the caller's transaction. Raises BadRequest naming the state."""
    move_run(run, state)
    if reason:
        run["failure_reason"] = reason
    SCENARIO_RUNS.put(db, run)


def _fault(result: Document) -> str | None:
    names = ", ".join(faults(result))
    return f"Scoring function {names} ended in an error; its output says how." if names else None
