"""A service that dies while sweeps need it is replaced, and they go on with the one that is there then."""

import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import anyio
import httpx
import pytest
from structlog.testing import capture_logs

from orchestrator.common.address import Address
from orchestrator.common.locks import NOTE
from orchestrator.core.errors import Unavailable, leaf
from orchestrator.endpoint.embedded_service import Service, post, proven
from tests.waiting import until

from .conftest import Place

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FOLDER = Path(__file__).parents[2]


def addresses_of(service: Service) -> list[Address]:
    """Addresses that it was told to have, one after the other."""
    told: list[Address] = []
    service.follow(lambda url, token: told.append(Address(url=url, token=token, instance="", pid=0)))
    return told


async def serves(address: Address) -> bool:
    headers = {"authorization": f"Bearer {address.token}"}
    async with httpx.AsyncClient(trust_env=False, headers=headers) as http:
        return (await http.get(f"{address.url}/v1/sweep")).is_success


async def test_sweeps_that_lose_it_share_the_next_one(place: Place) -> None:
    async with place.open() as one, place.open() as other:
        told, told_other = addresses_of(one), addresses_of(other)
        assert place.kill() == 1
        await until(lambda: len(told) == len(told_other) == 2, "both are told of another")
        assert told == told_other
        assert told[0].token != told[1].token
        assert await serves(told[1])
        await until(lambda: len(place.services()) == 1, "there is one")
    await until(lambda: not place.services(), "it ends with them")


async def test_a_service_that_another_sweep_has_started_is_used(place: Place) -> None:
    async with place.open() as service:
        told = addresses_of(service)
        place.kill()
        command = [sys.executable, "-m", "orchestrator", "serve", "--state", str(place.state), "--port", "0", "--quiet"]
        elses = await anyio.open_process([*command, "--isolation", "none"], cwd=FOLDER, stdout=None, stderr=None)
        await until(lambda: len(told) == 2, "we are told of another")
        assert await serves(told[1])
        await until(lambda: len(place.services()) == 1, "there is one")
    await elses.wait()


async def test_a_service_that_ended_in_order_is_replaced_too(place: Place) -> None:
    async with place.open() as service:
        told = addresses_of(service)
        os.kill(place.pid, signal.SIGTERM)
        await until(lambda: len(told) == 2, "we are told of another")
        assert await serves(told[1])


async def test_a_service_that_does_not_answer_for_a_while_is_waited_for(place: Place) -> None:
    """It lives: nobody starts another, and it is the same afterwards."""
    async with place.open() as service:
        told = addresses_of(service)
        pid = place.pid
        os.kill(pid, signal.SIGSTOP)
        await anyio.sleep(7)  # two looks are due; that nothing happens cannot be waited for
        os.kill(pid, signal.SIGCONT)
        assert await serves(service.address)
        assert place.services() == [pid]
        assert len(told) == 1


async def test_a_look_that_fails_says_nothing_about_the_service(place: Place) -> None:
    """A machine may have no open file left for an instant."""
    async with place.open() as service:
        pid, note = place.pid, place.state / NOTE
        with capture_logs() as logged:
            note.mkdir()
            await until(lambda: any(each["event"] == "service.silent" for each in logged), lambda: str(logged))
            note.rmdir()
        assert await serves(service.address)
        assert place.services() == [pid]


async def test_a_sweep_ends_with_a_message_if_no_service_can_be_started_again(place: Place) -> None:
    async def sweep() -> None:
        async with place.open():
            with closing(sqlite3.connect(place.state / "service.sqlite")) as db:
                db.execute("PRAGMA user_version = 99")
            place.kill()
            with anyio.fail_after(30):
                await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as raised:
        await sweep()
    error = leaf(raised.value)
    assert isinstance(error, Unavailable)
    assert "cannot start: The service's state has schema 99" in error.message
    assert error.message.endswith("Nothing finished is lost: fix this, then resume.")


async def test_a_service_lingers_after_the_last_heartbeat_and_then_ends(place: Place) -> None:
    """Of a sweep that was killed, say; what it had in the service is shut down with it."""
    place.state.mkdir(parents=True)
    command = [sys.executable, "-m", "orchestrator", "serve", "--state", str(place.state), "--port", "0", "--quiet"]
    serving = await anyio.open_process(
        [*command, "--isolation", "none", "--linger", "2"], cwd=FOLDER, stdout=None, stderr=None
    )
    await until(place.address.exists, "it serves")
    async with httpx.AsyncClient(trust_env=False) as http:
        address = await proven(http, place.state)
        assert address is not None
        headers = {"authorization": f"Bearer {address.token}"}
        await http.post(f"{address.url}/v1/devboxes", json={}, headers=headers)
        for _ in range(10):
            assert await post(http, address, "heartbeat", "a sweep")
            await anyio.sleep(0.5)
        assert serving.returncode is None
    with anyio.fail_after(30):
        assert await serving.wait() == 0
    assert not place.address.exists()
