"""Output in files: written whole, and removed when nobody will ask for it any more."""

import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orchestrator.service.devboxes.output import KEPT_MS, append, prune
from orchestrator.service.store import DEVBOXES

if TYPE_CHECKING:
    from tests.service.devboxes.conftest import Served

pytestmark = pytest.mark.anyio


def test_an_entry_that_the_disk_cannot_take_leaves_no_half_of_it(tmp_path: Path) -> None:
    log = tmp_path / "folder/log"
    append(log, b"first\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            append(log, bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append(log, b"second\n")
    assert log.read_bytes() == b"first\nsecond\n"


async def test_output_goes_a_day_after_its_devbox(served: "Served") -> None:
    """Not before, and never while the devbox lives; what is known of the execution stays."""
    devboxes = [(await served.devbox()).id for _ in range(3)]
    alive, recent, old = devboxes
    done = [await served.client.devboxes.execute(devbox, command="echo words") for devbox in devboxes]
    for devbox in (recent, old):
        await served.client.devboxes.shutdown(devbox)
    ended = (await served.client.devboxes.retrieve(old)).end_time_ms or 0
    await served.store.write(lambda db: DEVBOXES.update(db, old, {"end_time_ms": ended - KEPT_MS}))
    (served.fleet.output / "something-else").mkdir()
    await prune(served.store, served.fleet.output)
    assert {folder.name for folder in served.fleet.output.iterdir()} == {alive, recent, "something-else"}
    views = [
        await served.client.devboxes.executions.retrieve(each.execution_id, devbox_id=devbox)
        for devbox, each in zip(devboxes, done, strict=True)
    ]
    assert [(view.exit_status, view.stdout) for view in views] == [(0, "words\n"), (0, "words\n"), (0, "")]


async def test_a_service_without_output_has_nothing_to_prune(served: "Served") -> None:
    await prune(served.store, served.fleet.output / "nowhere")
