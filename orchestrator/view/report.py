"""The report of a sweep: one line per arm and the most frequent problems, as a table or as a record."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, floor
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from orchestrator.core.ledger import UNSUPPORTED, Ledger, Trial
from orchestrator.core.plan import Plan
from orchestrator.core.printable import printable, shortened
from orchestrator.core.records import Flag, Outcome, TrialKey
from orchestrator.rundir.files import RESULTS, attempt_folder
from orchestrator.rundir.sweep_index import trial_as_typed
from orchestrator.view.interval import interval
from orchestrator.view.statistics import pass_at, pass_hat, passes, quantile

#: Failures, and flags, that are listed under the table.
LISTED: Final = 5
#: Messages of one class that are listed; a class with more is shown by one example.
MESSAGES_OF_A_CLASS: Final = 3
#: Characters of a message.
MESSAGE_WIDTH: Final = 200
#: Characters of an arm's name that stay on one line of a narrow terminal.
ARM_WIDTH: Final = 13
#: The file of an attempt that explains a flag; for all others it is the agent's log.
SHOWN_BY: Final = {
    Flag.SYSTEM_CHANGED: "changes.txt",
    Flag.SECRETS_MASKED: "MASKED.txt",
    Flag.GATHER_TRUNCATED: "LEFT-OUT.txt",
    Flag.NO_PATCH: "LEFT-OUT.txt",
}
#: Explained by the scorers' logs.
SHOWN_BY_SCORERS: Final = frozenset({"ScoringFault", Flag.DEVBOX_BROKEN_BY_AGENT})
#: Explained by the sweep's own log.
SHOWN_BY_US: Final = frozenset({Flag.GATHER_INCOMPLETE, Flag.TRAJECTORY_UNREAD})
#: The score from which on a trial has solved its scenario: 1, but for rounding.
SOLVED: Final = 1 - 1e-9
CHECK: Final = "sweep check PATH --static"
#: Parts of a message that differ between trials with one cause: ids, digests, paths of devboxes, large numbers, times.
_VARYING: Final = re.compile(
    r"/\S*(?=/)|\b[a-z]{2,5}_\w*\d\w*|\b(?=[a-f]*\d)[0-9a-f]{8}[0-9a-f-]*|\b\d{4,}\b|\b\d+(\.\d+)?(?= (s|h|min)\b)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """The results of an arm: `mean` over scored trials, with its 95 % interval `low` to `high`.

    `floor` is the mean if every failed trial counted 0; the true mean lies between the two. `solved` are the trials
    with a score of 1 or more, `solved_rate` their share of the scored ones, `solved_floor` of all that have ended.
    `pass_at` and `pass_hat` are the chances that one, or each, of so many trials solves a scenario, as the functions of
    these names have them; `pass_at_floor` and `pass_hat_floor` are the same if no failed trial solved anything. All
    four are empty where scenarios have one trial. `failures` are the failed trials by the class of their failure.

    `cost` (US dollars) and `tokens` (input and output) are what agents report, over all attempts; None if they report
    nothing. Times are seconds at work in the last attempts of the trials that have ended: `agent_seconds` is the sum of
    the agents' part, the others are of whole trials, None without any.
    """

    arm: str
    planned: int
    scored: int
    failed: int
    flagged: int
    mean: float | None
    low: float | None
    high: float | None
    floor: float | None
    solved: int
    solved_rate: float | None
    solved_floor: float | None
    pass_at: Mapping[int, float]
    pass_hat: Mapping[int, float]
    pass_at_floor: Mapping[int, float]
    pass_hat_floor: Mapping[int, float]
    failures: Mapping[str, int]
    cost: float | None
    tokens: int | None
    agent_seconds: float
    median_seconds: float | None
    p90_seconds: float | None
    longest_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A group of trials that failed with one class and message, or have one flag.

    `kind` is that class or flag, `count` the number of trials, `arms` the number for each arm. `words` is the message
    of the first trial, or the flag's meaning; messages that differ only in ids, paths and times are one. `command`
    shows more of the first trial (a command, or the path of the sweep's log); None if there is no more.
    """

    kind: str
    count: int
    arms: Mapping[str, int]
    words: str
    command: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole report. `failures` and `flags` are sorted by frequency."""

    folder: Path
    arms: Sequence[ArmSummary]
    failures: Sequence[Finding]
    flags: Sequence[Finding]


def report(ledger: Ledger, plan: Plan, folder: Path) -> Report:
    """Summarise the trials of a plan; `folder` is the run folder."""
    failures: dict[tuple[str, str], list[TrialKey]] = {}
    flags: dict[tuple[str, str], list[TrialKey]] = {}
    meanings = {flag.value: flag.meaning for flag in Flag}
    for key in plan:
        trial = ledger.trials.get(key)
        if trial is None or trial.outcome is None:
            continue
        if trial.failure is not None:
            gist = gist_of(trial.message, plan.by_id[key.scenario].name)
            failures.setdefault((trial.failure, gist), []).append(key)
        for flag in trial.flags:
            flags.setdefault((flag, meanings.get(flag, "of another version")), []).append(key)
    return Report(
        folder=folder,
        arms=[summarise(arm, ledger, plan) for arm in plan.arms],
        failures=[
            _finding(kind, ledger.trials[keys[0]].message, keys, ledger, plan, folder)
            for (kind, _), keys in sorted(failures.items(), key=lambda group: -len(group[1]))
        ],
        flags=[
            _finding(flag, meaning, keys, ledger, plan, folder)
            for (flag, meaning), keys in sorted(flags.items(), key=lambda group: -len(group[1]))
        ],
    )


def gist_of(message: str, name: str) -> str:
    """Return the part of a failure's message that trials with one cause share; `name` is their scenario's."""
    unnamed = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", message) if name in message else message
    return _VARYING.sub("…", unnamed)


def summarise(arm: str, ledger: Ledger, plan: Plan) -> ArmSummary:
    """Summarise the trials of a plan's arm."""
    keys = (TrialKey(each.id, arm, at) for each in plan.scenarios for at in range(1, plan.trials + 1))
    finished = {key: ledger.trials[key] for key in keys if ledger.is_finished(key)}
    scores: dict[object, list[float]] = {}
    ended: Counter[str] = Counter()
    solved: Counter[str] = Counter()
    for key, trial in finished.items():
        ended[key.scenario] += 1
        if trial.score is not None:  # with one scenario alone, its trials are counted
            scores.setdefault(key.scenario if len(plan.scenarios) > 1 else key, []).append(trial.score)
            solved[key.scenario] += trial.score >= SOLVED
    scored = Counter(key.scenario for key, trial in finished.items() if trial.score is not None)
    flat = [score for values in scores.values() for score in values]
    low, high = interval([*scores.values()])
    of_scored, of_ended = ([(solved[each], count) for each, count in counts.items()] for counts in (scored, ended))
    sizes = passes(plan.trials)
    seconds = sorted(trial.seconds for trial in finished.values() if trial.attempts)
    return ArmSummary(
        arm=arm,
        planned=len(plan) // max(1, len(plan.arms)),
        scored=len(flat),
        failed=sum(trial.outcome is Outcome.FAILED for trial in finished.values()),
        flagged=sum(bool(trial.flags) for trial in finished.values()),
        mean=fmean(flat) if flat else None,
        low=low,
        high=high,
        floor=sum(flat) / len(finished) if finished else None,
        solved=solved.total(),
        solved_rate=solved.total() / len(flat) if flat else None,
        solved_floor=solved.total() / len(finished) if finished else None,
        pass_at=pass_at(of_scored, sizes),
        pass_hat=pass_hat(of_scored, sizes),
        pass_at_floor=pass_at(of_ended, sizes),
        pass_hat_floor=pass_hat(of_ended, sizes),
        failures=dict(Counter(trial.failure for trial in finished.values() if trial.failure is not None).most_common()),
        cost=ledger.costs.get(arm),
        tokens=ledger.tokens.get(arm),
        agent_seconds=round(sum(trial.agent_seconds for trial in finished.values()), 1),
        median_seconds=quantile(seconds, 0.5) if seconds else None,
        p90_seconds=quantile(seconds, 0.9) if seconds else None,
        longest_seconds=seconds[-1] if seconds else None,
    )


