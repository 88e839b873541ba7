"""The end of an agent's work in a scenario run: what it left is settled, and scored apart from its processes.

A client may name the place where scorers run; with `declared` the scenario's own setting counts, and without one they
run over the agent's files in a new box. A client that never reports the end of the agent reports it by asking for the
score.

Its secret: apart, each scoring function has a new box, so that what one of them started, with the agent's modules in
it, is gone before the next begins. Its scripts and test files are mounted read-only from the host, so that no code
under test can change them; /tests is a copy of its own, which tests may change as in Harbor. The score that they wrote
is read from the host when their box has ended.
"""

import io
import posixpath
import sqlite3
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Final

import anyio

from orchestrator.core.protocol import RUN_RESULT, RunState, ScoringMode
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.definitions.scoring_plan import ScoringPlan, Tests
from orchestrator.service.definitions.self_extracting import export
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.remains import make_executable, put, read
from orchestrator.service.devboxes.succession import (
    EVIDENCE,
    NOTHING,
    PREPARED,
    SCRATCH,
    Collecting,
    Settled,
    Succession,
)
from orchestrator.service.errors import BadRequest
from orchestrator.service.records import Record, ScenarioRunRecord, ScoringRecord
from orchestrator.service.runs import states
from orchestrator.service.runs.start_request import ScenarioDefinition, scenario_as_begun
from orchestrator.service.sandbox.folders import TESTS, VERIFIER
from orchestrator.service.sandbox.prepared import StepStart
from orchestrator.service.sandbox.provider import Bind, BoxDied, Command
from orchestrator.service.scoring.rewards import JSON_FILE, MAX_REWARD_BYTES, TEXT_FILE
from orchestrator.service.scoring.scoring import EMPTIED, BrokenByTested, Program, bash, mode_of, watch
from orchestrator.service.scoring.verdict import Ended, judge_rewards
from orchestrator.service.store import SCENARIO_RUNS, Store, insist

DECLARED: Final = "declared"
#: Changed programs and start-up files that a run's record names; `changes.txt` has more.
SHOWN: Final = 20
#: Places in a scoring box: of what tests print, and of what a scorer is given.
STDOUT: Final = f"{VERIFIER}/test-stdout.txt"
_SCRIPTS: Final = "/run/scorer"
#: Below a folder of the box that no agent can foresee: byte code and packages that it left are not taken for others.
_CACHES: Final = {
    "PYTHONPYCACHEPREFIX": "python",
    "PIP_CACHE_DIR": "pip",
    "UV_CACHE_DIR": "uv",
    "npm_config_cache": "npm",
}


