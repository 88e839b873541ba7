"""The finished picture and its numbers."""

from io import StringIO
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.events import Event
from orchestrator.ledger import fold
from orchestrator.plan import Plan
from orchestrator.view.report import ArmSummary, as_json, as_table, duration, interval, number, summarise

from .conftest import failed, make_plan, scored

SCORES = st.floats(0, 1)
#: The 97.5 % quantile of Student's t for n - 1 degrees of freedom, by n; from printed tables.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262, 30: 2.045, 100: 1.984}


def summary(plan: Plan, *events: Event) -> ArmSummary:
    [only] = summarise(fold(events), plan)
    return only


@pytest.mark.parametrize("count", STUDENT)
def test_the_interval_is_students(count: int) -> None:
    means = [0.5 + 0.001 * (-1) ** number * (1 + number % 3) for number in range(count)]
    low, high = interval([[mean] for mean in means])
    assert low is not None
    assert high is not None
    assert (high - low) / 2 == pytest.approx(STUDENT[count] * stdev(means) / sqrt(count), rel=0.01)
    assert (high + low) / 2 == pytest.approx(fmean(means))


@given(st.lists(SCORES, min_size=2, max_size=9), st.integers(1, 5))
def test_repeating_every_trial_with_the_same_score_teaches_nothing(means: list[float], trials: int) -> None:
    """Trials of one scenario are not independent: only more scenarios make the interval narrower."""
    assert interval([[mean] * trials for mean in means]) == pytest.approx(
        interval([[mean] for mean in means]), abs=1e-6
    )


@given(st.lists(st.lists(SCORES, min_size=1, max_size=4), min_size=2, max_size=9))
def test_the_mean_is_in_its_interval_and_that_in_the_range_of_scores(scores: list[list[float]]) -> None:
    low, high = interval(scores)
    assert low is not None
    assert high is not None
    mean = fmean(score for values in scores for score in values)
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 1


def test_one_scenario_has_no_interval() -> None:
    assert interval([]) == interval([[0.5, 0.7]]) == (None, None)


def test_a_failed_trial_lowers_the_floor_and_not_the_mean() -> None:
    only = summary(make_plan("x", "y", "z", "w"), scored("s0/a/1", 1.0), scored("s1/a/1", 0.5), failed("s2/a/1"))
    assert (only.planned, only.scored, only.failed) == (4, 2, 1)
    assert (only.mean, only.floor) == (0.75, 0.5)


def test_a_skipped_trial_is_neither_scored_nor_failed_nor_a_zero() -> None:
    only = summary(make_plan("x", "y"), scored("s0/a/1", 1.0), failed("s1/a/1", outcome="skipped"))
    assert (only.scored, only.failed, only.mean, only.floor) == (1, 0, 1.0, 1.0)


def test_nothing_finished_gives_no_numbers() -> None:
    only = summary(make_plan("x"))
    assert (only.scored, only.failed, only.mean, only.low, only.high, only.floor) == (0, 0, None, None, None, None)


def test_flags_and_agent_time_are_counted_an_arm() -> None:
    plan = make_plan("x", "y", arms=("a", "b"), trials=2)
    events = [scored("s0/a/1", 1.0, flags=["agent_crashed", "gather_incomplete"]), scored("s0/a/2", 0.0, seconds=30)]
    one, other = summarise(fold([*events, scored("s1/b/1", 0.25)]), plan)
    assert (one.arm, one.planned, one.scored, one.flagged, one.seconds) == ("a", 4, 2, 1, 90.0)
    assert (other.arm, other.scored, other.flagged, other.mean) == ("b", 1, 0, 0.25)


def test_trials_outside_the_plan_do_not_count() -> None:
    assert summary(make_plan("x"), scored("s0/a/1", 1.0), scored("s9/a/1", 0.0), scored("s0/a/2", 0.0)).mean == 1.0


def test_json_has_the_same_numbers() -> None:
    summaries = summarise(fold([scored("s0/a/1", 0.5)]), make_plan("x"))
    assert orjson.loads(orjson.dumps(as_json(summaries)))[0] == {
        "arm": "a", "planned": 1, "scored": 1, "failed": 0, "flagged": 0,
        "mean": 0.5, "low": None, "high": None, "floor": 0.5, "seconds": 60.0,
    }  # fmt: skip


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_says_arms_by_their_names_and_where_the_files_are(width: int) -> None:
    arms = ("[red]x", "[/bold]", ":bug:")
    summaries = summarise(fold([]), make_plan("x", arms=arms))
    drawn = StringIO()
    Console(file=drawn, width=width, emoji=False, soft_wrap=True).print(as_table(summaries, Path("runs/night")))
    text = drawn.getvalue()
    assert [arm for arm in arms if arm not in text] == []
    assert "runs/night/results.jsonl" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.4, "0 s"), (42, "42 s"), (59.4, "59 s"), (59.6, "1:00"), (60, "1:00"), (425, "7:05"),
     (3599.7, "1:00:00"), (12011, "3:20:11"), (100 * 3600, "100:00:00")],
)  # fmt: skip
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_scores_are_for_people() -> None:
    assert (number(None), number(0), number(2 / 3)) == ("-", "0.000", "0.667")
