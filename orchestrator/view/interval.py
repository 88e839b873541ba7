"""The 95 % confidence interval of a mean of scores. Pure.

Repeated trials of one scenario are not independent, so scenarios are counted. Scores of 0 and 1 have Wilson's interval,
which also shows how little a few perfect scores prove. Others have Student's t, if it has a width and stays within the
range of scores. Why not the bootstrap: it draws from the observed scores, so 26 scores of 1.0 would be a proof, and it
gives another number each time.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import atan2, cos, pi, sin, sqrt
from statistics import NormalDist, fmean
from typing import Final

_Z: Final = NormalDist().inv_cdf(0.975)
#: Half a width below this is rounding.
_EPSILON: Final = 1e-9

Interval = tuple[float, float] | tuple[None, None]


def interval(scores: Sequence[Sequence[float]]) -> Interval:
    """Return the interval of the mean; `scores` has one sequence for each scenario. (None, None) if it is undefined.

    The variance is that of a ratio of sums over clusters (Cochran, Sampling Techniques), because failed trials leave
    some scenarios with fewer scores than others. An endpoint elsewhere may give scores outside [0, 1]: those have
    Student's t, if they differ.
    """
    clusters = [values for values in scores if values]
    if not clusters:
        return None, None
    count = sum(map(len, clusters))
    mean = sum(map(sum, clusters)) / count
    #: The effective number of scenarios if all trials of one scenario had the same score (Kish).
    scenarios = count**2 / sum(len(values) ** 2 for values in clusters)
    if all(score in {0, 1} for values in clusters for score in values):
        return _wilson(mean, max(scenarios, count / _design_effect(clusters)))
    half = 0.0
    if len(clusters) > 1:
        half = t_quantile(len(clusters) - 1) * sqrt(_variance([(sum(values), len(values)) for values in clusters]))
    if not all(0 <= score <= 1 for values in clusters for score in values):
        return (mean - half, mean + half) if half > _EPSILON else (None, None)
    if half > _EPSILON and mean - half > 0 and mean + half < 1:
        return mean - half, mean + half
    low, high = _wilson(mean, scenarios)
    return max(0.0, min(low, mean - half)), min(1.0, max(high, mean + half))


def _variance(clusters: Sequence[tuple[float, float]]) -> float:
    """Return the variance of a mean; each cluster is the sum and the number of its scores."""
    count = sum(size for _, size in clusters)
    mean = sum(total for total, _ in clusters) / count
    spread = sum((total - mean * size) ** 2 for total, size in clusters)
    return len(clusters) / (len(clusters) - 1) * spread / count**2


def _design_effect(clusters: Sequence[Sequence[float]]) -> float:
    """Return the ratio of the variance of these scores of 0 or 1 to that of independent trials; at least 1.

    Two more scenarios are assumed, one that always succeeds and one that always fails. So few failures, or few
    scenarios, count as trials that agree (compare Agresti and Coull's interval).
    """
    size = fmean(map(len, clusters))
    seen = [(sum(values), float(len(values))) for values in clusters] + [(size, size), (0.0, size)]
    count = sum(each for _, each in seen)
    mean = sum(total for total, _ in seen) / count
    return max(1.0, _variance(seen) * count / (mean * (1 - mean)))


def _wilson(share: float, count: float) -> tuple[float, float]:
    """Return Wilson's score interval. It holds for any scores in [0, 1]: with a given mean, 0 and 1 vary most."""
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


@lru_cache
def t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t for `freedom` degrees of freedom, by bisection."""
    low, high = _Z, 13.0
    while (middle := (low + high) / 2) not in {low, high}:
        if _share_within(middle, freedom) < 0.95:
            low = middle
        else:
            high = middle
    return middle


def _share_within(t: float, freedom: int) -> float:
    """Return the probability that Student's t is between -t and t (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = atan2(t, sqrt(freedom))
    is_odd = freedom % 2 == 1
    term = cos(angle) if is_odd else 1.0
    total = term if freedom > 1 else 0.0
    for number in range(3 if is_odd else 2, freedom, 2):
        term *= (number - 1) / number * cos(angle) ** 2
        total += term
    share = sin(angle) * total
    return 2 / pi * (angle + share) if is_odd else share
