"""A sweep of two trials, killed at one point: by itself, together with its service, or only the service under it.

Here at a sample of the points; `scripts/chaos --points` has every point in every way.
"""

import random

import pytest

from .conftest import Ground, Story, chosen

DEVBOXES = 2


def story(ground: Ground) -> Story:
    return Story(words=(*ground.agent, "--devboxes", str(DEVBOXES)))


def some_points(ground: Ground, count: int) -> list[str]:
    """Points between the first event and the last."""
    points = list(dict.fromkeys(ground.undisturbed(story(ground)).points))
    return chosen(points[points.index("sweep.opened:after") : points.index("sweep.ended:before")], count)


@pytest.mark.slow
def test_killed_once_a_sweep_ends_as_if_nobody_had_died(ground: Ground) -> None:
    known = ground.undisturbed(story(ground))
    for point in some_points(ground, 6):
        sweep = ground.sweep(story(ground))
        assert sweep.run([point]) == -9, str(sweep)
        assert sweep.problems(known, sweep.run()) == [], f"killed at {point}: {sweep}"


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "count"), [("sweep", 2), ("both", 2)])
def test_killed_again_while_it_resumes_a_sweep_ends_as_if_nobody_had_died(
    ground: Ground, victim: str, count: int
) -> None:
    known = ground.undisturbed(story(ground))
    for point in some_points(ground, count):
        for again in (point, random.Random(point).choice(known.points)):
            sweep = ground.sweep(story(ground))
            for each in (point, again):
                status = sweep.run([each], victim)
                if status < 0 and victim == "both":
                    ground.service.again()
            status = sweep.run() if status < 0 else status
            problems = sweep.problems(known, status, spoilt=2 * DEVBOXES if victim == "both" else 0)
            assert problems == [], f"{victim} killed at {point}, then at {again}: {sweep}"


@pytest.mark.slow
def test_a_sweep_outlives_its_service(ground: Ground) -> None:
    """It continues with the one that is started in its place, and tries again the trials that died with the first."""
    known = ground.undisturbed(story(ground))
    for point in some_points(ground, 3):
        sweep = ground.sweep(story(ground))
        pid = sweep.start([point], victim="service")
        ground.service.again()
        problems = sweep.problems(known, sweep.wait(pid), spoilt=DEVBOXES)
        assert problems == [], f"service killed at {point}: {sweep}"
