"""Arms against each other: what is paired, counted, refused and said."""

import csv
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.commands import compare as command
from orchestrator.core.errors import UsageError
from orchestrator.core.events import SCHEMA, Event, SweepOpened, to_line
from orchestrator.core.records import ScenarioSummary
from orchestrator.rundir.checkpoint import CHECKPOINT
from orchestrator.rundir.files import JOURNAL
from orchestrator.rundir.manifest import Manifest, write_manifest
from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.view.comparison import Comparison, Pair, compare
from orchestrator.view.comparison_tables import numbers_table, power_lines
from orchestrator.view.formats import CSV, JSON, LINES, MARKDOWN
from orchestrator.view.statistics import bootstrap, holm, mcnemar, permutation, scenarios_needed, with_unseen

from .conftest import failed, scored

Scores = Mapping[str, Mapping[str, Iterable[float | None]]]


def make(
    folder: Path,
    scores: Scores,
    *,
    names: Mapping[str, str] | None = None,
    digests: Mapping[str, str] | None = None,
    usage: Mapping[str, float] | None = None,
    seconds: float = 60.0,
    **identity: str,
) -> RecordedSweep:
    """A run folder with these scores by arm and scenario; None for a trial that failed. A scenario's id is its key."""
    ids = dict.fromkeys(scenario for found in scores.values() for scenario in found)
    trials = max(len([*each]) for found in scores.values() for each in found.values())
    manifest = Manifest(
        schema=1,
        sweep=f"id of {folder.name}",
        identity={"benchmark": "b", "on_agent_failure": "score", "network": "agent", "scoring": "declared", **identity},
        config={"arms": [{"name": arm, "agent": arm} for arm in scores], "trials": trials, "devboxes": 1},
        scenarios={
            each: ScenarioSummary(id=each, name=(names or {}).get(each, each), digest=(digests or {}).get(each, "d"))
            for each in ids
        },
    )
    events: list[Event] = [SweepOpened(sweep=manifest.sweep, schema=SCHEMA, version="", pid=1)]
    events += [
        failed(f"{scenario}/{arm}/{number}")
        if score is None
        else scored(f"{scenario}/{arm}/{number}", score, usage=usage, seconds=seconds)
        for arm, found in scores.items()
        for scenario, each in found.items()
        for number, score in enumerate(each, 1)
    ]
    folder.mkdir(parents=True)
    write_manifest(folder, manifest)
    (folder / JOURNAL).write_bytes(b"".join(map(to_line, events)))
    return RecordedSweep(folder)


def compared(*sweeps: RecordedSweep, anyway: bool = False) -> Comparison:
    return compare([(sweep, arm) for sweep in sweeps for arm in sweep.plan.arms], anyway=anyway)


def single(*sweeps: RecordedSweep) -> Pair:
    [pair] = compared(*sweeps).pairs
    return pair


def test_arms_are_paired_by_scenario_and_a_scenario_counts_once_whatever_its_trials(tmp_path: Path) -> None:
    first = {"w": (1.0, 1.0, 1.0), "x": (0.0, 1.0, 0.0), "y": (0.0, 0.0, 0.0), "z": (1.0, 1.0, 0.0)}
    second = {"w": (1.0, 1.0, 1.0), "x": (1.0, 1.0, 1.0), "y": (1.0, 0.0, 1.0), "z": (1.0, 0.0, 0.0)}
    pair = single(make(tmp_path / "night", {"a": first, "b": second}))
    differences = [0.0, 2 / 3, 2 / 3, -1 / 3]
    assert pair.scored is not None
    assert pair.scored == pair.floor
    assert (pair.scored.scenarios, pair.scored.trials) == (4, (12, 12))
    assert pair.scored.means == pytest.approx((0.5, 0.75))
    assert pair.scored.difference == pytest.approx(fmean(differences))
    low, high = bootstrap(with_unseen(differences, 1.0))
    middle = fmean(differences)
    expected = min(low, 2 * middle - high), max(high, 2 * middle - low)
    assert (pair.scored.low, pair.scored.high) == pytest.approx(expected, abs=1e-9)
    assert (pair.scored.p, pair.scored.is_exact) == permutation(differences)
    solved = pair.scored.gained, pair.scored.lost, pair.scored.both, pair.scored.neither
    assert solved == (2, 1, 1, 0)
    assert pair.scored.p_solved == mcnemar(2, 1)
    assert [(flip.name, flip.is_gained, flip.solved, flip.shown) for flip in pair.flips] == [
        ("x", True, (1, 3), (1, 1)),
        ("y", True, (0, 2), (1, 1)),
        ("z", False, (2, 1), (1, 2)),
    ]
    assert pair.flips[2].commands[1] == f"sweep logs {tmp_path}/night z --arm b --trial 2"


