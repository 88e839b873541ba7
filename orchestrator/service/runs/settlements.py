"""The end of an agent's work in a scenario run: where its scorers will run, and what the run's record says of that.

Its secret: `declared`. Whoever runs the scenario may say where scorers run; else the scenario's own word counts, and
where it has none, they run over the agent's files in a new box. Who never says that the agent has ended says it by
asking for the score.
"""

import posixpath
import sqlite3
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import anyio
from msgspec.structs import replace

from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.definitions.scoring_plan import ScoringPlan
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.succession import EVIDENCE, PREPARED, SCRATCH, Mode, Settled, Succession
from orchestrator.service.errors import BadRequest
from orchestrator.service.records import Record, ScenarioRunRecord, ScoringRecord
from orchestrator.service.runs.start_request import ScenarioDefinition, check_unchanged, outwait, scenario_of
from orchestrator.service.runs.states import RUN_MOVES
from orchestrator.service.sandbox.provider import HOME, Command
from orchestrator.service.store import SCENARIO_RUNS, Store, insist

DECLARED: Final = "declared"
#: Changed programs and start-up files that a run's record names; `changes.txt` has more.
SHOWN: Final = 20


class SettlementView(Record, frozen=True, kw_only=True):
    """The end of an agent as the wire shows it; the last four are null where nobody noted how the devbox had been."""

    mode: Mode
    processes_left: Mapping[str, int]
    exit_status: int | None
    system_changed: Sequence[str] | None
    scratch: str | None
    evidence: str | None
    prepared: str | None


class Settlements:
    """Marks where an agent begins, and settles what it left."""

    def __init__(self, *, store: Store, definitions: Definitions, fleet: Fleet) -> None:
        self._store = store
        self._definitions = definitions
        self._fleet = fleet

    async def mark(self, run_id: str) -> None:
        """The agent of a run begins: note how its devbox is. Raises NotFound, and BadRequest if that does not run."""
        run = await self._store.read(partial(SCENARIO_RUNS.get, identity=run_id))
        with self._fleet.boxes(run.devbox_id) as boxes:
            await boxes.mark()

    async def end(self, run_id: str, scoring: str, *, exit_status: int | None) -> SettlementView:
        """Settle the devbox of a run whose agent has ended; return what was found. Idempotent.

        `scoring` is where its scorers are to run: a mode, or `declared`. `exit_status`, the agent's, is only passed on.
        Raises NotFound, and BadRequest for another word, and for a run or devbox that is over.
        """
        if scoring not in {DECLARED, *Mode}:
            raise BadRequest(f"scoring: expected one of {', '.join([DECLARED, *Mode])}, got {scoring!r}.")
        run = await self._store.write(lambda db: SCENARIO_RUNS.update(db, run_id, {"scoring_mode": scoring}))
        scenario = await outwait(partial(insist, partial(scenario_of, self._definitions, run.scenario_id)))
        check_unchanged(run, scenario)
        with self._fleet.boxes(run.devbox_id) as boxes:
            settled = await self.settle(run, scenario, boxes)
        is_noted = settled.changes is not None
        return SettlementView(
            mode=settled.mode,
            processes_left=settled.left.names,
            exit_status=exit_status,
            system_changed=_system_changed(settled),
            scratch=SCRATCH if is_noted else None,
            evidence=EVIDENCE if is_noted else None,
            prepared=PREPARED if is_noted else None,
        )

    async def settle(self, run: ScenarioRunRecord, scenario: ScenarioDefinition, boxes: Succession) -> Settled:
        """Settle a run's devbox and keep what was found in its record. Raises BoxDied and BoxStartFailed.

        A run that was scored live and could not be judged is judged in a new box: nothing of the agent's runs there.
        """
        plan, wanted = scenario.plan, run.scoring_mode
        mode = Mode(plan.mode if wanted in {None, DECLARED} else wanted)
        if mode is Mode.LIVE and run.is_live_over:
            mode = Mode.SHARED
        collect = [
            (Command(argv=("bash", "-c", each.command), environment={"HOME": HOME}), each.timeout)
            for each in (plan.collect if mode is Mode.SEPARATE else ())
        ]
        with anyio.CancelScope(shield=True):
            settled = await boxes.settle(mode, collect, is_live_over=run.is_live_over)
            scoring = ScoringRecord(
                mode=settled.mode,
                processes_left=settled.left.names,
                system_changed=_system_changed(settled),
                was_live=run.is_live_over,
            )

            def note(db: sqlite3.Connection) -> None:
                if RUN_MOVES[SCENARIO_RUNS.get(db, run.id).state]:  # what has ended stays as it was answered
                    SCENARIO_RUNS.update(db, run.id, {"scoring": scoring})

            await insist(partial(self._store.write, note))
        return settled


def _system_changed(settled: Settled) -> Sequence[str] | None:
    return None if settled.changes is None else settled.changes.system[:SHOWN]


def crossing(plan: ScoringPlan) -> Mapping[str, Sequence[str]]:
    """Return what crosses to a separate scoring, artifacts or else the working directory, with what in it does not."""
    if not plan.artifacts:
        return {plan.working_directory: ()}
    return {posixpath.join(plan.working_directory, each.source): each.exclude for each in plan.artifacts}


def with_broken(run: ScenarioRunRecord, words: Sequence[str]) -> ScenarioRunRecord:
    """Note on a run that what its agent left broke the box it was judged in."""
    return replace(run, scoring=replace(run.scoring or ScoringRecord(), broken="; ".join(words))) if words else run


def with_live_fault(run: ScenarioRunRecord) -> ScenarioRunRecord:
    """Note on a run whose live scoring came to nothing that the next one is in a box without the agent."""
    return replace(run, is_live_over=True) if run.scoring and run.scoring.mode == Mode.LIVE else run