class SettlementView(Record, frozen=True, kw_only=True):
    """The end of an agent as the wire shows it; the last four are null if the devbox was not noted before it began."""

    mode: ScoringMode
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
        self._beginning: dict[str, anyio.Lock] = {}

    async def begin(self, run_id: str) -> None:
        """Make a run's devbox ready for the step under way, if it has several, and note its state: an agent begins.

        A step is begun once. One that cannot begin on what the agent left is scored with 0, if it can without that.
        Raises NotFound; BadRequest if it does not run, or for what failed.
        """
        async with self._beginning.setdefault(run_id, anyio.Lock()):
            run = await self._store.read(partial(SCENARIO_RUNS.get, identity=run_id))
            if run.state in RUN_RESULT:
                raise BadRequest(f"Scenario run {run_id} is {run.state}: no agent begins in it.")
            is_new = bool(run.planned) and not run.is_step_begun
            if is_new:
                scenario, number = await scenario_as_begun(self._definitions, run), len(run.steps or ())
                starts = [step.start for step in scenario.several.steps[: number + 1]]
                try:
                    await self._fleet.begin_step(run.devbox_id, starts[number], is_first=number == 0)
                except BadRequest as error:
                    if number == 0 or not await self._fleet.can_begin(run.devbox_id, starts):
                        raise
                    await self._begin_again(run, starts[number], error)
            with self._fleet.boxes(run.devbox_id) as boxes:
                await boxes.mark()
            if is_new:
                change = partial(SCENARIO_RUNS.update, identity=run_id, changes={"is_step_begun": True})
                await insist(partial(self._store.write, change))
            self._beginning.pop(run_id, None)

    async def _begin_again(self, run: ScenarioRunRecord, start: StepStart, before: BadRequest) -> None:
        """Begin a step that failed `before`; if it does again, that is its agent's doing. Raises BadRequest then."""

        def end(db: sqlite3.Connection) -> None:
            found = SCENARIO_RUNS.get(db, run.id)
            if found.state is RunState.RUNNING:
                how = "The step can begin in a new devbox, but not after what was done in this one"
                states.end_broken(db, found, f"{how}: {before.message}")

        try:
            await self._fleet.begin_step(run.devbox_id, start, is_first=True)
        except BadRequest:
            await insist(partial(self._store.write, end))
            raise

    async def end(
        self, run_id: str, scoring: str, *, exit_status: int | None, kept: str | None = None
    ) -> SettlementView:
        """Settle the devbox of a run whose agent has ended; return what was found. Idempotent.

        `scoring` is where its scorers are to run: a mode, or `declared`. `exit_status`, the agent's, is only passed on.
        `kept` is a folder in the devbox with what crossed to an earlier scoring, as in `Succession.settle`. Raises
        NotFound, and BadRequest for another word, and for a run or devbox that is over.
        """
        if scoring not in {DECLARED, *ScoringMode}:
            raise BadRequest(f"scoring: expected one of {', '.join([DECLARED, *ScoringMode])}, got {scoring!r}.")
        run = await self._store.write(lambda db: SCENARIO_RUNS.update(db, run_id, {"scoring_mode": scoring}))
        scenario = await scenario_as_begun(self._definitions, run)
        with self._fleet.boxes(run.devbox_id) as boxes:
            settled = await self.settle(run, scenario, boxes, kept=kept)
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

    async def settle(
        self, run: ScenarioRunRecord, scenario: ScenarioDefinition, boxes: Succession, *, kept: str | None = None
    ) -> Settled:
        """Settle a run's devbox and keep what was found in its record. Raises BoxDied and BoxStartFailed.

        A run that was scored live and could not be judged is judged in a new box: nothing of the agent's runs there.
        Scorers with an environment of their own run nowhere else, whatever a client wants.
        """
        plan, wanted = scenario.plan, run.scoring_mode
        mode = plan.mode if wanted is None or wanted == DECLARED or plan.environment else ScoringMode(wanted)
        if mode is ScoringMode.LIVE and run.is_live_over:
            mode = ScoringMode.SHARED
        collect = [
            Collecting(script=each.command, timeout=each.timeout, user=each.user or None)
            for each in (plan.collect if mode is ScoringMode.SEPARATE else ())
        ]
        artifacts = crossing(plan, boxes.working_directory) if plan.artifacts else NOTHING
        with anyio.CancelScope(shield=True):
            settled = await boxes.settle(mode, collect, artifacts, kept=kept, is_live_over=run.is_live_over)
            scoring = ScoringRecord(
                mode=settled.mode,
                processes_left=settled.left.names,
                system_changed=_system_changed(settled),
                was_live=run.is_live_over,
            )

            def note(db: sqlite3.Connection) -> None:
                state = SCENARIO_RUNS.get(db, run.id).state
                if states.RUN_MOVES[state] and state not in RUN_RESULT:  # what has ended stays as it was answered
                    SCENARIO_RUNS.update(db, run.id, {"scoring": scoring})

            await insist(partial(self._store.write, note))
        return settled


def _system_changed(settled: Settled) -> Sequence[str] | None:
    return None if settled.changes is None else settled.changes.system[:SHOWN]


def crossing(plan: ScoringPlan, working_directory: str) -> Mapping[str, Sequence[str]]:
    """Return what crosses to a separate scoring, artifacts or else the working directory, with what in it does not.

    To an environment of the verifier's own, nothing crosses but artifacts.
    """
    if not plan.artifacts:
        return {} if plan.environment is not None else {working_directory: ()}
    found: dict[str, Sequence[str]] = {}
    for each in plan.artifacts:
        path = posixpath.normpath(posixpath.join(working_directory, each.source))
        # What two artifacts name crosses if one of them has it.
        found[path] = [pattern for pattern in each.exclude if path not in found or pattern in found[path]]
    return found


