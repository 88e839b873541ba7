"""Arms against each other, paired by scenario, so that what is hard weighs on both."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, variance
from typing import Any, Final

from orchestrator.core.errors import UsageError
from orchestrator.core.ledger import Trial
from orchestrator.core.printable import counted
from orchestrator.core.records import TrialKey
from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.rundir.sweep_index import trial_as_typed
from orchestrator.view.report import SOLVED, ArmSummary, summarise
from orchestrator.view.statistics import (
    ALPHA,
    bootstrap,
    holm,
    mcnemar,
    permutation,
    scenarios_needed,
    trials_needed,
    visible_difference,
    with_unseen,
)

#: An arm of a sweep.
Chosen = tuple[RecordedSweep, str]
#: The values of the trials of each scenario, by its name.
Values = Mapping[str, Sequence[float]]
#: The parts of a sweep's identity without which scores mean something else.
_SHARED: Final = ("benchmark", "scoring", "on_agent_failure", "network")
#: Numbers of trials that the needed scenarios are told for.
_TRIALS: Final = (1, 2, 4, 8)
#: Scenarios that are named in a sentence.
_NAMED: Final = 5
#: Digits of a difference; beyond them is rounding.
_DIGITS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """An arm of a sweep that is compared, with the summary of all its trials.

    `label` is its name among the others: the arm's, the sweep's, or both as SWEEP:ARM.
    """

    label: str
    sweep: str
    folder: Path
    arm: str
    summary: ArmSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The scores of two arms on their common scenarios, by one way to count. Of pairs, the first is of the first arm.

    A scenario counts by the mean of its trials. `difference` is the second mean less the first, `low` to `high` its
    95 % interval, `p` the chance of one as large if the arms were equal (permutation test), which `is_exact` if every
    permutation was counted. `gained` are scenarios that the second arm alone solves, in more than half of its trials;
    `lost` the first alone, `both` and `neither` the others. `p_solved` is McNemar's exact test of these. The adjusted
    ones are for as many comparisons as are made at once (Holm).
    """

    scenarios: int
    trials: tuple[int, int]
    means: tuple[float, float]
    difference: float
    low: float
    high: float
    p: float
    is_exact: bool
    p_adjusted: float
    gained: int
    lost: int
    both: int
    neither: int
    p_solved: float
    p_solved_adjusted: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A scenario that one of two arms solves, in more than half of its trials with a score, and the other does not.

    `scenario` are its ids in the two sweeps, `trials` the trials with a score, of which so many have `solved` it, and
    `scores` their means. `shown` is the number of the trial that shows it best, and `commands` print that trial's log.
    """

    name: str
    is_gained: bool
    scenario: tuple[str, str]
    solved: tuple[int, int]
    trials: tuple[int, int]
    scores: tuple[float, float]
    shown: tuple[int, int]
    commands: tuple[str, str]

    @property
    def change(self) -> float:
        """The second score less the first."""
        return self.scores[1] - self.scores[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a trial with a score takes, in US dollars or seconds: means over scenarios where both arms say so.

    `low` to `high` is the 95 % interval of the difference, by the bootstrap; None with one scenario.
    """

    scenarios: int
    means: tuple[float, float]
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """How much one would have to run to see a difference: with 80 % power, at 5 %.

    `visible` is the smallest difference that as much as was run shows. `scenarios` are how many are needed for the
    difference that was found, by the number of trials of each: of one trial where there is one, none where there is no
    difference, or one arm alone has several. `trials` is how many of each of these scenarios are needed; None where no
    number is enough, or one trial does not tell.
    """

    visible: float | None
    scenarios: Mapping[int, int]
    trials: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two arms, by their labels. `scored` counts trials with a score, `floor` also those that failed, as 0.

    Both are None if no scenario is common. `are_shares` tells if every score is 0 or 1, so that a mean is the share of
    trials that solve. `flips` are those of `scored`, the largest first. `left_out` says what is in neither count, and
    which trials are without a score. `comparisons` is the number of pairs that chances are adjusted for.
    """

    first: str
    second: str
    scored: Paired | None
    floor: Paired | None
    are_shares: bool
    flips: Sequence[Flip]
    cost: Spent | None
    seconds: Spent | None
    power: Power | None
    left_out: Sequence[str]
    comparisons: int

    @property
    def sentence(self) -> str:
        """The result for people."""
        told = [f"{self.second} and {self.first} have no scenario in common of which both have a score."]
        if self.scored is not None:
            told = [f"{self._told(self.scored)}."]
        if self.floor is not None and self.has_failed:
            told.append(f"With a score of 0 for trials that failed, {self._told(self.floor)}.")
        return " ".join(told)

    @property
    def has_failed(self) -> bool:
        """True if trials that failed make a difference between the ways to count."""
        counts = [None if paired is None else paired.trials for paired in (self.scored, self.floor)]
        return counts[0] != counts[1]

    def _told(self, paired: Paired) -> str:
        verb, points = "solves" if self.are_shares else "scores", 100 * paired.difference
        low, high = 100 * paired.low, 100 * paired.high
        if round(abs(points), 1) == 0:
            how = f"as much as {self.first}"
        elif points > 0:
            how = f"{points:.1f} points more than {self.first}"
        else:
            how = f"{-points:.1f} points less than {self.first}"
        of_difference = "" if points > 0 else "of the difference "
        chance = f"p = {paired.p_adjusted:.2g}" if paired.p_adjusted >= 0.001 else "p < 0.001"
        if self.comparisons > 1:
            chance += f" for {self.comparisons} comparisons"
        verdict = "unlikely to be chance" if paired.p_adjusted <= ALPHA else "may be chance"
        return (
            f"{self.second} {verb} {how}, 95 % interval {of_difference}{low:z.1f} to {high:z.1f}, on "
            f"{counted(paired.scenarios, 'common scenario')}; {paired.gained} gained, {paired.lost} lost: "
            f"{verdict} ({chance})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Each arm with each other, in the order they were named. `notes` say what is not the same, and was allowed."""

    sides: Sequence[Side]
    pairs: Sequence[Pair]
    notes: Sequence[str]


