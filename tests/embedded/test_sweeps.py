"""The real command with a service of its own, which is killed under it."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import orjson
import pytest

from tests.waiting import until

from .conftest import Place

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FOLDER = Path(__file__).parents[2]
#: Works as long as the file is not there.
AGENT = "while [ ! -e {gate} ]; do sleep 0.1; done"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that the agents wait for; their devboxes see this machine's files."""
    gate = tmp_path / "gate"
    yield gate
    gate.touch()


def leftovers(place: Place) -> list[str]:
    """Folders of devboxes that are no more."""
    return [folder.name for folder in (place.state / "devboxes" / "boxes").iterdir()]


def let_go(gate: Path) -> None:
    gate.touch()


async def start(place: Place, gate: Path) -> anyio.abc.Process:
    command = [sys.executable, "-m", "orchestrator", "run", "bugfix-mini", "--limit", "2", "--isolation", "none"]
    command += ["--agent", f"command:{AGENT.format(gate=gate)}", "--runs", str(place.runs), "--name", "mine"]
    return await anyio.open_process(command, cwd=FOLDER, stdout=None, stderr=None, start_new_session=True)


def journal(place: Place, kind: str) -> list[dict[str, Any]]:
    path = place.runs / "mine" / "journal.jsonl"
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [event for event in map(orjson.loads, whole.splitlines()) if event["event"] == kind]


def results(place: Place) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (place.runs / "mine" / "results.jsonl").read_bytes().splitlines()]


async def all_work(place: Place, times: int = 1) -> None:
    await until(lambda: len(journal(place, "execution.started")) == 2 * times, "the agents work")


async def test_a_sweep_continues_when_its_service_is_killed(place: Place, gate: Path) -> None:
    """Attempts in its devboxes are made again, and that counts: they may have killed it."""
    sweep = await start(place, gate)
    await all_work(place)
    assert place.kill() == 1
    await all_work(place, 2)
    let_go(gate)
    assert await sweep.wait() == 0
    for result in results(place):
        failures = [attempt["failure"] for attempt in result["attempts"]]
        assert [failure and failure["class"] for failure in failures] == ["DevboxLost", None]
    assert [event["counted"] for event in journal(place, "attempt.ended")] == [True, True]
    await until(lambda: not place.services(), "the second service ends with the sweep")


async def test_a_resumed_sweep_learns_what_died_with_the_service(place: Place, gate: Path) -> None:
    sweep = await start(place, gate)
    await all_work(place)
    sweep.kill()
    place.kill()
    await sweep.wait()
    assert len(leftovers(place)) == 2
    again = await start(place, gate)
    await all_work(place, 2)
    let_go(gate)
    assert await again.wait() == 0
    assert [len(result["attempts"]) for result in results(place)] == [2, 2]
    ends = journal(place, "attempt.ended")
    assert [(end["failure"]["class"], end["counted"]) for end in ends] == [("Interrupted", False)] * 2, ends
    assert not leftovers(place)


async def test_a_ctrl_c_at_the_terminal_reaches_the_sweep_only(place: Place, gate: Path) -> None:
    """Trials in flight end well, for the service lives, and ends when it is asked to."""
    sweep = await start(place, gate)
    await all_work(place)
    os.killpg(sweep.pid, signal.SIGINT)
    let_go(gate)
    assert await sweep.wait() == 0
    assert [len(result["attempts"]) for result in results(place)] == [1, 1]
    await until(lambda: not place.services(), "it is gone")
