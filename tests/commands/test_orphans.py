"""Leftovers are released only if no process uses them; a result never is."""

import shutil
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from orchestrator.commands.reap import Orphans, find_orphans, release
from orchestrator.core.errors import Unavailable
from orchestrator.core.events import RunStarted, StageEntered, SweepOpened, to_line
from orchestrator.core.records import Needs, ScenarioSummary
from orchestrator.core.stages import Stage
from orchestrator.rundir.files import JOURNAL, MANIFEST, locked
from orchestrator.rundir.journal import read_events
from orchestrator.testing.fakes import MemoryEndpoint

pytestmark = pytest.mark.anyio

ANT = ScenarioSummary(id="ant", name="ant")
EVENTS = (
    SweepOpened(sweep="0190", schema=1, version="0", pid=1),
    StageEntered(trial="ant/a/1", attempt=1, stage=Stage.START),
    RunStarted(trial="ant/a/1", attempt=1, run="scr_1", devbox="dbx_1"),
)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A sweep's folder; its process was killed while its only trial was under way."""
    folder = tmp_path / "mine"
    folder.mkdir()
    manifest = {
        "sweep": "0190",
        "identity": {"benchmark": "b"},
        "config": {"arms": [{"name": "a"}], "trials": 1},
        "scenarios": {"ant": {"name": "ant"}},
    }
    (folder / MANIFEST).write_bytes(orjson.dumps(manifest))
    (folder / JOURNAL).write_bytes(b"".join(map(to_line, EVENTS)))
    return folder


@pytest.fixture
async def endpoint() -> MemoryEndpoint:
    """An endpoint with that sweep's leftovers: a run with its devbox, in a benchmark run."""
    endpoint = MemoryEndpoint([ANT])
    held = await endpoint.start_benchmark_run("bmd_1", name="0190/a/1", metadata={"sweep": "0190"}, key="b")
    metadata = {"sweep": "0190", "trial": "ant/a/1", "attempt": "1"}
    needs = Needs()
    await endpoint.start_run(
        "ant", benchmark_run_id=held.id, name="", metadata=metadata, keep_alive=1, needs=needs, key="r"
    )
    return endpoint


def set_state(endpoint: MemoryEndpoint, state: str) -> None:
    endpoint.runs["scr_1"] = replace(endpoint.runs["scr_1"], state=state)


def kinds(folder: Path) -> list[str]:
    return [event.kind for event, _ in read_events(folder / JOURNAL)][len(EVENTS) :]


async def found(endpoint: MemoryEndpoint, runs: Path) -> Orphans:
    (left,), _ = await find_orphans(endpoint, runs)
    return left


async def test_live_runs_are_canceled_and_the_journal_knows(mine: Path, endpoint: MemoryEndpoint) -> None:
    assert await release(endpoint, await found(endpoint, mine.parent)) == []
    assert (endpoint.runs["scr_1"].state, endpoint.alive) == ("canceled", 0)
    assert kinds(mine) == ["attempt.ended", "sweep.ended"]


async def test_a_result_that_came_after_the_look_is_kept(mine: Path, endpoint: MemoryEndpoint) -> None:
    """A person who is asked may think for a while, and a scoring goes on meanwhile."""
    set_state(endpoint, "scoring")
    left = await found(endpoint, mine.parent)
    set_state(endpoint, "scored")
    assert await release(endpoint, left) == []
    assert endpoint.runs["scr_1"].state == "completed"
    assert kinds(mine) == ["sweep.ended"]


async def test_a_result_that_cannot_be_completed_is_not_canceled_with_its_benchmark_run(
    mine: Path, endpoint: MemoryEndpoint
) -> None:
    set_state(endpoint, "scored")
    endpoint.script.faults["complete"] = [Unavailable("not now")]
    assert await release(endpoint, await found(endpoint, mine.parent)) == ["scr_1: not now"]
    assert endpoint.runs["scr_1"].state == "scored"


@pytest.mark.parametrize("busy", ["mine", "copy"])
async def test_a_copy_of_a_folder_does_not_free_what_the_original_uses(
    mine: Path, endpoint: MemoryEndpoint, busy: str
) -> None:
    shutil.copytree(mine, mine.with_name("copy"))
    with locked(mine.with_name(busy)):
        left = await found(endpoint, mine.parent)
        assert not left.is_free
    assert (await found(endpoint, mine.parent)).is_free


async def test_a_damaged_journal_is_named_and_hides_no_other_sweep(mine: Path, endpoint: MemoryEndpoint) -> None:
    (mine / JOURNAL).write_bytes(b"what\n")
    left = await found(endpoint, mine.parent)
    assert left.local is not None
    assert "`sweep repair`" in (left.local.trouble or "")
    assert not left.is_free
