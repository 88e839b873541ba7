"""The interval of a mean: against SciPy, against its own claim of 95 %, and at the ends."""

from collections.abc import Callable
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.view.interval import interval, t_quantile

SCORES = st.floats(0, 1)
Draw = Callable[[Random], list[list[float]]]


def span(scores: list[list[float]]) -> tuple[float, float]:
    low, high = interval(scores)
    assert low is not None
    assert high is not None
    return low, high


@pytest.mark.parametrize("count", [1, 2, 3, 10, 26, 100, 500])
def test_the_interval_of_independent_zeros_and_ones_is_wilsons(count: int) -> None:
    for ones in {0, 1, count // 3, count - 1, count}:
        expected = stats.binomtest(ones, count).proportion_ci(method="wilson")
        assert span([[1.0]] * ones + [[0.0]] * (count - ones)) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("count", [2, 3, 4, 10, 26, 100, 500])
def test_the_interval_of_fractions_is_students(count: int) -> None:
    draw = Random(count)
    scores = [0.5 + draw.uniform(-0.01, 0.01) for _ in range(count)]
    expected = stats.t.interval(0.95, count - 1, loc=fmean(scores), scale=stats.sem(scores))
    assert span([[score] for score in scores]) == pytest.approx(expected)


@pytest.mark.parametrize("freedom", [*range(1, 35), 100, 999, 1000])
def test_the_quantile_is_students(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


@given(st.lists(SCORES, min_size=1, max_size=9), st.integers(1, 5))
def test_repeating_every_trial_with_the_same_score_teaches_nothing(means: list[float], trials: int) -> None:
    """Trials of one scenario are not independent: only more scenarios make the interval narrower."""
    assert span([[mean] * trials for mean in means]) == pytest.approx(span([[mean] for mean in means]), abs=1e-6)


@pytest.mark.parametrize("trials", [1, 3])
def test_perfect_scores_prove_what_few_of_them_can(trials: int) -> None:
    assert span([[1.0] * trials] * 26) == pytest.approx((0.8713, 1.0), abs=1e-4)
    assert span([[0.0] * trials] * 26) == pytest.approx((0.0, 0.1287), abs=1e-4)
    assert span([[1.0] * trials]) == pytest.approx((0.2065, 1.0), abs=1e-4)


def test_scores_that_are_all_but_perfect_prove_no_more_than_perfect_ones() -> None:
    assert span([[1.0]] * 25 + [[0.999]]) == pytest.approx(span([[1.0]] * 26), abs=2e-3)


def test_one_failure_more_never_makes_the_interval_of_better_scores() -> None:
    """The failures may be of one scenario each or of all its trials."""
    for bad in ([1.0, 1.0, 0.0], [0.0, 0.0, 0.0]):
        spans = [span([[1.0] * 3] * (26 - count) + [bad] * count) for count in range(27)]
        for ends in zip(*spans, strict=True):
            assert list(ends) == sorted(ends, reverse=True)


def test_trials_that_differ_within_a_scenario_teach_more_than_trials_that_do_not() -> None:
    low, high = span([[1.0, 0.0]] * 13 + [[0.0, 1.0]] * 13)
    same_low, same_high = span([[1.0, 1.0]] * 13 + [[0.0, 0.0]] * 13)
    all_low, all_high = span([[1.0]] * 26 + [[0.0]] * 26)
    assert same_low < low == pytest.approx(all_low)
    assert all_high == pytest.approx(high)
    assert high < same_high


@given(st.lists(st.lists(SCORES | st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=4), min_size=1, max_size=9))
def test_the_mean_is_within_and_there_is_a_width(scores: list[list[float]]) -> None:
    low, high = span(scores)
    mean = fmean(score for values in scores for score in values)
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 1
    assert high > low


def test_there_is_no_interval_without_scores_and_lost_scores_do_not_count() -> None:
    assert interval([]) == interval([[], []]) == (None, None)
    assert interval([[1.0], [], [0.0]]) == interval([[1.0], [0.0]])


def test_scores_of_another_range_have_students_if_they_differ() -> None:
    """An endpoint elsewhere may score as it likes."""
    expected = stats.t.interval(0.95, 2, loc=20, scale=stats.sem([10, 20, 30]))
    assert span([[10.0], [20.0], [30.0]]) == pytest.approx(expected)
    assert interval([[-1.0], [-1.0]]) == interval([[7.0]]) == (None, None)


def alone(share: float, scenarios: int) -> Draw:
    return lambda draw: [[float(draw.random() < share)] for _ in range(scenarios)]


def repeated(alpha: float, beta: float, scenarios: int, trials: int) -> Draw:
    """Each scenario has a chance of its own."""

    def scenario(draw: Random) -> list[float]:
        share = draw.betavariate(alpha, beta)
        return [float(draw.random() < share) for _ in range(trials)]

    return lambda draw: [scenario(draw) for _ in range(scenarios)]


def fractions(alpha: float, beta: float, scenarios: int) -> Draw:
    return lambda draw: [[draw.betavariate(alpha, beta)] for _ in range(scenarios)]


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (alone(0.5, 10), 0.5),
        (alone(0.8, 26), 0.8),
        (alone(0.95, 26), 0.95),
        (alone(0.3, 100), 0.3),
        (repeated(0.1, 0.1, 26, 3), 0.5),
        (repeated(2, 2, 5, 3), 0.5),
        (repeated(2, 2, 26, 3), 0.5),
        (repeated(8, 2, 26, 5), 0.8),
        (repeated(50, 50, 10, 3), 0.5),
        (fractions(2, 2, 5), 0.5),
        (fractions(5, 1, 26), 5 / 6),
        (fractions(0.5, 0.5, 26), 0.5),
        (fractions(0.2, 1, 26), 1 / 6),
    ],
)
def test_the_interval_covers_the_truth_in_95_of_100_sweeps(draw: Draw, mean: float) -> None:
    """Nearly, for intervals of few scores; wider is allowed with few scenarios."""
    dice = Random(1)
    covered = [low <= mean <= high for low, high in (span(draw(dice)) for _ in range(600))]
    assert fmean(covered) >= 0.92