def _finding(kind: str, words: str, keys: Sequence[TrialKey], ledger: Ledger, plan: Plan, folder: Path) -> Finding:
    return Finding(
        kind=kind,
        count=len(keys),
        arms={arm: count for arm in plan.arms if (count := sum(key.arm == arm for key in keys))},
        words=words,
        command=_command(kind, keys[0], ledger.trials[keys[0]], plan, folder),
    )


def _command(kind: str, key: TrialKey, trial: Trial, plan: Plan, folder: Path) -> str | None:
    """Return a command or file that explains a trial's failure or flag."""
    if kind == UNSUPPORTED:
        return CHECK
    if not trial.attempts:
        return None
    if kind in SHOWN_BY_US:
        return shlex.quote(str(folder / "sweep.log"))
    words = [f"sweep logs {trial_as_typed(folder, key, plan)}"]
    file = SHOWN_BY.get(Flag(kind)) if kind in {*Flag} else None
    if kind in SHOWN_BY_SCORERS:
        place = attempt_folder(folder, key, plan.by_id[key.scenario].name, trial.attempts)
        file = next((f"scorers/{log.name}" for log in sorted(place.glob("scorers/*.log")) if log.stat().st_size), None)
    if file is not None:
        words += ["--file", shlex.quote(file)]
    return " ".join(words)