def test_trials_without_a_score_are_said_and_counted_both_ways(tmp_path: Path) -> None:
    first = {"w": (1.0,), "x": (1.0,), "y": (0.0,), "z": (1.0,)}
    second = {"w": (1.0,), "x": (None,), "y": (1.0,), "z": ()}
    pair = single(make(tmp_path / "night", {"a": first, "b": second}))
    assert pair.scored is not None
    assert pair.floor is not None
    assert (pair.scored.scenarios, pair.scored.gained, pair.scored.lost) == (2, 1, 0)
    assert (pair.floor.scenarios, pair.floor.gained, pair.floor.lost) == (3, 1, 1)
    assert (pair.scored.difference, pair.floor.difference) == (0.5, 0.0)
    assert pair.left_out == ["1 scenario without a result of b yet: z.", "1 of 3 trials of b ended without a score."]
    assert "With a score of 0 for trials that failed, b solves as much as a" in pair.sentence
    assert [row[""] for row in numbers_table(pair).rows] == ["scored", "failed as 0", "time"]
    third = {"w": (0.0,), "x": (0.0,), "y": (None,), "z": (None,)}
    pairs = compared(
        make(tmp_path / "three", {"a": first, "b": {**second, "x": (0.0,), "z": (1.0,)}, "c": third})
    ).pairs
    assert [pair.has_failed for pair in pairs] == [False, True, True]
    lost = single(make(tmp_path / "lost", {"a": {"x": (1.0,)}, "b": {"x": (None,)}}))
    assert lost.sentence.startswith("b and a have no scenario in common of which both have a score. With a score of 0 ")


def test_the_sentence_says_how_much_how_sure_and_for_how_many_comparisons(tmp_path: Path) -> None:
    low, high = {f"s{n}": (float(n < 4),) for n in range(20)}, {f"s{n}": (float(n < 14),) for n in range(20)}
    better = single(make(tmp_path / "one", {"old": low, "new": high}))
    assert better.scored is not None
    assert better.sentence == (
        f"new solves 50.0 points more than old, 95 % interval {100 * better.scored.low:.1f} to "
        f"{100 * better.scored.high:.1f}, on 20 common scenarios; 10 gained, 0 lost: unlikely to be chance (p = 0.002)."
    )
    worse = single(make(tmp_path / "two", {"new": high, "old": low}))
    assert worse.sentence == (
        f"old solves 50.0 points less than new, 95 % interval of the difference {-100 * better.scored.high:.1f} to "
        f"{-100 * better.scored.low:.1f}, on 20 common scenarios; 0 gained, 10 lost: unlikely to be chance (p = 0.002)."
    )
    halves = single(make(tmp_path / "three", {"a": {"x": (0.5,), "y": (0.25,)}, "b": {"x": (0.75,), "y": (0.5,)}}))
    assert halves.sentence.startswith("b scores 25.0 points more than a, 95 % interval ")
    assert halves.sentence.endswith("on 2 common scenarios; 0 gained, 0 lost: may be chance (p = 0.5).")


def test_of_more_than_two_arms_each_is_compared_with_each_and_chances_are_adjusted(tmp_path: Path) -> None:
    arms = {
        arm: {f"s{n}": (float(n < solved),) for n in range(20)} for arm, solved in {"a": 4, "b": 9, "c": 18}.items()
    }
    pairs = compared(make(tmp_path / "night", arms)).pairs
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(pair.sentence.endswith("for 3 comparisons).") for pair in pairs)
    found = [pair.scored for pair in pairs if pair.scored is not None]
    assert [each.p_adjusted for each in found] == holm([each.p for each in found]) != [each.p for each in found]
    assert [each.p_solved_adjusted for each in found] == holm([each.p_solved for each in found])


