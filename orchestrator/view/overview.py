"""A sweep as tables: its scenarios by arm, its failures, its trials in flight; and the sweeps of a folder."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from heapq import nlargest
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from orchestrator.core.ledger import Ledger, Trial
from orchestrator.core.plan import Plan
from orchestrator.core.printable import counted, shortened
from orchestrator.core.protocol import ScoringMode
from orchestrator.core.records import Outcome, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.rundir.recorded import RecordedSweep, SweepState
from orchestrator.rundir.sweep_index import as_typed, trial_as_typed
from orchestrator.view.formats import Record
from orchestrator.view.in_flight import TrialInFlight
from orchestrator.view.report import (
    MESSAGE_WIDTH,
    SOLVED,
    ArmSummary,
    Report,
    arm_columns,
    duration,
    number,
    report,
    span,
)
from orchestrator.view.tables import Listing, Look, TableColumn, Words

#: Trials that are named as slowest and costliest, and scenarios as solved sometimes.
LISTED: Final = 5
#: Silence of an agent, in seconds, that is worth a look.
SILENT_S: Final = 300.0
#: The state of a sweep that cannot be read.
UNREADABLE: Final = "damaged"
_LOOKS: Final[Mapping[str, Look]] = {
    SweepState.RUNNING: Look.PARTLY,
    SweepState.FINISHED: Look.GOOD,
    SweepState.STOPPED: Look.BAD,
    SweepState.DIED: Look.BAD,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The trials of a scenario by one arm. `mean` is over scored trials, `seconds` and `cost` over all that ended.

    A cost is None if no agent reports any. `stage` is that of a trial in flight, if there is one.
    """

    scenario: str
    scenario_name: str
    arm: str
    trials: int
    scored: int
    solved: int
    failed: int
    flagged: int
    mean: float | None
    seconds: float
    cost_usd: float | None
    stage: Stage | None

    @property
    def is_flaky(self) -> bool:
        """True if it was solved in some trials, and not in others."""
        return 0 < self.solved < self.scored


def cells(ledger: Ledger, plan: Plan) -> Iterator[Cell]:
    """The cells of a sweep: scenarios as listed, and of each the arms."""
    for scenario in plan.scenarios:
        for arm in plan.arms:
            keys = [TrialKey(scenario.id, arm, trial) for trial in range(1, plan.trials + 1)]
            found = [trial for key in keys if (trial := ledger.trials.get(key)) is not None]
            ended = [trial for trial in found if trial.outcome is not None]
            scores = [trial.score for trial in ended if trial.score is not None]
            costs = [trial.cost for trial in found if trial.cost is not None]
            yield Cell(
                scenario=scenario.id,
                scenario_name=scenario.name,
                arm=arm,
                trials=plan.trials,
                scored=len(scores),
                solved=sum(score >= SOLVED for score in scores),
                failed=sum(trial.outcome is Outcome.FAILED for trial in ended),
                flagged=sum(bool(trial.flags) for trial in ended),
                mean=fmean(scores) if scores else None,
                seconds=round(sum(trial.seconds for trial in ended), 3),
                cost_usd=rounded(sum(costs)) if costs else None,
                stage=next((t.attempt.stage for t in found if t.attempt is not None and t.outcome is None), None),
            )


def cell_words(cell: Cell) -> Words:
    """What a table has of a cell: the score of a single trial, or how often it was solved, and what is not scored."""
    left = cell.trials - cell.scored - cell.failed
    parts = []
    if cell.mean is not None and cell.trials > 1:
        parts.append(f"{cell.solved}/{cell.scored}")
    if cell.mean is not None and (cell.trials == 1 or cell.mean * cell.scored != cell.solved):
        parts.append(number(cell.mean))
    if cell.failed:
        parts.append("failed" if cell.trials == 1 else f"{cell.failed} failed")
    if left:
        state = cell.stage.doing if cell.stage is not None else ""
        parts.append(state or ("-" if cell.trials == 1 else f"{left} left"))
    return " ".join(parts), _look(cell)


def _look(cell: Cell) -> Look:
    if cell.failed:
        return Look.BROKEN
    if cell.mean is None:
        return Look.FAINT
    return look_of_score(cell.mean)


def matrix(found: Sequence[Cell], plan: Plan) -> Listing:
    """Scenarios and arms: people see a column for each arm, programs a row for each cell."""

    def words(arm: str) -> Any:
        return lambda row: cell_words(row["cells"][arm])

    by_scenario: dict[str, dict[str, Any]] = {}
    for cell in found:
        row = by_scenario.setdefault(cell.scenario, {"name": cell.scenario_name, "cells": {}})
        row["cells"][cell.arm] = cell
    return Listing(
        rows=[*by_scenario.values()],
        columns=[
            TableColumn(heading="scenario", words=lambda row: row["name"], is_text=True),
            *(TableColumn(heading=arm, words=words(arm)) for arm in plan.arms),
        ],
    )


