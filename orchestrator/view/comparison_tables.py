"""A comparison as tables and lines: the numbers of each pair, what one arm gained or lost, and what it would take."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from orchestrator.core.printable import counted
from orchestrator.view.comparison import Comparison, Flip, Pair, Paired, Spent
from orchestrator.view.formats import Record
from orchestrator.view.overview import arms_table
from orchestrator.view.report import duration, number
from orchestrator.view.tables import Listing, Look, TableColumn, Words

#: Flips each way that people see; programs get all.
LISTED: Final = 10
#: The log of the trial that did not solve the scenario.
_FAILED_LOG: Final = {"gained": "first_log", "lost": "second_log"}


def sentences_table(whole: Comparison) -> Listing:
    """The result of each pair, and what to know of it, a row for each sentence."""
    told = [f"{note}: compared all the same" for note in whole.notes]
    for pair in whole.pairs:
        told += [pair.sentence, *power_lines(pair), *pair.left_out]
    return _listing([{"": each} for each in told], "comparison")


def sides_table(whole: Comparison) -> Listing:
    """The numbers of each arm, over all its trials."""
    return arms_table([replace(side.summary, arm=side.label) for side in whole.sides])


def numbers_table(pair: Pair) -> Listing:
    """The scores of a pair by each way to count, and what its trials took."""
    ways = [("scored", pair.scored), ("failed as 0", pair.floor if pair.has_failed else None)]
    rows = [_scores(name, paired) for name, paired in ways if paired is not None]
    rows += [_spent("cost", pair.cost, lambda cost: f"${cost:,.3f}")] if pair.cost is not None else []
    rows += [_spent("time", pair.seconds, duration)] if pair.seconds is not None else []
    return _listing(rows, "", pair.first, pair.second, "difference", "95 % interval", "p", "scenarios")


def _scores(name: str, paired: Paired) -> Record:
    return {
        "": name,
        "first": number(paired.means[0]),
        "second": number(paired.means[1]),
        "difference": (f"{paired.difference:+.3f}", _look(paired)),
        "interval": f"{paired.low:+.3f} to {paired.high:+.3f}",
        "p": chance(paired.p_adjusted),
        "scenarios": str(paired.scenarios),
    }


def _spent(name: str, spent: Spent, words: Callable[[float], str]) -> Record:
    def signed(value: float | None) -> str:
        if value is None:
            return "-"
        size = words(abs(value))
        return size if size == words(0.0) else f"{'-' if value < 0 else '+'}{size}"

    return {
        "": name,
        "first": words(spent.means[0]),
        "second": words(spent.means[1]),
        "difference": signed(spent.difference),
        "interval": "-" if spent.low is None else f"{signed(spent.low)} to {signed(spent.high)}",
        "p": "",
        "scenarios": str(spent.scenarios),
    }


def solved_table(pair: Pair) -> Listing:
    """How many scenarios each arm of a pair solves, and McNemar's test of it."""
    ways = [("solved", pair.scored), ("failed as 0", pair.floor if pair.has_failed else None)]
    rows = [
        {
            "": name,
            "gained": str(paired.gained),
            "lost": str(paired.lost),
            "both": str(paired.both),
            "neither": str(paired.neither),
            "p": chance(paired.p_solved_adjusted),
        }
        for name, paired in ways
        if paired is not None
    ]
    return _listing(rows, "", "gained", "lost", "both", "neither", "p")


def _listing(rows: Sequence[Record], *headings: str) -> Listing:
    """A table of rows whose values are words, in the order of the headings."""

    def column(at: int) -> TableColumn:
        return TableColumn(heading=headings[at], words=lambda row: [*row.values()][at], is_text=at == 0)

    return Listing(rows=rows, columns=[column(at) for at in range(len(headings))])


def flips_table(pairs: Sequence[Pair]) -> Listing:
    """What each second arm gained or lost, a row for each scenario, with the commands for the logs."""
    sides = [f"{side}{value}" for side in ("first", "second") for value in ("", "_solved", "_trials", "_score", "_log")]
    names = ["scenario", "change", *sides]
    rows = [
        dict(
            zip(
                names,
                [
                    *(flip.name, "gained" if flip.is_gained else "lost"),
                    *(pair.first, flip.solved[0], flip.trials[0], flip.scores[0], flip.commands[0]),
                    *(pair.second, flip.solved[1], flip.trials[1], flip.scores[1], flip.commands[1]),
                ],
                strict=True,
            )
        )
        for pair in pairs
        for flip in pair.flips
    ]
    columns = [
        TableColumn(heading="scenario", words=lambda row: row["scenario"], is_text=True),
        TableColumn(heading="change", words=lambda row: f"{row['change']} by {row['second']}", is_text=True),
        TableColumn(heading="before", words=lambda row: f"{row['first_solved']}/{row['first_trials']}"),
        TableColumn(heading="after", words=lambda row: f"{row['second_solved']}/{row['second_trials']}"),
        TableColumn(heading="log", words=lambda row: row[_FAILED_LOG[row["change"]]], is_text=True),
    ]
    return Listing(rows=rows, columns=columns, names=names)


def flips_lines(pair: Pair) -> Iterator[Words]:
    """The flips of a pair, the largest of each way, each with the command for the log of the trial that failed it."""
    for title, look, found in (
        ("Gained", Look.GOOD, [flip for flip in pair.flips if flip.is_gained]),
        ("Lost", Look.BAD, [flip for flip in pair.flips if not flip.is_gained]),
    ):
        if not found:
            continue
        yield f"{title} by {pair.second}: {len(found)}", look
        for flip in found[:LISTED]:
            yield f"  {flip.name}  {_share(flip, 0)} -> {_share(flip, 1)}"
            yield f"     {flip.commands[0 if flip.is_gained else 1]}"
        if len(found) > LISTED:
            yield f"  and {len(found) - LISTED} others, which --csv and --json list"


def _share(flip: Flip, side: int) -> str:
    if flip.trials[side] == 1:
        return number(flip.scores[side])
    return f"{flip.solved[side]}/{flip.trials[side]}"


def power_lines(pair: Pair) -> Iterator[str]:
    """What it takes to see a difference of this size, and which difference shows as it is."""
    power = pair.power
    if power is None or pair.scored is None:
        return
    if power.scenarios:
        needed = [
            f"{scenarios:,} scenarios of {counted(trials, 'trial')}" for trials, scenarios in power.scenarios.items()
        ]
        trials = counted(power.trials or 0, "trial")
        again = f", or {trials} of each of these {pair.scored.scenarios}" if power.trials else ""
        yield f"To see a difference of this size (80 % power, 5 %): {', or '.join(needed)}{again}."
    if power.visible is None or (pair.are_shares and power.visible > 1):
        yield f"With {counted(pair.scored.scenarios, 'scenario')} no difference can be shown."
    else:
        yield f"As it is, a difference of {100 * power.visible:.1f} points or more shows."


def chance(p: float) -> str:
    """Format a chance for people."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _look(paired: Paired) -> Look:
    if paired.p_adjusted > 0.05:
        return Look.PLAIN
    return Look.GOOD if paired.difference > 0 else Look.BAD
