"""Readers of a sweep's output that stop reading, or go away: the sweep does not need them."""

import pytest

from .conftest import Night
from .weather import READERS


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_sweep_continues_while_its_output_is_not_read(night: Night, reader: str) -> None:
    night.start(reader=reader)
    night.comes_to("boot")
    assert night.world.screen is not None
    night.world.screen.stop()
    night.wait(lambda: night.world.done == night.world.trials, "results while nobody reads")
    night.world.screen.go_on()
    night.ends_well()


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_sweep_ends_as_it_should_when_its_reader_has_gone(night: Night, reader: str) -> None:
    night.start(reader=reader)
    night.comes_to("boot")
    assert night.world.screen is not None
    night.world.screen.go_away()
    night.ends_well()