def compare(chosen: Sequence[Chosen], *, anyway: bool = False) -> Comparison:
    """Compare each of these arms with each other. A sweep that still runs gives what it has by now.

    Raises UsageError for fewer than two arms, for one that is named twice, and, unless `anyway`, for sweeps that score
    otherwise or whose scenarios have another content.
    """
    if len(chosen) < 2:
        raise UsageError("A comparison has two arms or more: name another sweep, or SWEEP:ARM for one arm of it.")
    named = Counter((sweep.folder.resolve(), arm) for sweep, arm in chosen)
    if twice := [f"{folder.name}:{arm}" for (folder, arm), count in named.items() if count > 1]:
        raise UsageError(f"{twice[0]} is named twice: name each arm once.")
    labels = _labels(chosen)
    notes = list(_unlike(chosen))
    if notes and not anyway:
        raise UsageError(f"These are not comparable: {'; '.join(notes)}. --anyway compares them all the same.")
    sides = [
        Side(
            label=label,
            sweep=sweep.name,
            folder=sweep.folder,
            arm=arm,
            summary=summarise(arm, sweep.ledger, sweep.plan),
        )
        for label, (sweep, arm) in zip(labels, chosen, strict=True)
    ]
    both = list(combinations(range(len(chosen)), 2))
    pairs: Sequence[Pair] = [
        _pair(labels[first], labels[second], chosen[first], chosen[second], len(both)) for first, second in both
    ]
    for way in ("scored", "floor"):
        pairs = _adjusted(pairs, way)
    return Comparison(sides=sides, pairs=pairs, notes=notes)


def _adjusted(pairs: Sequence[Pair], way: str) -> Sequence[Pair]:
    """Return the pairs with the chances of one way to count adjusted for as many comparisons."""
    told = [paired for pair in pairs if (paired := getattr(pair, way)) is not None]
    chances = iter(zip(holm([each.p for each in told]), holm([each.p_solved for each in told]), strict=True))

    def adjusted(pair: Pair) -> Pair:
        paired = getattr(pair, way)
        if paired is None:
            return pair
        p, p_solved = next(chances)
        return replace(pair, **{way: replace(paired, p_adjusted=p, p_solved_adjusted=p_solved)})

    return [adjusted(pair) for pair in pairs]


def as_record(whole: Comparison) -> dict[str, Any]:
    """Return the comparison as plain objects."""
    record = asdict(whole)
    for pair, told in zip(record["pairs"], whole.pairs, strict=True):
        pair["sentence"] = told.sentence
    return {**record, "sides": [{**side, "folder": str(side["folder"])} for side in record["sides"]]}


def _labels(chosen: Sequence[Chosen]) -> Sequence[str]:
    """Return the shortest names that tell the arms apart: of the arms, of the sweeps, or of both."""
    ways: tuple[Callable[[RecordedSweep, str], str], ...] = (
        lambda _, arm: arm,
        lambda sweep, _: sweep.name,
        lambda sweep, arm: f"{sweep.name}:{arm}",
        lambda sweep, arm: f"{sweep.folder}:{arm}",
    )
    labels = [[way(sweep, arm) for sweep, arm in chosen] for way in ways]
    return next((each for each in labels if len({*each}) == len(each)), labels[-1])