def arms_table(arms: Sequence[ArmSummary]) -> Listing:
    """The numbers of each arm, as the end of a sweep has them."""

    def words(values: Sequence[str]) -> Callable[[Record], str]:
        return lambda row: values[row["number"]]

    columns = [
        TableColumn(heading=heading.replace("|", " "), words=words(values))
        for group in arm_columns(arms)
        for heading, values in group.items()
    ]
    return Listing(
        rows=[{"number": number, **asdict(each)} for number, each in enumerate(arms)],
        columns=[TableColumn(heading="arm", words=lambda row: row["arm"], is_text=True), *columns],
    )


def dollars(cost: float | None) -> str:
    """Format US dollars for people; `-` if nobody reports them."""
    return "-" if cost is None else f"${cost:,.2f}"


def rounded(cost: float | None) -> float | None:
    """Return US dollars without what sums of floats leave."""
    return None if cost is None else round(cost, 6)


def where_scored(mode: str | None) -> str:
    """The place where scorers ran, for people; "" where none did."""
    meanings = {each.value: each.meaning for each in ScoringMode}
    return meanings.get(mode or "", mode or "")


def label(key: TrialKey, plan: Plan) -> str:
    """A trial for people: its scenario, and its arm and number where there are several."""
    parts = [plan.by_id[key.scenario].name if key.scenario in plan.by_id else key.scenario]
    if len(plan.arms) > 1:
        parts.append(key.arm)
    if plan.trials > 1:
        parts.append(f"#{key.number}")
    return " ".join(parts)


def trial_record(key: TrialKey, trial: Trial, plan: Plan) -> dict[str, Any]:
    """A trial for programs, as far as the ledger knows it."""
    return {
        "scenario": key.scenario,
        "scenario_name": plan.by_id[key.scenario].name if key.scenario in plan.by_id else key.scenario,
        "arm": key.arm,
        "trial": key.number,
        "outcome": trial.outcome,
        "score": trial.score,
        "flags": trial.flags,
        "failure": trial.failure,
        "message": trial.message,
        "attempts": trial.attempts,
        "seconds": round(trial.seconds, 3),
        "cost_usd": rounded(trial.cost),
        "tokens": trial.tokens,
    }


def trials_table(ledger: Ledger, plan: Plan, keys: Sequence[TrialKey]) -> Listing:
    """These trials, a row each."""
    rows = [trial_record(key, ledger.trials.get(key, Trial()), plan) for key in keys]
    columns = [
        TableColumn(heading="scenario", words=lambda row: row["scenario_name"], is_text=True),
        TableColumn(heading="arm", words=lambda row: row["arm"], is_text=True),
        TableColumn(heading="trial", words=lambda row: str(row["trial"])),
        TableColumn(heading="result", words=_result),
        TableColumn(heading="attempts", words=lambda row: str(row["attempts"])),
        TableColumn(heading="time", words=lambda row: duration(row["seconds"]) if row["outcome"] else "-"),
        TableColumn(heading="cost", words=lambda row: dollars(row["cost_usd"])),
        TableColumn(heading="remarks", words=_remarks, is_text=True),
    ]
    return Listing(rows=rows, columns=columns)


def _result(row: Record) -> Words:
    if row["score"] is not None:
        return number(row["score"]), look_of_score(row["score"])
    return (str(row["outcome"]), Look.BROKEN) if row["outcome"] else ("-", Look.FAINT)


def look_of_score(score: float) -> Look:
    """How a score looks."""
    return Look.GOOD if score >= SOLVED else Look.BAD if score <= 0 else Look.PARTLY


def look_of(trial: Trial) -> Look:
    """How a finished trial looks."""
    return Look.BROKEN if trial.score is None else look_of_score(trial.score)


def _remarks(row: Record) -> str:
    failure = f"{row['failure']}: {shortened(row['message'], MESSAGE_WIDTH)}" if row["failure"] else ""
    return " ".join(filter(None, [failure, *row["flags"]]))


def slowest(ledger: Ledger, plan: Plan) -> Sequence[tuple[TrialKey, Trial]]:
    """The trials that took the longest in their last attempts."""
    ended = ((key, trial) for key in ledger.finished if (trial := ledger.trials[key]).seconds and key in plan)
    return nlargest(LISTED, ended, key=lambda each: each[1].seconds)


