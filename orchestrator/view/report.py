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
from orchestrator.core.records import Flag, Outcome, TrialKey, path_part
from orchestrator.rundir.files import RESULTS
from orchestrator.rundir.sweep_index import as_typed
from orchestrator.view.interval import interval

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
CHECK: Final = "sweep check PATH --static"
#: Parts of a message that differ between trials with one cause: ids, digests, paths of devboxes, large numbers, times.
_VARYING: Final = re.compile(
    r"/\S*(?=/)|\b[a-z]{2,5}_\w*\d\w*|\b(?=[a-f]*\d)[0-9a-f]{8}[0-9a-f-]*|\b\d{4,}\b|\b\d+(\.\d+)?(?= (s|h|min)\b)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """The results of an arm: `mean` over scored trials, with its 95 % interval `low` to `high`.

    `floor` is the mean if every failed trial counted 0; the true mean lies between the two. `cost` (US dollars) and
    `tokens` (input and output) are what agents report, over all attempts; None if they report nothing. `agent_seconds`
    is the agents' working time in the last attempts of the trials.
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
    cost: float | None
    tokens: int | None
    agent_seconds: float


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
    trials: dict[str, dict[TrialKey, Trial]] = {arm: {} for arm in plan.arms}
    failures: dict[tuple[str, str], list[TrialKey]] = {}
    flags: dict[tuple[str, str], list[TrialKey]] = {}
    names = {scenario.id: scenario.name for scenario in plan.scenarios}
    meanings = {flag.value: flag.meaning for flag in Flag}
    for key in plan:
        trial = ledger.trials.get(key)
        if trial is None or trial.outcome is None:
            continue
        trials[key.arm][key] = trial
        if trial.failure is not None:
            gist = _VARYING.sub("…", re.sub(rf"(?<!\w){re.escape(names[key.scenario])}(?!\w)", "…", trial.message))
            failures.setdefault((trial.failure, gist), []).append(key)
        for flag in trial.flags:
            flags.setdefault((flag, meanings.get(flag, "of another version")), []).append(key)
    return Report(
        folder=folder,
        arms=[_summarise(arm, ledger, plan, finished) for arm, finished in trials.items()],
        failures=[
            _finding(kind, ledger.trials[keys[0]].message, keys, ledger, plan, folder)
            for (kind, _), keys in sorted(failures.items(), key=lambda group: -len(group[1]))
        ],
        flags=[
            _finding(flag, meaning, keys, ledger, plan, folder)
            for (flag, meaning), keys in sorted(flags.items(), key=lambda group: -len(group[1]))
        ],
    )


def _summarise(arm: str, ledger: Ledger, plan: Plan, finished: Mapping[TrialKey, Trial]) -> ArmSummary:
    scores: dict[object, list[float]] = {}
    for key, trial in finished.items():
        if trial.score is not None:  # with one scenario alone, its trials are counted
            scores.setdefault(key.scenario if len(plan.scenarios) > 1 else key, []).append(trial.score)
    flat = [score for values in scores.values() for score in values]
    failed = sum(trial.outcome is Outcome.FAILED for trial in finished.values())
    low, high = interval([*scores.values()])
    return ArmSummary(
        arm=arm,
        planned=len(plan) // max(1, len(plan.arms)),
        scored=len(flat),
        failed=failed,
        flagged=sum(bool(trial.flags) for trial in finished.values()),
        mean=fmean(flat) if flat else None,
        low=low,
        high=high,
        floor=sum(flat) / (len(flat) + failed) if flat or failed else None,
        cost=ledger.costs.get(arm),
        tokens=ledger.tokens.get(arm),
        agent_seconds=round(sum(trial.agent_seconds for trial in finished.values()), 1),
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
    names = {scenario.id: scenario.name for scenario in plan.scenarios}
    name = names[key.scenario]
    is_typed = name.isprintable() and not name.startswith("-") and [*names.values()].count(name) == 1
    words = ["sweep logs", as_typed(folder), shlex.quote(name if is_typed else key.scenario)]
    if len(plan.arms) > 1:
        words += ["--arm", shlex.quote(key.arm)]
    if key.number > 1:
        words += ["--trial", str(key.number)]
    file = SHOWN_BY.get(Flag(kind)) if kind in {*Flag} else None
    if kind in SHOWN_BY_SCORERS:
        place = folder / "trials" / path_part(name) / path_part(key.arm) / str(key.number) / f"attempt-{trial.attempts}"
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


@dataclass(frozen=True, slots=True)
class _Arms:
    """A line for each arm, in one table, or in two on a narrow terminal. No number is ever cut."""

    summaries: Sequence[ArmSummary]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        reached = {
            "scored": [f"{each.scored}/{each.planned}" for each in self.summaries],
            "failed": [str(each.failed) for each in self.summaries],
            "flagged": [str(each.flagged) for each in self.summaries],
            "mean": [number(each.mean) for each in self.summaries],
            "95 % interval": [span(each.low, each.high) for each in self.summaries],
            "if failed|were 0": [number(each.floor) for each in self.summaries],
        }
        used = {}
        costs, tokens = [each.cost for each in self.summaries], [each.tokens for each in self.summaries]
        if any(costs):  # an agent may report neither
            used["cost"] = ["-" if cost is None else f"${cost:,.2f}" for cost in costs]
        if any(tokens):
            used["tokens"] = ["-" if count is None else amount(count) for count in tokens]
        used["agent|time"] = [duration(each.agent_seconds) for each in self.summaries]

        wide = options.update(max_width=10_000)
        longest = max((len(printable(each.arm)) for each in self.summaries), default=0)
        for gap, folded in ((" ", 0), ("\n", 0), ("\n", max(0, longest - ARM_WIDTH))):
            whole = self._table(reached | used, gap)
            if Measurement.get(console, wide, whole).maximum - folded <= options.max_width:
                yield whole
                return
        yield self._table(reached, "\n")
        yield self._table(used, "\n")

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
    """Format seconds for people: 42 s, 7:05, 3:20:11."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
