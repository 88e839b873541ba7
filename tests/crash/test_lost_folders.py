"""Folders that go away under a sweep: its benchmark for a while, or all that its service knows for good."""

import time
from typing import Final

import pytest

from .conftest import Night

AWAY: Final = 4.0


@pytest.mark.slow
@pytest.mark.parametrize("is_embedded", [False, True])
def test_a_benchmark_that_is_away_for_some_seconds_costs_time_only(night: Night, *, is_embedded: bool) -> None:
    night.start("--devboxes", "1", is_embedded=is_embedded)
    night.comes_to("solve")
    night.world.benchmark.rename(night.world.away)
    time.sleep(AWAY)
    night.world.put_benchmark_back()
    night.ends_well()


@pytest.mark.slow
@pytest.mark.parametrize("is_embedded", [False, True])
def test_a_sweep_whose_service_forgot_everything_overnight_is_resumed(night: Night, *, is_embedded: bool) -> None:
    night.start("--devboxes", "2", is_embedded=is_embedded)
    night.comes_to("solve")
    night.world.end_sweep()
    night.world.end_service()
    night.world.lose_state()
    night.world.serve_again()
    night.start("--devboxes", "2", is_embedded=is_embedded)
    night.ends_well()


@pytest.mark.slow
@pytest.mark.parametrize("is_embedded", [False, True])
def test_a_sweep_outlives_a_service_that_died_and_forgot_everything(night: Night, *, is_embedded: bool) -> None:
    night.start("--devboxes", "2", is_embedded=is_embedded)
    night.comes_to("solve")
    night.world.end_service()
    night.world.lose_state()
    night.world.serve_again()
    night.ends_well()


@pytest.mark.slow
@pytest.mark.parametrize("is_embedded", [False, True])
@pytest.mark.parametrize("stage", ["solve", "score"])
def test_a_sweep_outlives_the_folder_of_a_service_that_lives(night: Night, stage: str, *, is_embedded: bool) -> None:
    """One that is kept by hand is started again by hand; no score is given in a devbox whose files are gone."""
    night.start("--devboxes", "2", is_embedded=is_embedded)
    night.comes_to(stage)
    night.world.lose_state()
    if not is_embedded:
        night.world.end_service()
        night.world.serve()
    night.ends_well()