def tests_program(tests: Tests, tools: str | None) -> Program:
    """Make the program of a scenario whose scorer is its tests/, run in the working directory."""
    exports = "".join(f"{export(name, value)}\n" for name, value in tests.variables.items())
    return Program(
        argv=bash(tools),
        script=f"{exports}{TESTS}/{tests.program}\n",
        reads=tuple(f"{VERIFIER}/{name}" for name in (JSON_FILE, TEXT_FILE)),
        judge=judge_rewards,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """A `Place` over what an agent left. `folder` is empty and on the host, for what scorers are given.

    `binds` are what the contract's scorers need, `variables` those that the scenario asks whoever runs it for.
    """

    boxes: Succession
    plan: ScoringPlan
    folder: Path
    binds: Sequence[Bind]
    variables: Mapping[str, str]
    _numbers: Iterator[int] = field(default_factory=count)

    @property
    def id(self) -> str:
        return self.boxes.agents.id

    @property
    def tools(self) -> str | None:
        return self.boxes.tools

    def path(self, path: str) -> str:
        return path

    async def stop(self) -> None:
        await self.boxes.stop()

    async def run(self, program: Program, *, timeout: float) -> Ended:
        place = self.folder / str(next(self._numbers))
        try:
            given, tests = await anyio.to_thread.run_sync(self._give, program, place)
        except OSError as error:
            raise BadRequest(f"its files could not be put in place: {error}") from error
        argv = (*program.argv, f"{_SCRIPTS}/script") if program.script is not None else tuple(program.argv)
        caches = f"/tmp/.cache-{token_hex(8)}"  # noqa: S108 - of the box
        fresh = {name: f"{caches}/{folder}" for name, folder in _CACHES.items()}
        environment = {**EMPTIED, **fresh, **program.environment}
        command = Command(argv=argv, cwd=self.boxes.scorers_directory, environment=environment)
        async with self.boxes.scoring_box((*self.binds, *given), self.variables, tests=tests) as box:
            try:
                ended = await watch(box, command, timeout=timeout)
            except BoxDied as error:
                await box.wait_dead()
                if box.is_broken_from_inside:
                    raise BrokenByTested(f"what was judged broke the box that judged it: {error.message}") from error
                raise
        return await anyio.to_thread.run_sync(partial(self._read, program, ended))

    def _give(self, program: Program, place: Path) -> tuple[Sequence[Bind], Path | None]:
        """Lay out what a program is given, and the folder of its tests; put its test files in their places."""
        binds: list[Bind] = []
        unpacked: Path | None = None
        _folder(place)
        if program.script is not None:
            _folder(place / "scorer")
            _file(place / "scorer/script", program.script.encode(), 0o644)
            binds.append(Bind(source=place / "scorer", target=_SCRIPTS))
        tests = self.plan.tests
        if tests is not None and tests.archive is None:
            make_executable(self.boxes.files, f"{TESTS}/{tests.program}")
        elif tests is not None and tests.archive is not None:
            unpacked = place / "tests"
            _folder(unpacked)
            with tarfile.open(fileobj=io.BytesIO(tests.archive), mode="r:gz") as tar:
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(unpacked)  # noqa: S202 - of our own making, without a path that climbs
            for each in unpacked.rglob("*"):
                if each.is_dir() and not each.is_symlink():
                    each.chmod(0o755)  # for everybody to enter, whatever our umask
        for number, file in enumerate(program.files):
            contents = file.file_contents or ""
            target = posixpath.join(self.boxes.scorers_directory, file.file_path)
            target = put(self.boxes.files, target, contents.encode(), mode_of(contents))
            _file(place / f"file-{number}", contents.encode(), mode_of(contents))
            binds.append(Bind(source=place / f"file-{number}", target=target))
        return binds, unpacked

    def _read(self, program: Program, ended: Ended) -> Ended:
        if not program.reads:
            return ended
        if read(self.boxes.files, STDOUT, 1) is None:
            put(self.boxes.files, STDOUT, ended.output.encode(), 0o644)
        return replace(
            ended, files={path: read(self.boxes.files, path, MAX_REWARD_BYTES + 1) for path in program.reads}
        )


def _folder(place: Path) -> None:
    place.mkdir(parents=True)
    place.chmod(0o755)


def _file(place: Path, data: bytes, mode: int) -> None:
    place.write_bytes(data)
    place.chmod(mode)
