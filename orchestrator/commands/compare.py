"""`sweep compare`: arms against each other, paired by scenario."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.text import Text

from orchestrator.core.errors import UsageError
from orchestrator.core.printable import printable
from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.rundir.sweep_index import find, is_sweep
from orchestrator.view.comparison import Chosen, Comparison, Pair, as_record, compare
from orchestrator.view.comparison_tables import (
    flips_lines,
    flips_table,
    numbers_table,
    power_lines,
    sentences_table,
    sides_table,
    solved_table,
)
from orchestrator.view.console import Page, print_record
from orchestrator.view.formats import Format
from orchestrator.view.tables import Look, print_lines, print_listing

#: Columns of a sentence without a terminal to measure.
_WHOLE: Final = 1000


def run(runs: Path, words: Sequence[str], *, anyway: bool, output: Format) -> None:
    """Compare sweeps, or arms of them, named as SWEEP or SWEEP:ARM. Raises UsageError."""
    opened: dict[Path, RecordedSweep] = {}
    whole = compare([each for word in words for each in _arms(runs, word, opened)], anyway=anyway)
    if output.encode is not None:
        print_record({"event": "comparison"} | as_record(whole), output)
    elif output.has_words:
        print_listing(sentences_table(whole), output)
        print_listing(sides_table(whole), output)
        for pair in whole.pairs:
            print_listing(numbers_table(pair), output)
            print_listing(solved_table(pair), output)
        print_listing(flips_table(whole.pairs), output)
    elif output.tabulate is not None:
        print_listing(flips_table(whole.pairs), output)
    else:
        _print(whole, output)


def _arms(runs: Path, word: str, opened: dict[Path, RecordedSweep]) -> Iterator[Chosen]:
    """Yield the arms of a sweep, or the one that is named after a colon; both names may have colons."""
    colons = [at for at, character in enumerate(word) if character == ":"]
    names = [(word, None), *((word[:at], word[at + 1 :]) for at in reversed(colons))]
    name, arm = next((each for each in names if is_sweep(runs, each[0])), (word.partition(":")[0], None))
    folder = find(runs, name)
    sweep = opened.setdefault(folder.resolve(), RecordedSweep(folder))
    arms = sweep.plan.arms
    if arm is not None and arm not in arms:
        raise UsageError(f"{word}: {sweep.name} has no arm {arm!r}. There are: {', '.join(map(printable, arms))}.")
    for each in arms if arm is None else [arm]:
        yield sweep, each


def _print(whole: Comparison, output: Format) -> None:
    print_listing(sides_table(whole), output)
    for note in whole.notes:
        _say(f"Compared all the same: {note}.")
    for pair in whole.pairs:
        print_lines(["", (f"{pair.second} against {pair.first}", Look.HEAD)])
        _say(pair.sentence)
        _print_pair(pair, output)


def _print_pair(pair: Pair, output: Format) -> None:
    if pair.scored is not None or pair.floor is not None:
        print_lines([""])
        print_listing(numbers_table(pair), output)
        print_listing(solved_table(pair), output)
    print_lines(flips_lines(pair))
    for line in (*power_lines(pair), *pair.left_out):
        _say(line)


def _say(words: str) -> None:
    """Print a sentence, which a terminal breaks between words."""
    Page(_WHOLE).print(Text(printable(words)))