def test_sweeps_are_paired_by_the_names_of_scenarios_and_what_is_alone_is_said(tmp_path: Path) -> None:
    """An endpoint has ids of its own; a name that two scenarios have tells nothing."""
    here = make(tmp_path / "here", {"a": {"1": (1.0,), "2": (1.0,), "3": (0.0,), "4": (1.0,), "5": (0.0,)}},
                names={"1": "x", "2": "y", "3": "here only", "4": "twin", "5": "twin"})  # fmt: skip
    there = make(
        tmp_path / "there", {"a": {"7": (0.0,), "8": (1.0,), "4": (1.0,)}}, names={"7": "x", "8": "y", "4": "4"}
    )
    pair = single(here, there)
    assert (pair.first, pair.second) == ("here", "there")
    assert pair.scored is not None
    assert (pair.scored.scenarios, pair.scored.lost) == (3, 1)
    assert [(flip.name, flip.scenario) for flip in pair.flips] == [("x", ("1", "7"))]
    assert pair.left_out == ["2 scenarios in here only: here only, 5."]
    nothing = single(here, make(tmp_path / "else", {"a": {"9": (1.0,)}}))
    assert (nothing.scored, nothing.floor, nothing.power, nothing.cost, [*nothing.flips]) == (
        None,
        None,
        None,
        None,
        [],
    )
    assert nothing.sentence == "else and here have no scenario in common of which both have a score."


def test_arms_are_told_apart_by_the_shortest_names_that_do(tmp_path: Path) -> None:
    scores = {"x": (1.0,)}
    one, two = make(tmp_path / "one", {"a": scores, "b": scores}), make(tmp_path / "two", {"a": scores})
    twin = make(tmp_path / "else" / "two", {"a": scores})
    assert [side.label for side in compared(one).sides] == ["a", "b"]
    assert [side.label for side in compare([(one, "a"), (two, "a")]).sides] == ["one", "two"]
    assert [side.label for side in compared(one, two).sides] == ["one:a", "one:b", "two:a"]
    assert [side.label for side in compared(two, twin).sides] == [f"{tmp_path}/two:a", f"{tmp_path}/else/two:a"]


def test_what_was_scored_otherwise_or_has_changed_is_refused_by_name_unless_asked_for(tmp_path: Path) -> None:
    scores = {"a": {"x": (1.0,), "y": (0.0,)}}
    old = make(tmp_path / "old", scores)
    new = make(tmp_path / "new", scores, digests={"y": "another"}, scoring="separate")
    says = "scoring is declared in old, separate in new; the content of y is not the same"
    with pytest.raises(UsageError, match=f"{says}. --anyway compares them all the same."):
        compared(old, new)
    assert compared(old, new, anyway=True).notes == says.split("; ")
    unknown = make(tmp_path / "unknown", scores, digests={"x": "", "y": ""})
    assert compared(old, unknown).notes == []
    with pytest.raises(UsageError, match="old:a is named twice"):
        compared(old, old)
    with pytest.raises(UsageError, match="two arms or more"):
        compared(old)


def test_cost_and_time_are_those_of_a_trial_of_common_scenarios(tmp_path: Path) -> None:
    scores = {"x": (1.0,), "y": (0.0,), "z": (None,)}
    cheap = make(tmp_path / "cheap", {"a": scores}, usage={"cost_usd": 0.25}, seconds=100)
    dear = make(tmp_path / "dear", {"a": scores}, usage={"cost_usd": 0.75}, seconds=40)
    free = make(tmp_path / "free", {"a": scores})
    pair = single(cheap, dear)
    assert pair.cost is not None
    assert pair.seconds is not None
    assert (pair.cost.scenarios, pair.cost.means, pair.cost.difference) == (2, (0.25, 0.75), 0.5)
    assert (pair.seconds.means, pair.seconds.low, pair.seconds.high) == ((100, 40), -60, -60)
    assert [row["difference"] for row in numbers_table(pair).rows[-2:]] == ["+$0.500", "-1:00"]
    assert single(cheap, free).cost is None, "who reports no cost has none to compare"


