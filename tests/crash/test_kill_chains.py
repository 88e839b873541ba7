"""A sweep killed at every point there is, and killed again in each resume: one death after the other, then an end."""

import pytest

from orchestrator.core.events import KINDS

from .conftest import Ground, Story

#: Deaths that cost the attempt, in one sweep: a trial is given up at the fifth.
COSTLY = 4


def stories(ground: Ground) -> dict[str, Story]:
    """Every kind of event happens in one of them."""
    one = ("--devboxes", "1")
    return {
        "devbox": Story(words=(*ground.agent, "--agent", "oracle", *ground.broken_agent, "--limit", "1", *one)),
        "host": Story(words=(*ground.host_agent, *one), costly=("prepare", "solve")),
        "foreign": Story(words=(*ground.agent, "--agent", "oracle", "--limit", "1", *one), is_foreign=True),
        "stray": Story(
            before=(*ground.agent, *one), killed_at="start_run@start:after", words=(*ground.agent, "--include", "bee")
        ),
        "again": Story(before=ground.broken_agent, words=(*ground.broken_agent, "--retry", "AgentSetupFailed")),
    }


def own_points(name: str, points: list[str]) -> set[str]:
    """Points at which a death means something else in this story than in the first one."""
    words = {
        "host": ("prepare", "solve"),
        "foreign": ("start_run", "start_benchmark_run", "execute", "score@", "complete@", "complete_benchmark_run"),
    }
    return {point for point in points if any(word in point for word in words.get(name, ()))}


@pytest.mark.slow
def test_every_kind_of_event_happens_in_a_sweep_that_is_killed(ground: Ground) -> None:
    """Steps have a story of their own (`test_step_kills`); of an order its one event is all (`test_control`)."""
    points = {point for story in stories(ground).values() for point in ground.undisturbed(story).points}
    happened = {point.partition(":")[0].partition("/")[0] for point in points}
    assert set(KINDS) - {"step.ended", "order.given"} <= happened


@pytest.mark.slow
@pytest.mark.parametrize("name", ["devbox", "host", "foreign", "stray", "again"])
def test_killed_at_every_point_a_sweep_ends_as_if_nobody_had_died(ground: Ground, name: str) -> None:
    """Each process dies at the first point at which none has died before; the last one finds none."""
    story = stories(ground)[name]
    known = ground.undisturbed(story)
    left = set(known.points)
    if name != "devbox":  # what means the same in both is not walked again
        left -= set(ground.undisturbed(stories(ground)["devbox"]).points) - own_points(name, known.points)
    while left:
        sweep, costly, before = ground.sweep(story), 0, len(left)
        sweep.begin()
        while (status := sweep.run(deadly := [p for p in left if costly < COSTLY or not story.costs_attempt(p)])) < 0:
            # The first, not the last that it passed: another thread may have come to a point while it died.
            point = next(p for p in sweep.passed() if p in deadly)
            left.remove(point)
            costly += story.costs_attempt(point)
        assert sweep.problems(known, status, spoilt=costly if "solve" in story.costly else 0) == [], str(sweep)
        assert len(left) < before, f"no process passed {left}: {sweep}"
