"""Strangers and web pages at the service's socket: they hold nothing for long, and get answers of one shape."""

import socket
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
import httpx
import orjson
import pytest

from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import Isolation
from orchestrator.service import server
from orchestrator.service.address import Address
from orchestrator.service.http import protocol
from orchestrator.service.http.gate import HostNames
from orchestrator.service.server import raise_open_files, serve

pytestmark = pytest.mark.anyio
Serving = Callable[..., AbstractAsyncContextManager[tuple[Address, httpx.AsyncClient]]]


def opened(address: Address) -> socket.socket:
    host, _, port = address.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer_to(address: Address, *sent: bytes) -> tuple[int, dict[str, Any]]:
    """Status and body of the one answer to these bytes, after which the connection is closed."""
    with opened(address) as connection:
        for piece in sent:
            connection.sendall(piece)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head, received
    return int(head.split()[1]), orjson.loads(body)


def request(address: Address, *lines: str, method: str = "GET", path: str = "/v1/sweep") -> bytes:
    """A request that says who it is from, with these headers more, and wants no other after it."""
    head = [f"{method} {path} HTTP/1.1", f"authorization: Bearer {address.token}", "connection: close", *lines]
    return "\r\n".join([*head, "", ""]).encode("latin-1")


async def ask(address: Address, *sent: bytes) -> tuple[int, dict[str, Any]]:
    return await anyio.to_thread.run_sync(answer_to, address, *sent)


