"""What the page of a trial shows: its result or where it is, the files of an attempt, and what the agent did.

Everything comes from the folder of one attempt, or of a step of it. What is missing is left out: files may be gone.
"""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from orchestrator.core.errors import UsageError
from orchestrator.core.ledger import Attempt, Trial
from orchestrator.core.plan import trials_of
from orchestrator.core.records import Flag, TrialKey
from orchestrator.rundir.files import AGENT_LOG, open_regular
from orchestrator.rundir.recorded import RecordedSweep, SweepState
from orchestrator.rundir.results_file import Row
from orchestrator.rundir.sweep_index import as_typed, trial_as_typed
from orchestrator.view.report import SOLVED
from orchestrator.view.web.markup import SHOWN_BYTES, Piece, log_markup, patch_markup, read_piece, visible
from orchestrator.view.web.templates import environment

#: Turns of a trajectory on one page, and characters of a message, a call or a result that are shown.
TURNS: Final = 100
TURN_WIDTH: Final = 8000
#: Files that are listed, and bytes of a trajectory that is read.
MAX_FILES: Final = 500
MAX_TRAJECTORY: Final = 64 << 20
#: The end of a scorer's log that is shown.
SCORER_BYTES: Final = 1 << 14
#: The parts of the page that change live, each a macro of `_trial.html`.
PARTS: Final = ("head", "work", "conversation", "facts", "files")
PATCH, CHANGES, TRAJECTORY = "patch.diff", "changes.txt", "trajectory.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """The trial to show, and the part of it; None is the newest attempt, and the last step."""

    key: TrialKey
    attempt: int | None = None
    step: str | None = None
    turn: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """Another trial, with a word for what became of it."""

    key: TrialKey
    label: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """A stage of an attempt: seconds at work and waiting; `x` and `width` are percents of them all."""

    name: str
    seconds: float
    waited: float
    x: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerView:
    """A scorer's verdict, and the end of what it printed; None without such a file."""

    name: str
    score: float | None
    state: str
    log: Piece | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a tool and its results."""

    name: str
    arguments: Markup
    results: Sequence[Markup]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A turn of a trajectory. `seconds` are since the turn before; None is unknown."""

    number: int
    source: str
    message: Markup
    reasoning: Markup
    calls: Sequence[Call]
    tokens: int | None
    cost: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Some turns of a trajectory, from number `first` on, of `count`."""

    turns: Sequence[Turn]
    first: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialView:
    """The page of a trial. `row` is its result, or that of the chosen step; None where there is none."""

    query: Query
    scenario: str
    trial: Trial | None
    under_way: Attempt | None
    row: Row | None
    attempts: Sequence[Mapping[str, Any]]
    number: int
    steps: Sequence[str]
    step: str | None
    flags: Sequence[tuple[str, str]]
    stages: Sequence[StageTime]
    scorers: Sequence[ScorerView]
    patch: Markup
    patch_size: int
    changes: Markup
    conversation: Conversation | None
    files: Sequence[tuple[str, int]]
    commands: Sequence[tuple[str, str]]
    siblings: Sequence[Neighbour]
    is_over: bool


def find_trial(sweep: RecordedSweep, query: Query) -> Query:
    """The query with the scenario's id, which may be given by name. Raises UsageError if there is no such trial."""
    wanted = query.key
    (key,) = trials_of(sweep.plan, wanted.scenario, arm=wanted.arm, number=wanted.number)
    return Query(key=key, attempt=query.attempt, step=query.step, turn=query.turn)


def place_of(sweep: RecordedSweep, query: Query) -> Path:
    """The folder of the attempt, or of the step of it, that a query asks for."""
    trial = sweep.ledger.trials.get(query.key)
    number = query.attempt or (trial.attempts if trial else 0) or 1
    folder = sweep.attempt_folder(query.key, number)
    if not folder.resolve().is_relative_to(sweep.folder.resolve()):
        raise UsageError(f"{folder} leads out of the sweep's folder.")
    names = (step.name for step in sweep.manifest.scenarios[query.key.scenario].steps)
    steps = [name for name in names if "/" not in name and name not in {"", ".", ".."}]
    begun = [step for step in steps if (folder / "steps" / step).is_dir()]
    if not begun:
        return folder
    return folder / "steps" / (query.step if query.step in begun else begun[-1])


def file_of(sweep: RecordedSweep, query: Query, name: str) -> tuple[Path | None, bool]:
    """A file of the attempt, and whether nothing is added to it any more; None for a log that is not there yet.

    Raises UsageError for another one that is not there, or that is not below its folder.
    """
    place, trial = place_of(sweep, query), sweep.ledger.trials.get(query.key)
    is_over = sweep.state is not SweepState.RUNNING or (trial is not None and trial.outcome is not None)
    path = place / name
    with suppress(OSError):  # such as a name that is too long
        if path.is_file() and path.resolve().is_relative_to(place.resolve()):
            return path.resolve(), is_over
    if name != AGENT_LOG:
        raise UsageError(f"There is no file {name} in {place}.")
    return None, is_over


