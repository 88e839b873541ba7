"""The geometry of the pictures: numbers in, coordinates out. Pure.

Pictures are SVG with attributes only: styles inside of markup are forbidden by the pages' security policy. Coordinates
are in units of a picture's own box, y downwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import heappop, heappush
from itertools import accumulate
from math import ceil, log10
from typing import Final

from orchestrator.core.ledger import Attempt
from orchestrator.core.records import TrialKey
from orchestrator.core.stages import Stage
from orchestrator.rundir.results_file import Row
from orchestrator.view.report import ArmSummary, duration

WIDTH: Final = 440.0
HEIGHT: Final = 190.0
#: Room for the labels on the left and below.
LEFT: Final = 36.0
BELOW: Final = 24.0
ABOVE: Final = 10.0
#: Room on the right for half of the last label.
RIGHT: Final = 28.0
#: Points of a line, at most.
MAX_POINTS: Final = 200
#: Finished trials in a timeline, at most: the latest.
MAX_BARS: Final = 1000
#: Height of a devbox's lane, which is less where there are so many that they would be higher than this together.
LANE: Final = 9.0
MAX_LANES_HEIGHT: Final = 320.0
#: Seconds by which a devbox may seem to be taken before it was free, and the width of a stage that is still drawn.
HANDOVER_S: Final = 0.05
NARROWEST: Final = 0.05
#: Steps of an axis of time, in seconds.
_STEPS_S: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A label of an axis, at a coordinate."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The line of an arm: `path` is an SVG path, `number` the arm's number, which chooses its colour."""

    arm: str
    number: int
    path: str
    end: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """An arm in a plane, with its interval from `top` to `bottom`; `number` as in `Curve`."""

    arm: str
    number: int
    x: float
    y: float
    top: float
    bottom: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plane with axes, and curves or spots in it. `frontier` is a path through the spots that no other beats."""

    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    curves: Sequence[Curve] = ()
    spots: Sequence[Spot] = ()
    frontier: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A trial in a timeline."""

    key: TrialKey
    x: float
    y: float
    width: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Devboxes over time: a lane for each, `paths` of the stages by name, and the trials' bars.

    `busy` is the share of devbox time, up to `capacity` lanes, in which something ran. `left_out` are earlier trials.
    """

    height: float
    ticks: Sequence[Tick]
    paths: Mapping[str, str]
    bars: Sequence[Bar]
    lanes: int
    lane_height: float
    capacity: int
    busy: float
    left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A trial's time in a devbox: its stages one after the other from `began`, in seconds since 1970."""

    key: TrialKey
    began: float
    stages: Sequence[tuple[str, float]]

    @property
    def ended(self) -> float:
        return self.began + sum(seconds for _, seconds in self.stages)


def span_of(key: TrialKey, row: Row) -> Span:
    """The last attempt of a finished trial: its stages are counted back from the trial's end."""
    stages = [(name, spent["seconds"] + spent["waited"]) for name, spent in row["stages"].items()]
    ended = datetime.fromisoformat(row["finished"]).timestamp()
    return Span(key=key, began=ended - sum(seconds for _, seconds in stages), stages=stages)


def span_under_way(key: TrialKey, attempt: Attempt, now: float) -> Span:
    """An attempt under way, up to now."""
    stages = [(name, spent["seconds"] + spent["waited"]) for name, spent in attempt.stages.items()]
    stages = [each for each in stages if each[0] != attempt.stage]
    before = sum(seconds for _, seconds in stages)
    stages.append((str(attempt.stage or Stage.START), max(0.0, now - attempt.since)))
    return Span(key=key, began=attempt.since - before, stages=stages)


def timeline(spans: Iterable[Span], capacity: int, left_out: int = 0) -> Timeline | None:
    """Draw devboxes over time; None without any trial. `capacity` is the number of devboxes that may be up."""
    shown = sorted(spans, key=lambda span: span.began)
    if not shown:
        return None
    first, last = shown[0].began, max(span.ended for span in shown)
    scale = (WIDTH - LEFT) / max(last - first, 1e-3)
    free: list[tuple[float, int]] = []
    placed: list[tuple[Span, int]] = []
    lanes = 0
    for span in shown:
        if free and free[0][0] <= span.began + HANDOVER_S:
            lane = heappop(free)[1]
        else:
            lane, lanes = lanes, lanes + 1
        heappush(free, (span.ended, lane))
        placed.append((span, lane))
    rows = max(lanes, min(capacity, 4 * lanes))
    height = min(LANE, MAX_LANES_HEIGHT / rows)
    paths: dict[str, list[str]] = {}
    bars = []
    for span, lane in placed:
        x = begin = LEFT + (span.began - first) * scale
        for name, seconds in span.stages:
            width = seconds * scale
            if width >= NARROWEST:
                corner = f"M{x:.1f} {lane * height:.1f}"
                paths.setdefault(name, []).append(f"{corner}h{width:.1f}v{0.8 * height:.1f}h-{width:.1f}z")
            x += width
        bars.append(
            Bar(key=span.key, x=begin, y=lane * height, width=max(0.5, x - begin), seconds=span.ended - span.began)
        )
    worked = sum(span.ended - span.began for span in shown)
    return Timeline(
        height=rows * height + BELOW,
        ticks=_time_ticks(last - first),
        paths={name: "".join(pieces) for name, pieces in paths.items()},
        bars=bars,
        lanes=rows,
        lane_height=height,
        capacity=capacity,
        busy=min(1.0, worked / max(1e-3, (last - first) * max(capacity, lanes))),
        left_out=left_out,
    )