def as_record(whole: Report) -> dict[str, Any]:
    """Return the report as plain objects."""
    return {**asdict(whole), "folder": str(whole.folder)}


def as_table(whole: Report) -> RenderableType:
    """Return the table, the most frequent problems, and the paths of the files."""
    files = (f"Results: {whole.folder / RESULTS}", f"Logs:    {whole.folder / 'trials'}")
    problems = [*_lines("Failed", whole.failures), *_lines("Flagged", whole.flags)]
    return Group(_Arms(whole.arms), *problems, *(Text(printable(line)) for line in files))


def _lines(title: str, findings: Sequence[Finding]) -> Iterator["_Line"]:
    """Yield the most frequent findings, each with its command."""
    if findings:
        yield _Line(f"{title}:")
    messages = Counter(each.kind for each in findings)
    kinds: dict[object, Finding] = {}
    for number, each in enumerate(findings):  # in a class with many messages the most frequent one stands for all
        at = each.kind if messages[each.kind] > MESSAGES_OF_A_CLASS else number
        if at not in kinds:
            kinds[at] = each if at == number else replace(each, kind=f"{each.kind}, for example")
        else:
            arms = {arm: kinds[at].arms.get(arm, 0) + each.arms.get(arm, 0) for arm in [*kinds[at].arms, *each.arms]}
            kinds[at] = replace(kinds[at], count=kinds[at].count + each.count, arms=arms)
    found = sorted(kinds.values(), key=lambda finding: -finding.count)
    width = len(str(found[0].count)) if found else 0
    for each in found[:LISTED]:
        of_arms = ", ".join(f"{arm} {count}" for arm, count in each.arms.items())
        kind = f"{each.kind} ({of_arms})" if len(each.arms) > 1 else each.kind
        yield _Line(shortened(f"{kind}: {each.words}", MESSAGE_WIDTH), f"  {each.count:>{width}}  ")
        if each.command is not None:
            yield _Line(printable(each.command), f"  {'':{width}}  ")
    if len(found) > LISTED:
        others = "another" if len(found) == LISTED + 1 else f"{len(found) - LISTED} others"
        yield _Line(f"and {others}", f"  {'':{width}}  ")


@dataclass(frozen=True, slots=True)
class _Line:
    """A line after a lead; if the terminal is too narrow it continues below its first word."""

    words: str
    lead: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = 10_000 if options.no_wrap else max(1, options.max_width - len(self.lead))
        first, *others = Text(self.words).wrap(console, room)
        yield Text(self.lead) + first
        for each in others:
            yield Text(" " * len(self.lead)) + each


