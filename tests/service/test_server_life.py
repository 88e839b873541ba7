"""The life of a served service: its lock, its address file, and all the ways in which it ends."""

import os
import resource
import signal
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import httpx
import pytest
from anyio.abc import Process

from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import Isolation
from orchestrator.service.address import Address, hold_lock, is_loopback
from orchestrator.service.http.activity import HEARTBEAT, Activity
from orchestrator.service.http.sweep import proof
from orchestrator.service.server import raise_open_files, serve
from tests.waiting import until

pytestmark = pytest.mark.anyio

SERVE = """
import sys, anyio
from pathlib import Path
from typing import Any
from orchestrator.core.protocol import Isolation
from orchestrator.service.server import serve
anyio.run(serve, "127.0.0.1", 0, None, Path(sys.argv[1]), [], Isolation.NONE, None)
"""


def server(
    state: Path, *, linger: float | None = None, token: str | None = None, host: str = "127.0.0.1"
) -> partial[Coroutine[Any, Any, None]]:
    return partial(serve, host, 0, token, state, [], Isolation.NONE, linger)


def client_of(address: Address) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {address.token}"}
    return httpx.AsyncClient(base_url=address.url, headers=headers, timeout=40, trust_env=False)


@asynccontextmanager
async def serving(state: Path) -> AsyncIterator[tuple[Address, httpx.AsyncClient]]:
    """A served service that ends with the test."""
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(server(state))
        async with client_of(address) as client:
            yield address, client
        tasks.cancel_scope.cancel()


async def test_the_address_file_is_whole_private_and_gone_at_the_end(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with serving(state) as (address, client):
        assert Address.read(state) == address
        assert stat.S_IMODE((state / "address.json").stat().st_mode) == 0o600
        assert address.pid == os.getpid()
        answer = (await client.get("/v1/sweep/proof", params={"nonce": "n"})).json()
        assert answer == {"instance": address.instance, "proof": proof(address.token, "n")}
        assert (await client.get("/v1/sweep")).json()["instance"] == address.instance
    assert Address.read(state) is None


async def test_a_state_folder_is_its_owners_alone_unless_it_held_other_things_before(tmp_path: Path) -> None:
    fresh, empty, used = tmp_path / "a" / "fresh", tmp_path / "empty", tmp_path / "used"
    for folder in (empty, used):
        folder.mkdir()
        folder.chmod(0o755)
    (used / "letters").touch(0o644)
    for state, mode, everybodys in ((fresh, 0o700, []), (empty, 0o700, []), (used, 0o755, ["letters"])):
        async with serving(state):
            assert stat.S_IMODE(state.stat().st_mode) == mode
            assert [entry.name for entry in state.iterdir() if entry.stat().st_mode & 0o077] == everybodys


async def test_a_state_folder_that_refuses_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "address.json").mkdir()
    with pytest.raises(UsageError, match=f"The state folder {tmp_path} cannot be used: .*--state"):
        await server(tmp_path)()


async def test_a_service_whose_address_nobody_can_read_serves_all_the_same(tmp_path: Path) -> None:
    words = ["serve", "--port", "0", "--isolation", "none", "--state", str(tmp_path)]
    async with await anyio.open_file("/dev/full", "wb") as full:
        started = await anyio.open_process(
            [sys.executable, "-m", "orchestrator", *words], stdin=None, stdout=full.wrapped, stderr=full.wrapped
        )
    try:
        address = await until(lambda: Address.read(tmp_path), "it does not serve")
        async with client_of(address) as client:
            assert (await client.get("/v1/devboxes")).status_code == 200
            started.terminate()
            with anyio.fail_after(15):
                assert await started.wait() == 0
    finally:
        with suppress(ProcessLookupError):
            started.kill()


async def test_a_second_service_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    async with serving(tmp_path):
        with pytest.raises(UsageError, match=f"pid {os.getpid()}"):
            await server(tmp_path)()
        assert Address.read(tmp_path) is not None, "the first one's address stays"
    with hold_lock(tmp_path):
        pass


async def test_listening_beyond_this_machine_needs_a_token_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--token"):
        await server(tmp_path, host="0.0.0.0")()
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(server(tmp_path, host="0.0.0.0", token="a-token-of-my-own"))
        assert address.token == "a-token-of-my-own"
        async with client_of(address) as client:
            assert (await client.get("/v1/sweep")).status_code == 200
        tasks.cancel_scope.cancel()


async def test_an_address_that_cannot_be_listened_on_is_the_users_mistake(tmp_path: Path) -> None:
    async with serving(tmp_path / "one") as (address, _):
        port = int(address.url.rpartition(":")[2])
        with pytest.raises(UsageError, match=f"port {port}"):
            await serve("127.0.0.1", port, None, tmp_path / "two", [], Isolation.NONE, None)


async def test_a_client_can_ask_an_unused_service_to_end(tmp_path: Path) -> None:
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            address = await tasks.start(server(tmp_path))
            async with client_of(address) as client:
                assert (await client.post("/v1/sweep/stop")).json() == {}
    assert Address.read(tmp_path) is None


async def test_an_unused_service_ends_by_itself(tmp_path: Path) -> None:
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            await tasks.start(server(tmp_path, linger=0.05))


