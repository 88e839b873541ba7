"""Disks on which a sync takes its time: the journal's and the service's."""

import pytest

from . import slow_disk
from .conftest import Night


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.06, 0.3])
def test_a_sweep_whose_journal_is_on_a_slow_disk_ends_as_on_a_quick_one(night: Night, seconds: float) -> None:
    slow_disk.tell(night.world.journal_syncs, seconds)
    night.start()
    night.ends_well()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["solve", "release"])
def test_a_sync_of_five_seconds_costs_time_only(night: Night, stage: str) -> None:
    night.start()
    night.comes_to(stage)
    slow_disk.tell(night.world.journal_syncs, 5, once=True)
    night.ends_well()
    assert not night.world.journal_syncs.exists()


@pytest.mark.slow
def test_a_service_whose_database_is_on_a_slow_disk_is_waited_for(night: Night) -> None:
    if not night.world.preloaded:
        pytest.skip("no C compiler here, without which the service's disk cannot be made slow")
    slow_disk.tell(night.world.store_syncs, 0.3)
    night.start()
    night.ends_well()