def arm_columns(summaries: Sequence[ArmSummary]) -> Sequence[dict[str, list[str]]]:
    """What people see of arms, by heading: what they reached, what they used, and how often they solved scenarios.

    Parts of a heading are separated by `|`.
    """
    reached = {
        "scored": [f"{each.scored}/{each.planned}" for each in summaries],
        "failed": [str(each.failed) for each in summaries],
        "flagged": [str(each.flagged) for each in summaries],
        "mean": [number(each.mean) for each in summaries],
        "95 % interval": [span(each.low, each.high) for each in summaries],
        "if failed|were 0": [number(each.floor) for each in summaries],
    }
    used = {}
    costs, tokens = [each.cost for each in summaries], [each.tokens for each in summaries]
    if any(cost is not None for cost in costs):  # an agent may report neither
        used["cost"] = ["-" if cost is None else f"${cost:,.2f}" for cost in costs]
    if any(tokens):
        used["tokens"] = ["-" if count is None else amount(count) for count in tokens]
    used["agent|time"] = [duration(each.agent_seconds) for each in summaries]
    used["median|trial"] = [_duration(each.median_seconds) for each in summaries]
    used["p90"] = [_duration(each.p90_seconds) for each in summaries]
    used["longest"] = [_duration(each.longest_seconds) for each in summaries]
    solved = {}
    if any(each.solved_rate != each.mean for each in summaries):
        solved["solved"] = [number(each.solved_rate) for each in summaries]
    several = sorted({k for each in summaries for k in each.pass_at if k > 1})
    solved |= {f"pass@{k}": [number(each.pass_at.get(k)) for each in summaries] for k in several}
    solved |= {f"pass^{k}": [number(each.pass_hat.get(k)) for each in summaries] for k in several}
    return reached, used, solved


@dataclass(frozen=True, slots=True)
class _Arms:
    """A line for each arm, in one table, or in several on a narrow terminal. No number is ever cut."""

    summaries: Sequence[ArmSummary]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        reached, used, solved = arm_columns(self.summaries)
        wide = options.update(max_width=10_000)
        longest = max((len(printable(each.arm)) for each in self.summaries), default=0)

        def fits(columns: Mapping[str, Sequence[str]], gap: str, folded: int = 0) -> bool:
            width = Measurement.get(console, wide, self._table(columns, gap)).maximum
            return width - folded <= options.max_width

        if fits(reached | used | solved, " "):
            yield self._table(reached | used | solved, " ")
            return
        shown: dict[str, list[str]] = {}
        for group in (reached, used, solved):
            if shown and not fits(shown | group, "\n", max(0, longest - ARM_WIDTH)):
                yield self._table(shown, "\n")
                shown = {}
            shown |= group
        yield self._table(shown, "\n")

    def _table(self, columns: Mapping[str, Sequence[str]], gap: str) -> Table:
        """Build a table; `gap` separates the two parts of a heading."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("arm", overflow="fold")
        for heading in columns:
            table.add_column(heading.replace("|", gap), justify="right", no_wrap=True)
        for row, each in enumerate(self.summaries):
            table.add_row(Text(printable(each.arm)), *(values[row] for values in columns.values()))
        return table


def number(value: float | None) -> str:
    """Format a score for people."""
    return "-" if value is None else f"{value:.3f}"


def span(low: float | None, high: float | None) -> str:
    """Format an interval of scores for people; it is rounded outwards if it would seem to have no width."""
    if low is None or high is None:
        return "-"
    if number(low) == number(high):
        low, high = floor(low * 1000) / 1000, ceil(high * 1000) / 1000
    return f"{number(low)} - {number(high)}"


def amount(count: int) -> str:
    """Format a number of tokens for people: 950, 12.3k, 1.2M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def duration(seconds: float) -> str:
    """Format seconds for people: 0.4 s, 42 s, 7:05, 3:20:11."""
    if 0.05 <= seconds < 0.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)