def _unlike(chosen: Sequence[Chosen]) -> Iterator[str]:
    """Yield what the sweeps do not share, and comparable scores would."""
    sweeps = list({sweep.folder.resolve(): sweep for sweep, _ in chosen}.values())
    for shared in _SHARED:
        values = {sweep.name: str(sweep.manifest.kind.get(shared)) for sweep in sweeps}
        if len({*values.values()}) > 1:
            yield f"{shared} is {', '.join(f'{value} in {name}' for name, value in values.items())}"
    digests: dict[str, set[str]] = {}
    for sweep in sweeps:
        names = _names(sweep)
        for scenario in sweep.plan.scenarios:
            if scenario.digest:
                digests.setdefault(names[scenario.id], set()).add(scenario.digest)
    if changed := [name for name, found in digests.items() if len(found) > 1]:
        yield f"the content of {_listed(changed)} is not the same"


def _names(sweep: RecordedSweep) -> Mapping[str, str]:
    """Return the names that scenarios are paired by, by their ids: an id is used where several have one name.

    An id is the endpoint's, and another endpoint has others for the same scenarios.
    """
    counts = Counter(scenario.name for scenario in sweep.plan.scenarios)
    return {each.id: each.name if counts[each.name] == 1 else each.id for each in sweep.plan.scenarios}


@dataclass(frozen=True, slots=True)
class _Trials:
    """The trials of an arm that have ended, by the names of their scenarios, which are all there."""

    label: str
    sweep: RecordedSweep
    by_scenario: Mapping[str, Mapping[TrialKey, Trial]]

    @classmethod
    def of(cls, label: str, sweep: RecordedSweep, arm: str) -> "_Trials":
        names, ledger = _names(sweep), sweep.ledger
        found: dict[str, dict[TrialKey, Trial]] = {name: {} for name in names.values()}
        for scenario, name in names.items():
            for at in range(1, sweep.plan.trials + 1):
                key = TrialKey(scenario, arm, at)
                if ledger.is_finished(key):
                    found[name][key] = ledger.trials[key]
        return cls(label, sweep, found)

    def values(self, of: Callable[[Trial], float | None]) -> Values:
        """Return what each trial has, by scenario, without trials that have it not."""
        read = {name: list(map(of, trials.values())) for name, trials in self.by_scenario.items()}
        return {name: had for name, values in read.items() if (had := [each for each in values if each is not None])}


def _pair(label: str, other_label: str, chosen: Chosen, other: Chosen, comparisons: int) -> Pair:
    first, second = _Trials.of(label, *chosen), _Trials.of(other_label, *other)
    scores = first.values(_score), second.values(_score)
    ended = first.values(_score_or_zero), second.values(_score_or_zero)
    scored = _paired(*scores)
    floor = scored if scores == ended else _paired(*ended)
    return Pair(
        first=label,
        second=other_label,
        scored=scored,
        floor=floor,
        are_shares=all(score in {0, 1} for side in scores for values in side.values() for score in values),
        flips=sorted(_flips(first, second, *scores), key=lambda flip: (-abs(flip.change), flip.name)),
        cost=_spent(first.values(_cost), second.values(_cost)),
        seconds=_spent(first.values(_seconds), second.values(_seconds)),
        power=_power(*scores),
        left_out=list(_left_out(first, second)),
        comparisons=comparisons,
    )


def _score(trial: Trial) -> float | None:
    return trial.score


def _score_or_zero(trial: Trial) -> float:
    return trial.score or 0.0


def _cost(trial: Trial) -> float | None:
    return None if trial.score is None else trial.cost


def _seconds(trial: Trial) -> float | None:
    return trial.seconds if trial.score is not None else None


def _common(first: Mapping[str, object], second: Mapping[str, object]) -> Sequence[str]:
    return [name for name in first if name in second]


def _differences(first: Values, second: Values) -> Sequence[float]:
    """Return the differences of the means of common scenarios."""
    return [round(fmean(second[name]) - fmean(first[name]), _DIGITS) for name in _common(first, second)]


def _is_solved(scores: Sequence[float]) -> bool:
    return 2 * sum(score >= SOLVED for score in scores) > len(scores)