def costliest(ledger: Ledger, plan: Plan) -> Sequence[tuple[TrialKey, Trial]]:
    """The trials whose agents report to have spent the most, in all attempts."""
    paid = ((key, trial) for key, trial in ledger.trials.items() if trial.cost and key in plan)
    return nlargest(LISTED, paid, key=lambda each: each[1].cost or 0.0)


def remarkable(ledger: Ledger, plan: Plan, every: Sequence[Cell]) -> Iterator[Words]:
    """Lines with the slowest and the costliest trials, and the scenarios that were solved in some trials only."""
    sometimes, has_arms = flaky(every), len(plan.arms) > 1
    found = {
        "Slowest": [(duration(trial.seconds), label(key, plan)) for key, trial in slowest(ledger, plan)],
        "Costliest": [(dollars(trial.cost), label(key, plan)) for key, trial in costliest(ledger, plan)],
        f"Solved in some trials only, {counted(len(sometimes), 'scenario')}": [
            (f"{each.solved} of {each.scored}", " ".join([each.scenario_name, *([each.arm] if has_arms else [])]))
            for each in sometimes[:LISTED]
        ],
    }
    for title, lines in found.items():
        if lines:
            yield f"{title}:"
            width = max(len(value) for value, _ in lines)
            yield from (f"  {value:>{width}}  {what}" for value, what in lines)


def flaky(found: Sequence[Cell]) -> Sequence[Cell]:
    """The cells that were solved in some trials only, those first that are nearest to one half."""
    return sorted((each for each in found if each.is_flaky), key=lambda each: abs(each.solved / each.scored - 0.5))


def failed_trials(ledger: Ledger, plan: Plan) -> Iterator[tuple[TrialKey, Trial]]:
    """The trials of a plan that failed, in the order in which they ended."""
    return (
        (key, trial)
        for key in ledger.finished
        if (trial := ledger.trials[key]).outcome is Outcome.FAILED and key in plan
    )


def failures_table(ledger: Ledger, plan: Plan, folder: Path) -> Listing:
    """Every trial that failed, and every one that is owed and whose last attempt failed; alike ones together."""
    owed = ((key, trial) for key, trial in ledger.trials.items() if trial.outcome is None and trial.failures)
    rows = []
    for key, trial in [*failed_trials(ledger, plan), *((key, trial) for key, trial in owed if key in plan)]:
        last = trial.failures[-1]["failure"] if trial.outcome is None else None
        known = {"failure": last["class"], "message": last["message"]} if last else {}
        command = f"sweep show {trial_as_typed(folder, key, plan)}"
        rows.append({**trial_record(key, trial, plan), **known, "command": command})
    return Listing(
        rows=sorted(rows, key=lambda row: (row["outcome"] is None, row["failure"], row["message"])),
        names=[*trial_record(TrialKey("", "", 1), Trial(), plan), "command"],
        columns=[
            TableColumn(heading="scenario", words=lambda row: row["scenario_name"], is_text=True),
            TableColumn(heading="arm", words=lambda row: row["arm"], is_text=True),
            TableColumn(heading="trial", words=lambda row: str(row["trial"])),
            TableColumn(heading="attempts", words=lambda row: str(row["attempts"])),
            TableColumn(heading="", words=lambda row: row["outcome"] or ("again", Look.PARTLY), is_text=True),
            TableColumn(
                heading="reason",
                words=lambda row: f"{row['failure']}: {shortened(row['message'], MESSAGE_WIDTH)}",
                is_text=True,
            ),
        ],
    )


def failure_groups(whole: Report) -> Iterator[Words]:
    """Lines with all failures that are alike, the commonest first, each with its command."""
    width = len(str(max((each.count for each in whole.failures), default=0)))
    for each in whole.failures:
        of_arms = ", ".join(f"{arm} {count}" for arm, count in each.arms.items())
        kind = f"{each.kind} ({of_arms})" if len(whole.arms) > 1 else each.kind
        yield f"{each.count:>{width}}  {kind}: {shortened(each.words, MESSAGE_WIDTH)}", Look.BAD
        if each.command is not None:
            yield f"{'':{width}}  {each.command}"


def findings_table(whole: Report) -> Listing:
    """The failures and flags of a sweep, those that are alike together."""
    return Listing(
        rows=[{"what": what} | asdict(each) for what in ("failures", "flags") for each in getattr(whole, what)],
        columns=[
            TableColumn(heading="trials", words=lambda row: str(row["count"])),
            TableColumn(heading="failure or flag", words=lambda row: row["kind"], is_text=True),
            TableColumn(heading="says", words=lambda row: shortened(row["words"], MESSAGE_WIDTH), is_text=True),
        ],
    )


