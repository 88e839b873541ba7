"""A whole sweep against an endpoint that misbehaves in every way it can, ours and one that is not."""

import re
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.waiting import wait_until

from .conftest import KEY, LAST_RITES, Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Desk, Running

#: Each strikes for certain, and where it hurts.
CHAOS = """
seed = 7

[[rules]]
fault = "429"
times = 2

[[rules]]
fault = "429"
route = "POST *"
times = 2
retry_after = 0.5

[[rules]]
fault = "503"
times = 3

[[rules]]
fault = "late"
seconds = 1
times = 2

[[rules]]
fault = "hang"
route = "POST */wait_for_status"
seconds = 2
times = 1

[[rules]]
fault = "drop"
route = "POST /v1/scenarios/start_run"
times = 1

[[rules]]
fault = "drop"
route = "POST */execute_async"
times = 1

[[rules]]
fault = "drop-mid-body"
route = "GET /v1/scenarios/runs/*"
times = 2

[[rules]]
fault = "drop-mid-body"
route = "POST */complete"
times = 1

[[rules]]
fault = "vanish"
times = 1

[[rules]]
fault = "slow-boot"
seconds = 1
times = 2

[[rules]]
fault = "boot-fails"
times = 1

[[rules]]
fault = "dies-solving"
times = 1

[[rules]]
fault = "dies-scoring"
times = 1
"""
#: On an endpoint that scores a run only once, a scorer in error is the trial's end.
SCORERS = """
[[rules]]
fault = "scorer-error"
scorings = 2
times = 1
"""


@contextmanager
def serving(desk: "Desk", *words: str) -> "Iterator[tuple[Running, Service]]":
    """`sweep serve` with these words, ended with a signal."""
    running = desk.start("serve", "--port", "0", "--token", KEY, "--state", "state", *words)
    running.wait_for("RUNLOOP_API_KEY=")
    url = running.out.split("RUNLOOP_BASE_URL=")[1].split()[0]
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=30, trust_env=False) as http:
        yield running, Service(url=url, http=http)
    running.process.terminate()
    assert running.end(LAST_RITES).status == 0


@pytest.mark.slow
@pytest.mark.parametrize("foreign", [False, True])
def test_a_sweep_survives_every_fault(desk: "Desk", *, foreign: bool) -> None:
    """Each trial has its one result, which is the oracle's; nothing is left on the endpoint."""
    rules = CHAOS if foreign else CHAOS + SCORERS
    (desk.folder / "chaos.toml").write_text(rules)
    with serving(desk, "--chaos", "chaos.toml", *(["--foreign"] if foreign else [])) as (running, service):
        assert '"seed":7,"event":"chaos.on"' in running.err
        command = ("run", "bugfix-mini", "--agent", "oracle", "--limit", "3", "--attempts", "6", "--name", "mine")
        ended = desk.sweep(*command, environment=service.environment)
        results = desk.results("runs/mine")
        assert [result["score"] for result in results] == [1.0] * 3, str(ended)
        assert len({result["scenario"] for result in results}) == 3
        wait_until(lambda: not service.alive(), lambda: f"left: {service.alive()}", seconds=LAST_RITES)
        struck = Counter(re.findall(r'"fault":"([^"]+)"', running.err))
    expected = Counter(re.findall(r'fault = "([^"]+)"', rules))
    assert struck.keys() == expected.keys(), "every fault has happened"