def _paired(first: Values, second: Values) -> Paired | None:
    """Compare the scores of common scenarios; None if there is none."""
    common, differences = _common(first, second), _differences(first, second)
    if not common:
        return None
    solved = Counter((_is_solved(first[name]), _is_solved(second[name])) for name in common)
    difference = fmean(differences)
    low, high = bootstrap(with_unseen(differences, 1.0))
    # Those two draw it to 0, so it is made as wide on the other side.
    most = max(1.0, *map(abs, differences))
    low, high = max(-most, min(low, 2 * difference - high)), min(most, max(high, 2 * difference - low))
    chance, is_exact = permutation(differences)
    chance_solved = mcnemar(solved[False, True], solved[True, False])
    return Paired(
        scenarios=len(common),
        trials=(sum(len(first[name]) for name in common), sum(len(second[name]) for name in common)),
        means=(fmean(fmean(first[name]) for name in common), fmean(fmean(second[name]) for name in common)),
        difference=difference,
        low=low,
        high=high,
        p=chance,
        is_exact=is_exact,
        p_adjusted=chance,
        gained=solved[False, True],
        lost=solved[True, False],
        both=solved[True, True],
        neither=solved[False, False],
        p_solved=chance_solved,
        p_solved_adjusted=chance_solved,
    )


def _flips(first: _Trials, second: _Trials, scores: Values, other: Values) -> Iterator[Flip]:
    for name in _common(scores, other):
        is_solved, is_gained = _is_solved(scores[name]), _is_solved(other[name])
        if is_solved != is_gained:
            shown = _shown(first, name, is_solved=is_solved), _shown(second, name, is_solved=is_gained)
            sides = scores[name], other[name]
            yield Flip(
                name=name,
                is_gained=is_gained,
                scenario=(shown[0].scenario, shown[1].scenario),
                solved=(sum(score >= SOLVED for score in sides[0]), sum(score >= SOLVED for score in sides[1])),
                trials=(len(sides[0]), len(sides[1])),
                scores=(fmean(sides[0]), fmean(sides[1])),
                shown=(shown[0].number, shown[1].number),
                commands=(_command(first.sweep, shown[0]), _command(second.sweep, shown[1])),
            )


def _shown(side: _Trials, name: str, *, is_solved: bool) -> TrialKey:
    """Return the first trial of a scenario that has, or has not, solved it."""
    trials = side.by_scenario[name].items()
    return next(key for key, trial in trials if trial.score is not None and (trial.score >= SOLVED) == is_solved)


def _command(sweep: RecordedSweep, key: TrialKey) -> str:
    return f"sweep logs {trial_as_typed(sweep.folder, key, sweep.plan)}"


def _spent(first: Values, second: Values) -> Spent | None:
    differences = _differences(first, second)
    if not differences:
        return None
    common = _common(first, second)
    low, high = bootstrap(differences) if len(differences) > 1 else (None, None)
    return Spent(
        scenarios=len(differences),
        means=(fmean(fmean(first[name]) for name in common), fmean(fmean(second[name]) for name in common)),
        difference=fmean(differences),
        low=low,
        high=high,
    )


def _power(first: Values, second: Values) -> Power | None:
    """Tell how much shows the difference of these scores; None if there is no common scenario.

    The variance of a scenario's difference has a part that more trials of it make smaller: that of its trials.
    """
    differences = _differences(first, second)
    if not differences:
        return None
    whole, difference = variance(with_unseen(differences, 1.0)), fmean(differences)
    sides = [(first[name], second[name]) for name in _common(first, second)]
    repeated = [each for each in sides if min(map(len, each)) > 1]
    needed: Mapping[int, int] = {}
    trials = None
    if difference and all(len(scores) == 1 for each in sides for scores in each):
        needed = {1: scenarios_needed(difference, whole)}
    elif difference and repeated:
        of_trial = fmean(sum(map(variance, each)) for each in repeated)
        by_luck = fmean(sum(variance(scores) / len(scores) for scores in each) for each in repeated)
        between = max(0.0, whole - by_luck)
        sizes = sorted({*_TRIALS, *(len(scores) for each in repeated for scores in each)})
        needed = {size: scenarios_needed(difference, between + of_trial / size) for size in sizes}
        trials = trials_needed(difference, len(differences), between, of_trial)
    return Power(visible=visible_difference(len(differences), whole), scenarios=needed, trials=trials)


def _left_out(first: _Trials, second: _Trials) -> Iterator[str]:
    """Yield what is in no pair, and how many trials have no score."""
    for side, other in ((first, second), (second, first)):
        if alone := [name for name in side.by_scenario if name not in other.by_scenario]:
            yield f"{counted(len(alone), 'scenario')} in {side.label} only: {_listed(alone)}."
    common = _common(first.by_scenario, second.by_scenario)
    for side in (first, second):
        if pending := [name for name in common if not side.by_scenario[name]]:
            yield f"{counted(len(pending), 'scenario')} without a result of {side.label} yet: {_listed(pending)}."
        ended = [trial for name in common for trial in side.by_scenario[name].values()]
        if failed := sum(trial.score is None for trial in ended):
            yield f"{failed} of {counted(len(ended), 'trial')} of {side.label} ended without a score."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