def trial_view(sweep: RecordedSweep, query: Query) -> TrialView:
    """Read what the page of a trial shows. Raises UsageError if there is no such trial."""
    query = find_trial(sweep, query)
    key, ledger = query.key, sweep.ledger
    trial = ledger.trials.get(key)
    is_running = sweep.state is SweepState.RUNNING
    under_way = ledger.under_way(key) if is_running else None
    number = query.attempt or (trial.attempts if trial else 0) or 1
    place = place_of(sweep, query)
    row = sweep.results.get(key)
    part, step = row, None
    if row is not None and row["steps"]:
        step = place.name
        part = next((each for each in row["steps"] if each["name"] == step), row["steps"][-1])
    is_last = trial is not None and number == trial.attempts
    files = list(_files(place))
    meanings = {flag.value: flag.meaning for flag in Flag}
    patch = _beginning(place / PATCH)
    spent = part["stages"] if part and is_last else under_way.stages if under_way and is_last else {}
    return TrialView(
        query=query,
        scenario=sweep.names[key.scenario],
        trial=trial,
        under_way=under_way if is_last else None,
        row=part if is_last else None,
        attempts=row["attempts"] if row else [*(trial.failures if trial else ())],
        number=number,
        steps=[each["name"] for each in row["steps"]] if row else [],
        step=step,
        flags=[(flag, meanings.get(flag, "of another version")) for flag in (part["flags"] if part else ())],
        stages=_stages(spent),
        scorers=list(_scorers(part, place)) if part and is_last else [],
        patch=patch_markup(patch),
        patch_size=(place / PATCH).stat().st_size if patch else 0,
        changes=log_markup(_beginning(place / CHANGES)),
        conversation=_conversation(place / TRAJECTORY, query.turn),
        files=files,
        commands=_commands(sweep, key, number, step),
        siblings=_siblings(sweep, key),
        is_over=not is_running or (trial is not None and trial.outcome is not None) or not is_last,
    )


def trial_parts(sweep: RecordedSweep, query: Query, address: str) -> Mapping[str, Markup]:
    """Render the parts of a trial's page; `address` names the trial in links to its files."""
    view = trial_view(sweep, query)
    macros: Any = environment().get_template("_trial.html").module
    return {part: getattr(macros, part)(view, *([address] if part == "files" else [])) for part in PARTS}


def progress_of(sweep: RecordedSweep, query: Query) -> tuple[object, ...]:
    """A value that changes whenever a trial gets somewhere."""
    trial = sweep.ledger.trials.get(query.key)
    if trial is None:
        return ()
    attempt = trial.attempt
    return trial.outcome, trial.attempts, sweep.state, attempt and (attempt.stage, attempt.since, len(attempt.steps))


def _beginning(path: Path) -> bytes:
    with suppress(OSError), open_regular(path) as file:
        return file.read(SHOWN_BYTES)
    return b""


def _files(place: Path) -> Iterator[tuple[str, int]]:
    """Yield the attempt's files, the agent's own log first, with their sizes."""
    with suppress(OSError):
        found = sorted(path for path in place.rglob("*") if path.is_file() and not path.is_symlink())
        for path in sorted(found, key=lambda path: path.name != AGENT_LOG)[:MAX_FILES]:
            yield str(path.relative_to(place)), path.stat().st_size


def _stages(spent: Mapping[str, Mapping[str, float]]) -> Sequence[StageTime]:
    whole = sum(each["seconds"] + each["waited"] for each in spent.values()) or 1.0
    stages, x = [], 0.0
    for name, each in spent.items():
        width = 100 * (each["seconds"] + each["waited"]) / whole
        stages.append(StageTime(name=name, seconds=each["seconds"], waited=each["waited"], x=x, width=width))
        x += width
    return stages


def _scorers(part: Row, place: Path) -> Iterator[ScorerView]:
    logs = {label.removeprefix("scorer_"): Path(file).name for label, file in part["files"].items()}
    for scorer in part["scorers"]:
        name = logs.get(scorer["name"], "")
        log = None
        if name:
            with suppress(OSError):
                log = read_piece(place / "scorers" / name, limit=SCORER_BYTES)
        yield ScorerView(name=scorer["name"], score=scorer["score"], state=scorer["state"], log=log)


