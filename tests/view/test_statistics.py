"""The statistics of scores: against SciPy and statsmodels, against published examples, and against their own claims."""

from collections.abc import Callable
from itertools import combinations, product
from math import sqrt
from random import Random
from statistics import fmean, variance

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from orchestrator.view import statistics
from orchestrator.view.interval import t_quantile
from orchestrator.view.statistics import (
    bootstrap,
    holm,
    mcnemar,
    pass_at,
    pass_hat,
    passes,
    permutation,
    quantile,
    scenarios_needed,
    visible_difference,
    with_unseen,
)

#: Darwin's pairs of crossed and self-fertilised maize, in eighths of an inch.
DARWIN = [49.0, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
Draw = Callable[[Random], list[float]]


@pytest.mark.parametrize(("solved", "trials"), [(0, 4), (1, 4), (3, 4), (4, 4), (2, 7)])
def test_pass_at_k_and_pass_hat_k_are_the_shares_of_choices_of_k_trials(solved: int, trials: int) -> None:
    outcomes = [True] * solved + [False] * (trials - solved)
    sizes = passes(trials)
    choices = {k: list(combinations(outcomes, k)) for k in sizes}
    assert pass_at([(solved, trials)], sizes) == pytest.approx({k: fmean(map(any, choices[k])) for k in sizes})
    assert pass_hat([(solved, trials)], sizes) == pytest.approx({k: fmean(map(all, choices[k])) for k in sizes})


def test_pass_at_k_is_that_of_the_paper_and_its_mean_is_over_scenarios() -> None:
    """Chen et al. 2021, figure 3: 1 - np.prod(1 - k / np.arange(n - c + 1, n + 1))."""
    seen = [(13, 200), (0, 200), (170, 200)]
    for k in (1, 10, 100):
        expected = [1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)) if n - c >= k else 1.0 for c, n in seen]
        assert pass_at(seen, [k])[k] == pytest.approx(fmean(expected))
    assert pass_at([(1, 2), (3, 3)], [3]) == {3: 1.0}, "a scenario with too few trials is left out"
    assert pass_at([(1, 2)], [3]) == pass_hat([], [1]) == {}


def test_passes_are_told_for_powers_of_two_and_for_all_trials() -> None:
    assert [[*passes(trials)] for trials in (1, 2, 3, 4, 5, 10)] == [
        [], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 5], [1, 2, 4, 8, 10],
    ]  # fmt: skip


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(0, 1))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    expected = float(np.quantile(values, share))
    assert quantile(sorted(values), share) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_mcnemars_test_has_the_values_of_published_examples() -> None:
    """Fagerland, Lydersen and Laake 2013, The McNemar test for binary matched-pairs data, both examples."""
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)
    assert mcnemar(6, 16) == pytest.approx(0.0525, abs=5e-5)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 1), (5, 5), (19, 6), (121, 59), (0, 40), (2300, 2000)])
def test_mcnemars_test_is_that_of_statsmodels_and_the_permutation_test_agrees(gained: int, lost: int) -> None:
    expected = mcnemar_of_statsmodels([[9, gained], [lost, 9]], exact=True).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)
    chance, is_exact = permutation([1.0] * gained + [-1.0] * lost + [0.0] * 7)
    assert is_exact
    assert chance == pytest.approx(expected, rel=1e-9)


def test_the_permutation_test_has_fishers_value_for_darwins_maize() -> None:
    """The Design of Experiments, section 21: 863 of 32,768 arrangements have so large a sum, one way."""
    assert permutation(DARWIN) == (2 * 863 / 32768, True)


def test_the_permutation_test_is_scipys_and_drawn_permutations_come_near_it() -> None:
    dice = Random(4)
    for values in ([dice.gauss(0.2, 0.5) for _ in range(12)], [dice.randint(-1, 3) / 3 for _ in range(14)]):
        exact = stats.permutation_test(
            ([*values], [0.0] * len(values)),
            lambda x, y: np.mean(x - y),
            permutation_type="samples",
            n_resamples=np.inf,
        ).pvalue
        chance, is_exact = permutation(values)
        assert is_exact
        assert chance == pytest.approx(exact)
        assert statistics._permuted(values) == pytest.approx(exact, abs=0.015)


def test_drawn_permutations_are_never_impossible_and_always_the_same() -> None:
    values = [1 + sqrt(number) for number in range(60)]
    assert permutation(values) == permutation(values) == (1 / 10_001, False)


