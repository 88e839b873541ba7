"""The statistics of scores, beside the interval of a mean. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import ceil, comb, sqrt
from random import Random
from statistics import NormalDist, fmean
from typing import Final

from orchestrator.view.interval import t_quantile

#: The number of resamples, and of permutations where they are too many to count each of them.
RESAMPLES: Final = 10_000
#: Draws that are enough: of many scenarios there are fewer resamples.
_DRAWS: Final = 10_000_000
#: Sums that are formed, at most, where each permutation is counted.
_COUNTED: Final = 200_000
_SEED: Final = 1
#: Steps up to the largest number, and down, that resampled numbers are rounded to: shares of 1 to 6, 8, 10 or 12 trials
#: are exact.
_STEPS: Final = 120
#: The binary digits of the numbers that are permuted, and their parts where each is counted.
_DIGITS: Final = 16
_PARTS: Final = 10**9
#: A chance that is never met.
_NEVER: Final = 1e-12
#: The error that is risked, and the power to see what is there.
ALPHA: Final = 0.05
POWER: Final = 0.8
_Z: Final = NormalDist().inv_cdf(1 - ALPHA / 2)
_Z_BOTH: Final = _Z + NormalDist().inv_cdf(POWER)


def passes(trials: int) -> Sequence[int]:
    """Return the numbers of trials that `pass_at` and `pass_hat` are told for: 1, 2, 4 … and all; none of one trial."""
    return [*(1 << power for power in range((trials - 1).bit_length())), trials] if trials > 1 else []


def pass_at(scenarios: Sequence[tuple[int, int]], sizes: Sequence[int]) -> Mapping[int, float]:
    """Return the chance that at least one of k trials solves a scenario, for each k of `sizes`: pass@k.

    `scenarios` has the number of trials that solved a scenario, and of all its trials. This is the unbiased estimator
    of Chen et al. 2021 (Evaluating Large Language Models Trained on Code): the share of the choices of k trials that
    have one, on the mean over scenarios. Scenarios with fewer than k trials are left out; without any, k is too.
    """
    return {
        k: fmean(1 - comb(count - solved, k) / comb(count, k) for solved, count in enough)
        for k in sizes
        if (enough := [each for each in scenarios if each[1] >= k])
    }


def pass_hat(scenarios: Sequence[tuple[int, int]], sizes: Sequence[int]) -> Mapping[int, float]:
    """Return the chance that all of k trials solve a scenario, for each k of `sizes`: pass^k.

    As `pass_at`, by the estimator of Yao et al. 2024 (τ-bench).
    """
    return {
        k: fmean(comb(solved, k) / comb(count, k) for solved, count in enough)
        for k in sizes
        if (enough := [each for each in scenarios if each[1] >= k])
    }


def quantile(ascending: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values, of which there are some; linear between two of them (Hyndman and Fan's 7)."""
    at = share * (len(ascending) - 1)
    below = int(at)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (at - below) * (ascending[above] - ascending[below])


def with_unseen(differences: Sequence[float], unseen: float) -> Sequence[float]:
    """Return paired differences, one for each scenario, with those of two more scenarios, which differ each way.

    They differ as much as those that differ; by `unseen` if none does. So a few differences, or none, prove no more
    than they can. Bonett and Price 2012 (Adjusted Wald Confidence Interval for a Difference of Binomial Proportions
    Based on Paired Data) assume the same two for shares.
    """
    seen = [each for each in differences if each]
    typical = sqrt(fmean(each**2 for each in seen)) if seen else unseen
    return [*differences, typical, -typical]