def _commands(sweep: RecordedSweep, key: TrialKey, number: int, step: str | None) -> Sequence[tuple[str, str]]:
    """What to type to see the log, to try the scenario by itself, and to run the trial again; each with its use."""
    config, run, name = sweep.manifest.config, as_typed(sweep.folder), quoted(sweep.names[key.scenario])
    arm: Mapping[str, Any] = next((each for each in config["arms"] if each["name"] == key.arm), {})
    logs = ["sweep logs", trial_as_typed(sweep.folder, key, sweep.plan)]
    if sweep.ledger.trials.get(key, Trial()).attempts > number:
        logs += ["--attempt", str(number)]
    if step:
        logs += ["--step", quoted(step)]
    alone = ["sweep scenario run", name, "--benchmark", quoted(str(config["benchmark"]))]
    alone += ["--agent", quoted(str(arm.get("agent", key.arm)))]
    if arm.get("model"):
        alone += ["--model", quoted(arm["model"])]
    for setting, value in (arm.get("settings") or {}).items():
        alone += ["--set", quoted(f"{setting}={value if isinstance(value, str) else json.dumps(value)}")]
    return [
        ("the agent's output", " ".join(logs)),
        ("the scenario by itself", " ".join(alone)),
        ("again in this sweep, all its trials", f"sweep resume {run} --only {name}"),
    ]


def quoted(word: str) -> str:
    """Quote a word for a shell; what no page can show is written as bash and zsh read it."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    letters = (each if each.isprintable() else f"\\U{ord(each):08x}" for each in escaped)
    return f"$'{''.join(letters)}'"


def _siblings(sweep: RecordedSweep, key: TrialKey) -> Sequence[Neighbour]:
    """The trials of the same scenario."""
    found = []
    for arm in sweep.plan.arms:
        for number in range(1, sweep.plan.trials + 1):
            each = TrialKey(key.scenario, arm, number)
            trial = sweep.ledger.trials.get(each)
            label, kind = "waiting", "waiting"
            if trial is not None and trial.score is not None:
                label = f"{trial.score:.3f}"
                kind = "solved" if trial.score >= SOLVED else "partial" if trial.score > 0 else "unsolved"
            elif trial is not None:
                label = kind = str(trial.outcome or "running")
            found.append(Neighbour(key=each, label=label, kind=kind))
    return found


def _conversation(path: Path, first: int) -> Conversation | None:
    """Some turns of a trajectory in ATIF; None if there is none that can be read."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_TRAJECTORY:
                return None
            steps = json.loads(file.read())["steps"]
        first = max(0, min(first, len(steps) - 1))
        turns = [_turn(steps[at], steps[at - 1] if at else None) for at in range(first, min(first + TURNS, len(steps)))]
        return Conversation(turns=turns, first=first, count=len(steps))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # agents may write this file themselves


def _turn(step: Mapping[str, Any], before: Mapping[str, Any] | None) -> Turn:
    results = (step.get("observation") or {}).get("results") or []
    calls = [
        Call(
            name=str(call.get("function_name", "")),
            arguments=_said(call.get("arguments")),
            results=[
                _said(each.get("content"))
                for each in results
                if each.get("source_call_id") in {call.get("tool_call_id")} - {None}
            ],
        )
        for call in step.get("tool_calls") or []
    ]
    known = {call.get("tool_call_id") for call in step.get("tool_calls") or []}
    if others := [_said(each.get("content")) for each in results if each.get("source_call_id") not in known - {None}]:
        calls.append(Call(name="result", arguments=Markup(""), results=others))
    metrics = step.get("metrics") or {}
    tokens = [metrics[name] for name in ("prompt_tokens", "completion_tokens") if isinstance(metrics.get(name), int)]
    cost = metrics.get("cost_usd")
    return Turn(
        number=int(step.get("step_id") or 0),
        source=step["source"] if step.get("source") in {"system", "user", "agent"} else "agent",
        message=_said(step.get("message")),
        reasoning=_said(step.get("reasoning_content")),
        calls=calls,
        tokens=sum(tokens) if tokens else None,
        cost=cost if isinstance(cost, int | float) else None,
        seconds=_seconds(before, step),
    )


def _seconds(before: Mapping[str, Any] | None, step: Mapping[str, Any]) -> float | None:
    try:
        began, ended = (datetime.fromisoformat(each["timestamp"]) for each in (before or {}, step))
        return max(0.0, (ended - began).total_seconds())
    except (KeyError, TypeError, ValueError):
        return None


def _said(value: object) -> Markup:
    """What was said, called or answered, cut to what a page can hold."""
    if value is None:
        return Markup("")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    shown = visible(text[:TURN_WIDTH])
    if len(text) > TURN_WIDTH:
        shown += Markup('<span class="escape"> … {} more characters</span>').format(len(text) - TURN_WIDTH)
    return shown
