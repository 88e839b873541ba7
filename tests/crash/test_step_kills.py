"""A scenario of two steps whose sweep is killed at one point, in a step or between two: it goes on there."""

import pytest

from .conftest import STEPPED, Ground, Story, chosen


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["sweep", "both"])
def test_killed_in_a_step_or_between_two_a_sweep_ends_as_if_nobody_had_died(ground: Ground, victim: str) -> None:
    """No step's agent is run twice in one devbox, and no step that has ended is done again while its devbox lives."""
    story = Story(words=ground.agent, benchmark=STEPPED, steps=2)
    known = ground.undisturbed(story)
    assert [(step["name"], step["score"]) for step in known.results[0]["steps"]] == [("first", 1.0), ("second", 1.0)]
    points = list(dict.fromkeys(known.points))
    points = points[points.index("stage.finished/solve:after") : points.index("sweep.ended:before")]
    for point in chosen(points, 6 if victim == "sweep" else 3):
        sweep = ground.sweep(story)
        assert sweep.run([point], victim) == -9, str(sweep)
        if victim == "both":
            ground.service.again()
        problems = sweep.problems(known, sweep.run(), spoilt=1 if victim == "both" else 0)
        assert problems == [], f"{victim} killed at {point}: {sweep}"