def in_flight_table(found: Sequence[TrialInFlight], plan: Plan) -> Listing:
    """The trials in flight, a row each."""
    values: dict[str, Callable[[TrialInFlight], object]] = {
        "scenario": lambda each: each.key.scenario,
        "scenario_name": lambda each: plan.by_id[each.key.scenario].name,
        "arm": lambda each: each.key.arm,
        "trial": lambda each: each.key.number,
        "attempt": lambda each: each.attempt,
        "stage": lambda each: each.stage,
        "step": lambda each: each.step or None,
        "devbox": lambda each: each.devbox,
        "seconds": lambda each: round(each.age, 1),
        "stage_seconds": lambda each: round(each.in_stage, 1),
        "idle_seconds": lambda each: round(each.idle, 1),
        "last_line": lambda each: each.line,
    }
    rows = [{name: value(each) for name, value in values.items()} for each in found]
    columns = [TableColumn(heading="scenario", words=lambda row: row["scenario_name"], is_text=True)]
    if len(plan.arms) > 1:
        columns.append(TableColumn(heading="arm", words=lambda row: row["arm"], is_text=True))
    if plan.trials > 1:
        columns.append(TableColumn(heading="trial", words=lambda row: str(row["trial"])))
    columns += [
        TableColumn(heading="attempt", words=lambda row: str(row["attempt"])),
        TableColumn(heading="age", words=lambda row: duration(row["seconds"])),
        TableColumn(heading="stage", words=stage_words, is_text=True),
        TableColumn(heading="idle", words=lambda row: idle_words(row["idle_seconds"])),
        TableColumn(heading="last line", words=lambda row: (row["last_line"], Look.FAINT), is_text=True),
    ]
    return Listing(rows=rows, columns=columns, names=[*values])


def stage_words(row: Record) -> str:
    """What a trial in flight does, and in which step."""
    doing = Stage(row["stage"]).doing
    return f"{row['step']}: {doing}" if row["step"] else doing


def idle_words(seconds: float) -> Words:
    """How long a trial has been silent."""
    return duration(seconds), Look.BAD if seconds >= SILENT_S else Look.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSummary:
    """How far a sweep is. `started` is ISO 8601, `seconds` the time in which a process worked on it.

    The cost is None if no agent reports any.
    """

    name: str
    state: SweepState
    ended: str | None
    benchmark: str
    started: str
    seconds: float
    done: int
    trials: int
    cost_usd: float | None


def summary_of(sweep: RecordedSweep, now: float) -> SweepSummary:
    """Summarise a sweep. `now` is by the journal's clock."""
    ledger, plan, state = sweep.ledger, sweep.plan, sweep.state
    return SweepSummary(
        name=sweep.name,
        state=state,
        ended=ledger.ended,
        benchmark=plan.benchmark,
        started=moment(ledger.began) if ledger.began else sweep.manifest.created,
        seconds=round(ledger.worked_seconds(now if state is SweepState.RUNNING else ledger.at), 1),
        done=sum(key in plan for key in ledger.finished),
        trials=len(plan),
        cost_usd=rounded(ledger.cost) if ledger.costs else None,
    )


def headline(about: SweepSummary) -> str:
    """A sweep in one line."""
    parts = [
        f"{about.name}: {about.state}",
        f"{about.done}/{about.trials} trials",
        f"started {local(about.started)}",
        f"took {duration(about.seconds)}",
    ]
    return " · ".join([*parts, *([] if about.cost_usd is None else [dollars(about.cost_usd)])])


def next_commands(
    ledger: Ledger, plan: Plan, folder: Path, *, after: str = "run", is_running: bool = False
) -> Sequence[str]:
    """The two commands that most people want next, after one."""
    wanted = {
        "attach": is_running,
        "resume": not is_running and any(not ledger.is_finished(key) for key in plan),
        "failures": any(failed_trials(ledger, plan)),
        "show": after != "show",
        "compare": len(plan.arms) > 1,
        "view": True,
    }
    typed, path = as_typed(folder), shlex.quote(str(folder))
    return [f"sweep {command} {path if command == 'view' else typed}" for command, it in wanted.items() if it][:2]


def pause_notice(ledger: Ledger, folder: Path) -> str | None:
    """Say who has paused a sweep, and how it goes on; None if nobody has."""
    if ledger.paused is None:
        return None
    return f"New work waits: paused by {ledger.paused.giver}. `sweep unpause {as_typed(folder)}` goes on."