def ended(connection: socket.socket) -> bool:
    """Tell if the service ends the connection, before our own time limit."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\0\1\2\3\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET http:// HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT example.com:443 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/sweep HTTP/1.1\r\na b: c\r\n\r\n", 400),
        (b"POST /v1/devboxes HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST /v1/devboxes HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"GET /v1/sweep HTTP/1.1\r\nhost: example.com\r\n\r\n", 403),
        (b"GET /v1/sweep HTTP/1.1\r\n\r\n", 401),
        (b"BREW /coffee HTTP/1.1\r\n\r\n", 400),
        (b"PROPFIND /v1/sweep HTTP/1.1\r\n\r\n", 401),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 40_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000, 431),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_strangers_requests_are_answered_in_one_shape(serving: Serving, sent: bytes, status: int) -> None:
    async with serving() as (address, client):
        closing = sent.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nconnection: close\r\n", 1)
        given, body = await ask(address, closing)
        assert (given, set(body), body["code"]) == (status, {"message", "code"}, status)
        assert (await client.get("/v1/sweep")).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_failed_requests_of_a_client_are_answered_in_one_shape(serving: Serving, method: str) -> None:
    async with serving() as (address, _):
        for path in ("/", "/v1/nothing", "/v1/devboxes/x/nothing", "/v1/devboxes/%2e%2e/x", "//v1/sweep", "*"):
            given, body = await ask(address, request(address, method=method, path=path))
            assert given in {404, 405}
            assert (set(body), body["code"]) == ({"message", "code"}, given)


async def test_a_head_of_sixty_thousand_bytes_is_served(serving: Serving) -> None:
    async with serving() as (address, _):
        assert (await ask(address, request(address, "x: " + "x" * 60_000)))[0] == 200


async def test_a_trailer_is_as_bounded_as_a_head(serving: Serving) -> None:
    """The parser would keep it for ever, and its request is answered already."""
    async with serving() as (address, _):

        def pour() -> int:
            with opened(address) as stranger:
                stranger.sendall(b"POST /v1/devboxes HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ")
                for count in range(100):
                    try:
                        stranger.sendall(b"x" * (1 << 20))
                    except OSError:
                        return count
            return 100

        assert await anyio.to_thread.run_sync(pour) < 50


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /v1/sw",
        b"POST /v1/devboxes HTTP/1.1\r\ncontent-length: 1000\r\n\r\n{",
        b"POST /v1/devboxes HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n{",
        b"GET /v1/sweep/proof?nonce=n HTTP/1.1\r\n\r\nGET /v1/sw",
    ],
    ids=["silent", "in-the-head", "in-the-body", "in-a-chunk", "in-the-next-head"],
)
async def test_a_client_without_a_whole_request_is_disconnected(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    """Though he sends another byte every moment."""
    monkeypatch.setattr(protocol, "PATIENCE", 0.5)
    async with serving() as (address, _):

        def dribble() -> float:
            with opened(address) as stranger:
                stranger.sendall(begun)
                began = time.monotonic()
                stranger.settimeout(0.05)
                while time.monotonic() < began + 20:
                    try:
                        if begun:
                            stranger.sendall(b"x")
                        if stranger.recv(1 << 16) == b"":
                            break
                    except TimeoutError:
                        continue
                    except OSError:
                        break
                return time.monotonic() - began

        assert 0.3 < await anyio.to_thread.run_sync(dribble) < 10


def test_a_head_has_ten_seconds_and_sixty_four_kibibytes() -> None:
    assert (protocol.PATIENCE, protocol.MAX_HEAD, server.KEEP_ALIVE) == (10.0, 65_536, 75)


async def test_a_connection_that_rests_between_two_requests_is_kept(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "PATIENCE", 0.2)
    async with serving() as (address, _):

        def twice() -> bytes:
            ask = request(address).replace(b"connection: close\r\n", b"")
            with opened(address) as client:
                client.sendall(ask)
                received = b""
                while not received.endswith(b"}"):
                    received += client.recv(1 << 16)
                client.settimeout(0.6)
                with pytest.raises(TimeoutError):  # that is: it is not closed
                    client.recv(1)
                client.settimeout(20)
                client.sendall(ask)
                return client.recv(1 << 16)

        assert b" 200 " in await anyio.to_thread.run_sync(twice)


async def test_a_slow_body_is_accepted_where_it_is_read(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PATIENCE", 0.2)
    async with serving() as (_, client):

        async def slow() -> Any:
            for piece in (b'{"name"', b': "slow', b'ly"}'):
                yield piece
                await anyio.sleep(0.3)

        assert (await client.post("/v1/devboxes", content=slow())).json()["name"] == "slowly"


async def test_strangers_cannot_have_all_connections_and_clients_keep_theirs(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eldest of too many strangers goes; who has shown the token stays, however old his connection is."""
    monkeypatch.setattr(server, "_MAX_STRANGERS", 20)
    async with serving() as (address, client):
        devbox = (await client.post("/v1/devboxes", json={})).json()["id"]
        statuses = list[int]()

        async def wait() -> None:
            body = {"statuses": ["shutdown"], "timeout_seconds": 30}
            statuses.append((await client.post(f"/v1/devboxes/{devbox}/wait_for_status", json=body)).status_code)

        with ExitStack() as stack:
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(wait)
                await wait_in_flight(client, 5)
                crowd = [stack.enter_context(opened(address)) for _ in range(60)]
                assert await anyio.to_thread.run_sync(lambda: all(map(ended, crowd[:40])))
                crowd[-1].settimeout(0.1)
                with pytest.raises(TimeoutError):
                    ended(crowd[-1])
                async with httpx.AsyncClient(headers=client.headers, timeout=20, trust_env=False) as another:
                    await another.post(f"{address.url}/v1/devboxes/{devbox}/shutdown")
        assert statuses == [200] * 5


async def wait_in_flight(client: httpx.AsyncClient, count: int) -> None:
    """Wait until so many requests are being answered: the refusal to end, for which a devbox must live, counts them."""
    words = ""
    with anyio.fail_after(120):
        while f"{count} other requests" not in words:
            words = (await client.post("/v1/sweep/stop")).json()["message"]


