"""A sweep with a service of its own: both killed, or the service killed under it."""

from dataclasses import replace

import pytest

from .conftest import Ground, Story, chosen

DEVBOXES = 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["both", "service"])
def test_a_sweep_and_the_service_it_started_end_as_if_nobody_had_died(ground: Ground, victim: str) -> None:
    """A new service knows the state of the old one; trials whose devboxes died with it are tried again in others."""
    story = Story(words=(*ground.agent, "--devboxes", str(DEVBOXES)), is_embedded=True)
    known = ground.undisturbed(replace(story, is_embedded=False))
    points = list(dict.fromkeys(known.points))
    for point in chosen(points[points.index("sweep.opened:after") : points.index("sweep.ended:before")], 1):
        sweep = ground.sweep(story)
        status = sweep.run([point], victim)
        if victim == "both":
            assert status == -9, str(sweep)
            status = sweep.run()
        assert sweep.problems(known, status, spoilt=DEVBOXES) == [], f"{victim} killed at {point}: {sweep}"
