"""One process works on a sweep, though its folder was copied."""

import os

import anyio
import pytest

from orchestrator.common.locks import birth
from orchestrator.core.errors import Unavailable, UsageError
from orchestrator.engine.remote_state import FORGOTTEN_S, Presence
from orchestrator.testing.clock import run_virtually
from orchestrator.testing.fakes import MemoryEndpoint, Script

ELSEWHERE = "process 7 on another-machine, of boot 1"


def presence(endpoint: MemoryEndpoint) -> Presence:
    return Presence(endpoint, "0190")


def test_a_second_process_on_a_sweep_starts_nothing_and_both_are_told() -> None:
    endpoint, told = MemoryEndpoint(()), list[str]()

    async def main() -> None:
        first, second = presence(endpoint), presence(endpoint)
        first._me = ELSEWHERE
        await first.claim()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.keep, told.append)
            with pytest.raises(UsageError, match="process 7 on another-machine is at work on this sweep, on the same"):
                await second.claim()
            tasks.cancel_scope.cancel()

    run_virtually(main)
    me = f"process {os.getpid()} on {os.uname().nodename}"
    assert told == [f"{me} wants to work on this sweep, too, and is kept out. Is there a copy of this sweep's folder?"]
    assert list(endpoint.clients) == [ELSEWHERE]


def test_a_dead_process_does_not_block_a_sweep() -> None:
    """Its process is no more, or it was on another machine and is forgotten after a while."""
    endpoint = MemoryEndpoint(())
    here = os.uname().nodename
    endpoint.clients |= {f"process {os.getpid()} on {here}, of another boot": "0190", "process 1 on x, of y": "0191"}

    async def main() -> None:
        await presence(endpoint).claim()
        assert anyio.current_time() < 1
        endpoint.clients[ELSEWHERE] = "0190"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(presence(endpoint).claim)
            await anyio.sleep(FORGOTTEN_S / 2)
            del endpoint.clients[ELSEWHERE]

    run_virtually(main)


def test_a_process_that_lives_on_this_machine_counts() -> None:
    endpoint = MemoryEndpoint(())
    endpoint.clients[f"process {os.getppid()} on {os.uname().nodename}, of {birth(os.getppid())}"] = "0190"
    with pytest.raises(UsageError, match=f"process {os.getppid()} on"):
        run_virtually(presence(endpoint).claim)


def test_an_endpoint_that_does_not_say_holds_nobody_up() -> None:
    endpoint = MemoryEndpoint((), Script(faults={"at_work": [Unavailable("down")]}, slow={"at_work": 3600.0}))
    run_virtually(presence(endpoint).claim)
