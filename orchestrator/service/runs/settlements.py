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

from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.definitions.scoring_plan import ScoringPlan
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.succession import EVIDENCE, PREPARED, SCRATCH, Mode, Settled, Succession
from orchestrator.service.errors import BadRequest
from orchestrator.service.runs.start_request import check_unchanged, outwait
from orchestrator.service.sandbox.provider import HOME, Command
from orchestrator.service.store import SCENARIO_RUNS, Document, Store, insist

DECLARED: Final = "declared"
#: Changed programs and start-up files that a run's record names; `changes.txt` has more.
SHOWN: Final = 20


class Settlements:
    """Marks where an agent begins, and settles what it left."""

    def __init__(self, *, store: Store, definitions: Definitions, fleet: Fleet) -> None:
        self._store = store
        self._definitions = definitions
        self._fleet = fleet

    async def mark(self, run_id: str) -> None:
        """The agent of a run begins: note how its devbox is. Raises NotFound, and BadRequest if that does not run."""
        run = await self._store.read(partial(SCENARIO_RUNS.get, identity=run_id))
        with self._fleet.boxes(run["devbox_id"]) as boxes:
            await boxes.mark()

    async def end(self, run_id: str, scoring: str) -> Document:
        """The agent of a run has ended: what was found, as the wire shows it. Idempotent.

        `scoring` is where its scorers are to run: a mode, or `declared`. Raises NotFound, and BadRequest for another
        word, and for a run or devbox that is over.
        """
        if scoring not in {DECLARED, *Mode}:
            raise BadRequest(f"scoring: expected one of {', '.join([DECLARED, *Mode])}, got {scoring!r}.")

        def note(db: sqlite3.Connection) -> Document:
            return SCENARIO_RUNS.update(db, run_id, {"_scoring_mode": scoring})

        run = await self._store.write(note)
        scenario = await outwait(partial(insist, partial(self._definitions.scenario, run["scenario_id"])))
        check_unchanged(run, scenario)
        with self._fleet.boxes(run["devbox_id"]) as boxes:
            settled = await self.settle(run, scenario, boxes)
        places = {"scratch": SCRATCH, "evidence": EVIDENCE, "prepared": PREPARED}
        return {**shown(settled), **(dict.fromkeys(places) if settled.changes is None else places)}

    async def settle(self, run: Document, scenario: Document, boxes: Succession) -> Settled:
        """Settle a run's devbox and keep what was found in its record. Raises BoxDied and BoxStartFailed.

        A run that was scored live and could not be judged is judged in a new box: nothing of the agent's runs there.
        """
        plan = plan_of(scenario)
        wanted = run.get("_scoring_mode", DECLARED)
        mode = Mode(plan.mode if wanted == DECLARED else wanted)
        is_live_over = bool(run.get("_is_live_over"))
        if mode is Mode.LIVE and is_live_over:
            mode = Mode.SHARED
        collect = _commands(plan) if mode is Mode.SEPARATE else ()
        with anyio.CancelScope(shield=True):
            settled = await boxes.settle(mode, collect, is_live_over=is_live_over)
            document = {**shown(settled), "was_live": is_live_over}
            await insist(
                lambda: self._store.write(lambda db: SCENARIO_RUNS.update(db, run["id"], {"scoring": document}))
            )
        run["scoring"] = document
        return settled


def crossing(plan: ScoringPlan) -> Mapping[str, Sequence[str]]:
    """What crosses to a separate scoring, the artifacts or else the working directory, with what in it does not."""
    if not plan.artifacts:
        return {plan.working_directory: ()}
    return {posixpath.join(plan.working_directory, each.source): each.exclude for each in plan.artifacts}


def _commands(plan: ScoringPlan) -> Sequence[tuple[Command, float]]:
    return [
        (Command(argv=("bash", "-c", each.command), environment={"HOME": HOME}), each.timeout) for each in plan.collect
    ]


def shown(settled: Settled) -> Document:
    """What was found, as the wire shows it; `system_changed` is null where nobody noted how the devbox had been."""
    return {
        "mode": str(settled.mode),
        "processes_left": dict(settled.left.names),
        "system_changed": None if settled.changes is None else list(settled.changes.system[:SHOWN]),
    }


def plan_of(scenario: Document) -> ScoringPlan:
    """What the scenario asks of its scoring."""
    plan: ScoringPlan = scenario["_scoring"]
    return plan


def note_broken(run: Document, words: Sequence[str]) -> None:
    """Note on a run that what its agent left broke the box it was judged in, in place."""
    if words:
        run["scoring"] = {**(run.get("scoring") or {}), "broken": "; ".join(words)}


def note_live_fault(run: Document) -> None:
    """Note on a run whose live scoring came to nothing that the next one is in a box without the agent, in place."""
    if (run.get("scoring") or {}).get("mode") == Mode.LIVE:
        run["_is_live_over"] = True