def test_the_permutation_test_errs_in_5_of_100_comparisons_of_equals() -> None:
    dice = Random(7)
    small = [permutation([dice.choice((-1, -0.5, 0, 0.5, 1)) for _ in range(26)])[0] <= 0.05 for _ in range(1000)]
    assert 0.02 <= fmean(small) <= 0.06


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([1.0] * 19 + [-1.0] * 6 + [0.0] * 287, id="flips"),
        pytest.param(with_unseen([0.0] * 5 + [2 / 3] * 3 + [-1 / 3] * 4, 1.0), id="shares"),
        pytest.param([Random(3).gauss(0.1, 0.3) for _ in range(40)], id="one"),
        pytest.param([*map(Random(3).gauss, [0.1] * 400, [0.3] * 400)], id="many"),
        pytest.param(DARWIN, id="darwin"),
    ],
)
def test_the_interval_of_differences_is_scipys_bootstrap_with_students_percentiles(
    values: list[float],
) -> None:
    count = len(values)
    share = stats.norm.cdf(-sqrt(count / (count - 1)) * t_quantile(count - 1))
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", confidence_level=1 - 2 * share, n_resamples=20_000, rng=1
    ).confidence_interval
    error = float(np.std(values)) / sqrt(count)
    assert bootstrap(values) == pytest.approx(tuple(expected), abs=0.12 * error)
    assert bootstrap(values) == bootstrap([*values])


def test_many_scenarios_have_the_interval_of_the_normal_curve() -> None:
    dice = Random(8)
    values = [dice.gauss(0.05, 0.4) for _ in range(5000)]
    expected = stats.norm.interval(0.95, loc=fmean(values), scale=stats.sem(values))
    assert bootstrap(values) == pytest.approx(expected, abs=0.1 * float(stats.sem(values)))


def test_differences_that_are_all_the_same_prove_what_few_of_them_can() -> None:
    """Nearly the interval of Bonett and Price 2012 for shares of pairs."""
    for gained, lost, same in ((0, 0, 26), (26, 0, 0), (1, 0, 25), (7, 1, 13), (19, 6, 287)):
        count = gained + lost + same + 2
        up, down = (gained + 1) / count, (lost + 1) / count
        half = 1.96 * sqrt((up + down - (up - down) ** 2) / count)
        low, high = bootstrap(with_unseen([1.0] * gained + [-1.0] * lost + [0.0] * same, 1.0))
        assert (low, high) == pytest.approx((up - down - half, min(1.0, up - down + half)), abs=0.035)
        assert low <= (up - down) <= high


def flips(up: float, down: float, scenarios: int) -> Draw:
    def scenario(draw: Random) -> float:
        share = draw.random()
        return 1.0 if share < up else -1.0 if share < up + down else 0.0

    return lambda draw: [scenario(draw) for _ in range(scenarios)]


def trials(chance: float, other: float, scenarios: int, count: int) -> Draw:
    def mean(draw: Random, share: float) -> float:
        return fmean(draw.random() < share for _ in range(count))

    return lambda draw: [mean(draw, other) - mean(draw, chance) for _ in range(scenarios)]


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (flips(0.05, 0.02, 26), 0.03),
        (flips(0.3, 0.1, 26), 0.2),
        (flips(0.06, 0.02, 150), 0.04),
        (trials(0.5, 0.6, 10, 3), 0.1),
        (trials(0.8, 0.8, 26, 2), 0.0),
    ],
)
def test_the_interval_of_differences_covers_the_truth_in_95_of_100_comparisons(
    draw: Draw, truth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    dice = Random(1)
    spans = [bootstrap(with_unseen(draw(dice), 1.0)) for _ in range(250)]
    assert fmean(low <= truth <= high for low, high in spans) >= 0.92


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holms_adjustment_is_that_of_statsmodels(chances: list[float]) -> None:
    assert [*holm(chances)] == pytest.approx(multipletests(chances, method="holm")[1])


def test_holms_adjustment_has_the_values_of_a_worked_example() -> None:
    """Wikipedia, Holm-Bonferroni method: 0.01, 0.04, 0.03 and 0.005 at a level of 0.05."""
    assert [*holm([0.01, 0.04, 0.03, 0.005])] == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize("effect", [0.05, 0.2, 0.3, 0.5, 0.8])
def test_as_many_scenarios_are_needed_as_statsmodels_says(effect: float) -> None:
    """34 pairs at 0.5 and 199 at 0.2 are what G*Power has, too."""
    expected = TTestPower().solve_power(effect, alpha=0.05, power=0.8)
    needed = scenarios_needed(effect * 0.3, 0.3**2)
    assert expected <= needed <= expected + 1.5
    assert visible_difference(needed, 0.3**2) == pytest.approx(effect * 0.3, rel=0.04)
    assert visible_difference(1, 0.3**2) is None


def test_the_needed_scenarios_show_the_difference_in_80_of_100_comparisons() -> None:
    dice = Random(6)
    draw = trials(0.4, 0.6, scenarios_needed(0.2, 0.48 / 3), 3)
    seen = [permutation(draw(dice))[0] <= 0.05 for _ in range(400)]
    assert 0.74 <= fmean(seen) <= 0.88


@settings(max_examples=30)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=9))
def test_each_permutation_is_counted(values: list[float]) -> None:
    found = abs(sum(values))
    sums = [abs(sum(map(float.__mul__, values, signs))) for signs in product((1.0, -1.0), repeat=len(values))]
    assert permutation(values) == (fmean(total >= found for total in sums), True)
    assert variance([*with_unseen(values, 1.0)]) > 0