def test_it_is_told_how_many_scenarios_and_trials_show_such_a_difference(tmp_path: Path) -> None:
    """Of one trial it is as many scenarios; of several, also more trials, as far as luck makes the difference vary."""
    few = {"a": {f"s{n}": (float(n < 8),) for n in range(20)}, "b": {f"s{n}": (float(n < 11),) for n in range(20)}}
    pair = single(make(tmp_path / "few", few))
    assert pair.power is not None
    differences = [0.0] * 17 + [1.0] * 3
    spread = variance(with_unseen(differences, 1.0))
    assert pair.power.scenarios == {1: scenarios_needed(0.15, spread)}
    assert pair.power.trials is None
    assert next(power_lines(pair)) == (
        f"To see a difference of this size (80 % power, 5 %): {pair.power.scenarios[1]} scenarios of 1 trial."
    )
    luck = {
        "a": {f"s{n}": (0.0, 1.0, 0.0, 0.0) for n in range(20)},
        "b": {f"s{n}": (1.0, 0.0, 1.0, 0.0) for n in range(20)},
    }
    several = single(make(tmp_path / "luck", luck)).power
    assert several is not None
    assert [*several.scenarios] == [1, 2, 4, 8]
    assert [*several.scenarios.values()] == sorted(several.scenarios.values(), reverse=True)
    assert several.trials is not None
    assert 1 <= several.trials <= 8
    same = single(make(tmp_path / "same", {"a": {"x": (1.0,)}, "b": {"x": (1.0,)}}))
    assert same.power is not None
    assert same.power.scenarios == {}
    assert [*power_lines(same)] == ["With 1 scenario no difference can be shown."]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make(tmp_path / "old", {"mini": {f"s{n}": (1.0,) for n in range(15)}, "m:x": {"s1": (1.0,)}})
    make(tmp_path / "new", {"mini": {f"s{n}": (float(n > 11),) for n in range(14)} | {"\x1b[2J|": (1.0,)}})
    return tmp_path


def test_the_command_takes_sweeps_and_arms_of_them_and_names_what_is_not_there(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.run(runs, ["old:mini", "new"], anyway=False, output=JSON)
    record = orjson.loads(capsys.readouterr().out)
    assert [side["label"] for side in record["sides"]] == ["old", "new"]
    assert (record["event"], record["pairs"][0]["scored"]["lost"]) == ("comparison", 12)
    command.run(runs, ["old:m:x", "new:mini"], anyway=False, output=JSON)
    assert [side["arm"] for side in orjson.loads(capsys.readouterr().out)["sides"]] == ["m:x", "mini"]
    for words, says in (
        (["old:mimi", "new"], "old:mimi: old has no arm 'mimi'. There are: mini, m:x."),
        (["odl", "new"], "There is no sweep 'odl' in .*Did you mean old?"),
        (["odl:mini", "new"], "There is no sweep 'odl' in .*Did you mean old?"),
    ):
        with pytest.raises(UsageError, match=says):
            command.run(runs, words, anyway=False, output=LINES)


def test_nothing_but_the_format_is_on_standard_output(runs: Path) -> None:
    """A cache that cannot be used is no news for who reads JSON."""
    (runs / "new" / CHECKPOINT).write_text("none\n")
    words = ["compare", "old:mini", "new", "--json", "--runs", str(runs)]
    ended = CliRunner().invoke(app, words)
    assert orjson.loads(ended.stdout)["event"] == "comparison"


def test_each_format_lists_what_was_gained_and_lost_with_the_command_for_the_log(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(output: Any) -> str:
        command.run(runs, ["old:mini", "new"], anyway=False, output=output)
        return capsys.readouterr().out

    text = printed(LINES)
    lines = text.splitlines()
    at = lines.index("Lost by new: 12")
    assert lines[at + 1 : at + 3] == ["  s0  1.000 -> 0.000", f"     sweep logs {runs}/new s0"]
    assert lines[at + 21] == "  and 2 others, which --csv and --json list"
    assert "new solves 85.7 points less than old" in text
    assert "1 scenario in new only: \\x1b[2J|." in lines
    rows = [*csv.DictReader(StringIO(printed(CSV)))]
    assert [row["change"] for row in rows] == ["lost"] * 12
    assert rows[0]["second_log"] == f"sweep logs {runs}/new s0"
    command.run(runs, ["old:mini", "old:m:x"], anyway=False, output=CSV)
    assert capsys.readouterr().out.startswith("scenario,change,first,first_solved,"), "there are headings without rows"
    markdown = printed(MARKDOWN)
    assert markdown.startswith("| comparison |\n| --- |\n| new solves 85.7 points less than old")
    assert "| s0 | lost by new | 1/1 | 0/1 | sweep logs " in markdown
    assert "\x1b" not in text + markdown