async def test_requests_in_flight_count_as_use_and_looking_does_not() -> None:
    activity = Activity()
    with activity.request():
        with anyio.move_on_after(0.1) as scope:
            await activity.wait_unused(0.01)
        assert scope.cancelled_caught
    with anyio.fail_after(10):
        await activity.wait_unused(0.01)


async def test_a_client_without_sign_of_life_is_forgotten() -> None:
    activity = Activity()
    activity.beat("a")
    activity.beat("b")
    assert activity.others("a") == 1
    assert activity.beat("a", "0190") == activity.beat("b", "0191") == []
    assert activity.beat("b", "0190") == ["a"]
    activity._clients["b"] = (anyio.current_time() - HEARTBEAT - 1, "")
    assert activity.others("a") == 0


@asynccontextmanager
async def process(state: Path) -> AsyncIterator[tuple[Process, Address]]:
    """A service in a process of its own, killed at the end if need be."""
    argv = [sys.executable, "-c", SERVE, str(state)]
    async with await anyio.open_process(argv, stdin=None, stdout=None, stderr=None, start_new_session=True) as started:
        try:
            yield started, await until(lambda: Address.read(state), "it does not serve")
        finally:
            with suppress(ProcessLookupError):
                started.kill()


async def wait_in_flight(client: httpx.AsyncClient, count: int) -> None:
    """Wait until so many requests are being answered: the refusal to end, for which a devbox must live, counts them."""
    words = ""
    with anyio.fail_after(20):
        while f"{count} other requests" not in words:
            words = (await client.post("/v1/sweep/stop")).json()["message"]


async def wait_running(client: httpx.AsyncClient, devbox: str) -> str:
    body = {"statuses": ["running", "failure", "shutdown"], "timeout_seconds": 30}
    answer = await client.post(f"/v1/devboxes/{devbox}/wait_for_status", json=body)
    return str(answer.json()["status"])


async def test_sigterm_ends_devboxes_while_those_who_wait_are_answered(tmp_path: Path) -> None:
    """A long poll in flight learns that the devbox was shut down; then the process ends, with status 0."""
    async with process(tmp_path) as (started, address), client_of(address) as client:
        devbox = (await client.post("/v1/devboxes", json={})).json()["id"]
        assert await wait_running(client, devbox) == "running"
        answers: list[httpx.Response] = []

        async def wait_for_the_end() -> None:
            body = {"statuses": ["failure", "shutdown"], "timeout_seconds": 30}
            answers.append(await client.post(f"/v1/devboxes/{devbox}/wait_for_status", json=body))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_for_the_end)
            await wait_in_flight(client, 1)
            started.send_signal(signal.SIGTERM)
        assert answers[0].json()["status"] == "shutdown"
        with anyio.fail_after(15):
            assert await started.wait() == 0
    assert Address.read(tmp_path) is None


async def test_three_hundred_waits_leave_room_for_others(tmp_path: Path) -> None:
    """Long polls are held without holding anybody up, and all learn of the end at once."""
    async with serving(tmp_path) as (address, client):
        devbox = (await client.post("/v1/devboxes", json={})).json()["id"]
        headers = {"authorization": f"Bearer {address.token}"}
        body = {"statuses": ["failure", "shutdown"], "timeout_seconds": 30}
        statuses: list[str] = []

        async def wait(session: aiohttp.ClientSession) -> None:
            async with session.post(f"{address.url}/v1/devboxes/{devbox}/wait_for_status", json=body) as answer:
                statuses.append((await answer.json())["status"])

        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(headers=headers, connector=connector) as session,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(300):
                tasks.start_soon(wait, session)
            await wait_in_flight(client, 300)
            with anyio.fail_after(5):
                await client.post(f"/v1/devboxes/{devbox}/shutdown")
        assert statuses == ["shutdown"] * 300


async def test_state_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "service.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UsageError, match="newer"):
        await server(tmp_path)()


async def test_after_a_kill_the_next_service_takes_over(tmp_path: Path) -> None:
    """The lock is free, the old address is replaced, and what was alive is recorded as failed."""
    async with process(tmp_path) as (started, address), client_of(address) as client:
        scorer = {"type": "command_scorer", "command": "true"}
        contract = {"scoring_function_parameters": [{"name": "it", "weight": 1, "scorer": scorer}]}
        body = {"name": "s", "input_context": {"problem_statement": "p"}, "scoring_contract": contract}
        scenario = (await client.post("/v1/scenarios", json=body)).json()["id"]
        run = (await client.post("/v1/scenarios/start_run", json={"scenario_id": scenario})).json()
        started.kill()
        await started.wait()
    assert Address.read(tmp_path) == address, "a killed service cannot clean up"
    async with serving(tmp_path) as (successor, client):
        assert successor.instance != address.instance
        view = (await client.get(f"/v1/scenarios/runs/{run['id']}")).json()
        assert view["state"] == "failed"


async def test_a_damaged_address_file_is_no_address(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"url": "x"}'):
        await anyio.Path(tmp_path / "address.json").write_text(text)
        assert Address.read(tmp_path) is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.1", False), ("h", False)],
)
def test_loopback_addresses_count_as_this_machine(host: str, expected: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert is_loopback(host) is expected


def test_the_limit_on_open_files_is_raised_as_far_as_allowed() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        raise_open_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(hard if hard != resource.RLIM_INFINITY else 65_536, 65_536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