def lost_lines(sweep: RecordedSweep) -> Iterator[Words]:
    """A line that tells if results are not counted, because the journal has lost them."""
    if count := sweep.lost:
        found = f"results.jsonl has {counted(count, 'result')} more than the journal, which was cut"
        yield f"{found}: `sweep repair {shlex.quote(str(sweep.folder))}` puts back what can be.", Look.BAD


def orders_lines(ledger: Ledger) -> Iterator[Words]:
    """Lines with the orders that people gave while the sweep ran, the latest ones."""
    if ledger.orders:
        yield f"Orders, {len(ledger.orders)}:"
    for each in ledger.orders[-LISTED:]:
        yield f"  {local(moment(each.at))}  {each.words}, by {each.giver}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """An arm of a sweep in the list of sweeps. Without an arm the sweep cannot be read.

    `started` is ISO 8601, `seconds` the time in which a process worked on the sweep.
    """

    name: str
    folder: str
    state: str = UNREADABLE
    benchmark: str | None = None
    started: str | None = None
    seconds: float | None = None
    arm: str | None = None
    done: int | None = None
    trials: int | None = None
    scored: int | None = None
    failed: int | None = None
    flagged: int | None = None
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    cost_usd: float | None = None


def sweep_rows(sweep: RecordedSweep, now: float) -> Iterator[SweepRow]:
    """The rows of a sweep, one for each arm. `now` is by the journal's clock."""
    about = summary_of(sweep, now)
    for each in report(sweep.ledger, sweep.plan, sweep.folder).arms:
        yield SweepRow(
            name=about.name,
            folder=str(sweep.folder),
            state=about.state,
            benchmark=about.benchmark,
            started=about.started,
            seconds=about.seconds,
            arm=each.arm,
            done=each.scored + each.failed,
            trials=each.planned,
            scored=each.scored,
            failed=each.failed,
            flagged=each.flagged,
            mean=each.mean,
            low=each.low,
            high=each.high,
            cost_usd=each.cost,
        )


def sweeps_table(rows: Sequence[SweepRow]) -> Listing:
    """The sweeps of a folder."""
    return Listing(
        rows=[asdict(each) for each in rows],
        names=[each.name for each in fields(SweepRow)],
        columns=[
            TableColumn(heading="name", words=lambda row: row["name"], is_text=True),
            TableColumn(heading="arm", words=lambda row: row["arm"] or "-", is_text=True),
            TableColumn(heading="state", words=_state, is_text=True),
            TableColumn(
                heading="done", words=lambda row: "-" if row["trials"] is None else f"{row['done']}/{row['trials']}"
            ),
            TableColumn(heading="mean", words=lambda row: number(row["mean"])),
            TableColumn(heading="95 % interval", words=lambda row: span(row["low"], row["high"])),
            TableColumn(heading="started", words=lambda row: local(row["started"])),
            TableColumn(heading="took", words=lambda row: "-" if row["seconds"] is None else duration(row["seconds"])),
            TableColumn(heading="cost", words=lambda row: dollars(row["cost_usd"])),
        ],
    )


def _state(row: Record) -> Words:
    return row["state"], _LOOKS.get(row["state"], Look.BROKEN)


#: The settings that are budgets.
BUDGETS: Final = ("max_cost", "max_devbox_hours", "max_failures", "deadline")


def budgets(config: Mapping[str, Any], ledger: Ledger, now: float, *, ends_at: float | None = None) -> Sequence[str]:
    """How much of each budget of a sweep is used, a few words each; `config` has the settings by name.

    `ends_at` is the deadline in seconds since 1970, where it is known: the setting may be a time from some start.
    """
    found = []
    if (cost := config.get("max_cost")) is not None:
        found.append(f"${ledger.cost:,.2f} of ${cost:,.2f}")
    if (hours := config.get("max_devbox_hours")) is not None:
        found.append(f"{ledger.devbox_seconds(now) / 3600:.1f} of {hours:g} devbox hours")
    if (failures := config.get("max_failures")) is not None:
        found.append(f"{ledger.outcomes[Outcome.FAILED] - ledger.excused} of {failures} failures")
    if ends_at is not None:
        found.append(f"until {local(moment(ends_at))}")
    elif (deadline := config.get("deadline")) is not None:
        found.append(f"deadline {deadline}")
    return found


def moment(at: float) -> str:
    """Seconds since 1970 in ISO 8601, in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def local(iso: str | None) -> str:
    """A time of ISO 8601 as this machine's clock shows it, to the minute."""
    return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M") if iso else "-"