@pytest.mark.slow
async def test_thousands_of_clients_wait_at_once_while_strangers_crowd_in(serving: Serving) -> None:
    count = 2_100
    raise_open_files()
    async with serving() as (address, client):
        devbox = (await client.post("/v1/devboxes", json={})).json()["id"]
        url, body = f"{address.url}/v1/devboxes/{devbox}/wait_for_status", {"statuses": ["shutdown"]}
        statuses = list[str]()

        async def wait(session: aiohttp.ClientSession) -> None:
            async with session.post(url, json={**body, "timeout_seconds": 30}) as answer:
                statuses.append(str((await answer.json()).get("status")))

        async with (
            aiohttp.ClientSession(headers=dict(client.headers), connector=aiohttp.TCPConnector(limit=0)) as session,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(count):
                tasks.start_soon(wait, session)
            await wait_in_flight(client, count)
            with ExitStack() as stack:
                for _ in range(200):
                    stack.enter_context(opened(address))
                await client.post(f"/v1/devboxes/{devbox}/shutdown")
        assert statuses == ["shutdown"] * count


def host_of(address: Address) -> str:
    return address.url.removeprefix("http://")


async def test_a_page_that_takes_our_address_for_its_own_learns_nothing(serving: Serving) -> None:
    """Its name may mean this machine by now, but it is in the request."""
    async with serving() as (address, _):
        port = host_of(address).partition(":")[2]
        tunneled = ("localhost:9000", "127.0.0.1")
        for host in (host_of(address), f"LOCALHOST:{port}", f"[::1]:{port}", f"127.8.8.8:{port}", *tunneled):
            assert (await ask(address, request(address, f"host: {host}")))[0] == 200, host
        for host in (
            *(f"evil.example:{port}", "evil.example", "127.0.0.1:0", f"127.0.0.1.evil.example:{port}"),
            *(f"user@127.0.0.1:{port}", f"127.0.0.1:{port}, evil.example", f"10.0.0.1:{port}", "", "[::1", "x:y"),
        ):
            for path in ("/v1/sweep/proof?nonce=n", "/v1/devboxes", "/v1/nothing"):
                given, body = await ask(address, request(address, f"host: {host}", path=path))
                assert given == body["code"] == 403, host
                assert "--allow-host" in body["message"]
        two = (f"host: {host_of(address)}", "host: evil.example")
        assert (await ask(address, request(address, *two)))[0] == 403
        assert (await ask(address, request(address)))[0] == 200, "no browser leaves it out"


async def test_a_foreign_web_page_is_not_answered_whatever_it_knows(serving: Serving) -> None:
    async with serving() as (address, _):
        host = f"host: {host_of(address)}"
        assert (await ask(address, request(address, host, f"origin: http://{host_of(address)}")))[0] == 200
        for origin in ("null", "http://evil.example", "http://localhost", f"http://evil.{host_of(address)}", ""):
            for method in ("GET", "POST", "OPTIONS"):
                given, body = await ask(address, request(address, host, f"origin: {origin}", method=method))
                assert given == body["code"] == 403, origin
        assert (await ask(address, request(address, "origin: http://evil.example")))[0] == 403


@pytest.mark.parametrize(
    ("bound", "header", "is_known"),
    [
        ("127.0.0.1", "localhost:8700", True),
        ("::1", "[::1]:8700", True),
        ("localhost", "127.0.0.1:8700", True),
        ("127.0.0.1", "service:8700", False),
        ("127.0.0.1", "proxy.example", True),
        ("0.0.0.0", "service:9000", True),
        ("0.0.0.0", "10.1.2.3:9000", True),
        ("0.0.0.0", "[fe80::1]", True),
        ("0.0.0.0", "box.our.example:8700", True),
        ("0.0.0.0", "PROXY.example.:443", True),
        ("0.0.0.0", "evil.example:8700", False),
        ("::", "evil.example:8700", False),
        ("bench.our.example", "bench.our.example:8700", True),
        ("bench.our.example", "evil.example:8700", False),
    ],
)
def test_the_names_that_a_service_answers_to(bound: str, header: str, is_known: bool) -> None:  # noqa: FBT001
    names = HostNames(host=bound, others=frozenset({"proxy.example"}), machine=frozenset({"box", "box.our.example"}))
    assert names.include(header) is is_known


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "has 0 characters.*openssl rand -hex 16"),
        ("x" * 15, "has 15 characters"),
        ("a token of many words", "header cannot carry"),
        ("ein-schlüssel-aus-köln", "header cannot carry"),
        ("a-token-with-a-newline\n", "header cannot carry"),
    ],
)
async def test_a_token_that_could_be_guessed_or_not_be_sent_is_refused(tmp_path: Path, token: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"(?s)--token, or SWEEP_TOKEN.*{words}"):
        await serve("127.0.0.1", 0, token, tmp_path, [], Isolation.NONE, None)