def bootstrap(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of paired differences, one for each scenario, by the bootstrap.

    Scenarios are drawn with replacement, all trials of one together. Its percentiles make the interval as wide as
    Student's t of few scenarios (Hesterberg 2015, What Teachers Should Know About the Bootstrap). It is seeded: equal
    differences have equal intervals. There are two differences or more.
    """
    count, mean, largest = len(differences), fmean(differences), max(map(abs, differences))
    if not largest:
        return mean, mean
    codes = [round(each / largest * _STEPS) + _STEPS for each in differences]
    sums = sorted(_resampled_sums(codes))
    share = NormalDist().cdf(-sqrt(count / (count - 1)) * t_quantile(count - 1))
    low, high = (mean + (quantile(sums, at) - sum(codes)) / count / _STEPS * largest for at in (share, 1 - share))
    return low, high


def _resampled_sums(codes: Sequence[int]) -> Iterator[int]:
    """Yield the sums of as many numbers, drawn from these with replacement; they are from 0 to 255.

    A number is drawn by the digits of its share to the base 256: a random byte decides by the first digit, or leaves it
    to another byte and the next digit. So bytes are drawn, translated and added, and Python does nothing for each.
    """
    tables, shares, is_open = [], Counter(codes), 1.0
    while is_open > _NEVER:
        whole = shares.total()
        decided = b"".join(bytes([code]) * (256 * share // whole) for code, share in shares.items())
        tables.append((decided.ljust(256, b"\0"), bytes(range(len(decided), 256))))
        shares = Counter({code: 256 * share % whole for code, share in shares.items()})
        is_open *= 1 - len(decided) / 256
    dice = Random(_SEED)  # noqa: S311 - no secret
    for _ in range(min(RESAMPLES, _DRAWS // len(codes))):
        total, left = 0, len(codes)
        for table, undecided in tables:
            drawn = dice.randbytes(left).translate(table, undecided)
            total += sum(drawn)
            left -= len(drawn)
            if not left:
                break
        yield total


def permutation(differences: Sequence[float]) -> tuple[float, bool]:
    """Return the chance of a sum as large, either way, if each difference might as well be the other way round.

    The second value tells if all permutations were counted (Fisher's test). If they are too many, some are drawn with a
    seed, and the one that was found is counted with them, so that the chance is never 0 (Phipson and Smyth 2010,
    Permutation P-values Should Never Be Zero).
    """
    found = abs(round(sum(differences) * _PARTS))
    sums, formed = {0: 1}, 0
    for size, count in Counter(round(abs(each) * _PARTS) for each in differences if each).items():
        formed += len(sums) * (count + 1)
        if formed > _COUNTED:
            return _permuted(differences), False
        ways = _choices(count, count)
        grown: Counter[int] = Counter()
        for total, before in sums.items():
            for turned in range(count + 1):
                grown[total + size * (count - 2 * turned)] += before * ways[turned]
        sums = grown
    rounding = len(differences)
    extreme = sum(ways for total, ways in sums.items() if abs(total) >= found - rounding)
    return extreme / sum(sums.values()), True


def _permuted(differences: Sequence[float]) -> float:
    """Return the share of permutations with a sum as large: a bit for the sign of each, and a sum for each digit."""
    largest = max(map(abs, differences))
    sizes = [round(abs(each) / largest * (1 << _DIGITS)) for each in differences]
    digits = [sum((size >> digit & 1) << at for at, size in enumerate(sizes)) for digit in range(_DIGITS + 1)]
    found = abs(sum(size if each > 0 else -size for size, each in zip(sizes, differences, strict=True)))
    whole, rounding, extreme = sum(sizes), len(sizes), 1
    dice = Random(_SEED)  # noqa: S311 - no secret
    for _ in range(RESAMPLES):
        signs = dice.getrandbits(len(sizes))
        positive = sum((signs & has).bit_count() << digit for digit, has in enumerate(digits))
        extreme += abs(2 * positive - whole) >= found - rounding
    return extreme / (RESAMPLES + 1)


def mcnemar(gained: int, lost: int) -> float:
    """Return the chance of counts as unequal if both changes are as likely: McNemar's exact test, two-sided."""
    extreme = sum(_choices(gained + lost, min(gained, lost)))
    return min(1.0, float(Fraction(2 * extreme, 2 ** (gained + lost))))


def _choices(count: int, most: int) -> Sequence[int]:
    """Return the numbers of ways to choose 0 to `most` of `count`."""
    ways = [1]
    for chosen in range(most):
        ways.append(ways[-1] * (count - chosen) // (chosen + 1))
    return ways


def holm(chances: Sequence[float]) -> Sequence[float]:
    """Return the chances, adjusted for as many tests at once (Holm 1979), in the same order."""
    adjusted = [0.0] * len(chances)
    highest = 0.0
    for rank, at in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[at]))
        adjusted[at] = highest
    return adjusted


def scenarios_needed(difference: float, variance: float) -> int:
    """Return the number of scenarios that show such a mean difference, other than 0, with 80 % power at 5 %.

    `variance` is that of the differences of scenarios. By normal quantiles, with the scenarios that Student's t takes
    more (Guenther 1981, Sample Size Formulas for Normal Theory T Tests).
    """
    return ceil(variance * (_Z_BOTH / difference) ** 2 + _Z**2 / 2)


def trials_needed(difference: float, scenarios: int, between: float, of_trial: float) -> int | None:
    """Return the number of trials of each of so many scenarios that show such a difference, by `scenarios_needed`.

    `between` is the variance of the differences of scenarios that no trials make smaller, `of_trial` what one trial of
    both arms adds. None if no number is enough.
    """
    left = (scenarios - _Z**2 / 2) * (difference / _Z_BOTH) ** 2 - between
    return max(1, ceil(of_trial / left)) if left > 0 else None


def visible_difference(scenarios: int, variance: float) -> float | None:
    """Return the smallest mean difference that so many scenarios show, by `scenarios_needed`; None of too few."""
    rest = scenarios - _Z**2 / 2
    return _Z_BOTH * sqrt(variance / rest) if rest > 0 else None