def score_over_time(results: Mapping[TrialKey, Row], arms: Sequence[str]) -> Plot | None:
    """The mean of each arm's scores so far, over time; None before two of them."""
    points: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    for key, row in results.items():
        if key.arm in points and row["score"] is not None:
            points[key.arm].append((datetime.fromisoformat(row["finished"]).timestamp(), row["score"]))
    times = [at for each in points.values() for at, _ in each]
    if len(times) < 2:
        return None
    first, seconds = min(times), max(max(times) - min(times), 1e-3)
    curves = []
    for number, (arm, scored) in enumerate(points.items()):
        sums = accumulate(score for _, score in scored)
        means = [(at, total / count) for count, ((at, _), total) in enumerate(zip(scored, sums, strict=True), 1)]
        kept = means[:: ceil(len(means) / MAX_POINTS) or 1] + means[-1:]
        if kept:
            placed = [(LEFT + (at - first) / seconds * (WIDTH - LEFT), _height(mean)) for at, mean in kept]
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
            curves.append(Curve(arm=arm, number=number, path=path, end=placed[-1]))
    return Plot(x_ticks=_time_ticks(seconds), y_ticks=_score_ticks(), curves=curves)


def score_against_cost(arms: Sequence[ArmSummary]) -> Plot | None:
    """The mean of each arm over what a scored trial costs; None if fewer than two arms have both.

    Where fewer than two arms tell their cost, it is over the agents' time.
    """
    costs = {arm.arm: arm.cost for arm in arms if arm.cost is not None}
    has_costs = len(costs) > 1 and any(costs.values())
    spent = costs if has_costs else {arm.arm: arm.agent_seconds for arm in arms}
    prices = {arm.arm: spent[arm.arm] / arm.scored for arm in arms if arm.scored and arm.arm in spent}
    if len(prices) < 2 or not any(prices.values()):
        return None
    most = max(prices.values()) * 1.15
    spots = [
        Spot(
            arm=arm.arm,
            number=number,
            x=LEFT + prices[arm.arm] / most * (WIDTH - LEFT),
            y=_height(arm.mean or 0.0),
            top=_height(arm.high if arm.high is not None else arm.mean or 0.0),
            bottom=_height(arm.low if arm.low is not None else arm.mean or 0.0),
        )
        for number, arm in enumerate(arms)
        if arm.arm in prices
    ]
    best, frontier = HEIGHT, []
    for spot in sorted(spots, key=lambda spot: (spot.x, spot.y)):
        if spot.y < best:
            best = spot.y
            frontier.append(f"{spot.x:.1f} {spot.y:.1f}")
    step = 10 ** (ceil(log10(most)) - 1)
    step = next(each for each in (step, 2 * step, 5 * step) if most / each <= 4.5 or each == 5 * step)
    ticks = [
        Tick(at=LEFT + number * step / most * (WIDTH - LEFT), label=_price(number * step, is_money=has_costs))
        for number in range(int(most / step) + 1)
    ]
    unit = "US dollars per scored trial" if has_costs else "agent time per scored trial"
    return Plot(
        x_ticks=ticks,
        y_ticks=_score_ticks(),
        spots=spots,
        frontier="M" + "L".join(frontier) if len(frontier) > 1 else "",
        unit=unit,
    )


def _price(value: float, *, is_money: bool) -> str:
    if not is_money:
        return duration(value) if value >= 1 or not value else f"{value:.1g} s"
    return f"${value:,.2f}" if value >= 0.1 or not value else f"${value:.2g}"


def _height(score: float) -> float:
    return ABOVE + (1 - min(1.0, max(0.0, score))) * (HEIGHT - ABOVE - BELOW)


def _score_ticks() -> list[Tick]:
    return [Tick(at=_height(score), label=f"{score:g}") for score in (0.0, 0.25, 0.5, 0.75, 1.0)]


def _time_ticks(seconds: float) -> list[Tick]:
    step = next((each for each in _STEPS_S if seconds / each <= 5), 86400 * ceil(seconds / 86400 / 5))
    scale = (WIDTH - LEFT) / seconds
    return [Tick(at=LEFT + at * scale, label=duration(at)) for at in range(0, int(seconds) + 1, step)]
