"""A sweep finds the service that is there, starts one where there is none, and tells its token to no other."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import httpx
import orjson
import pytest
from anyio.abc import SocketAttribute, SocketStream

from orchestrator.common.address import Address
from orchestrator.core.errors import UsageError
from orchestrator.endpoint.embedded_service import loopback_client, proven
from tests.waiting import until

from .conftest import Place

pytestmark = pytest.mark.anyio

FOLDER = Path(__file__).parents[2]
TOKEN = "the-token-of-a-service-that-is-no-more"
SWEEP = """
import sys, anyio
from pathlib import Path
from orchestrator.commands import BUNDLED
from orchestrator.endpoint.embedded_service import Service

async def main():
    async with Service.open(Path(sys.argv[1]), benchmarks=[BUNDLED], isolation="none"):
        print("open", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""
#: A tmpfs at $1, treated as $2 says, under a sweep; in a mount namespace of its own.
SMALL_DISK = """
mount -t tmpfs -o size=64k tmpfs "$1" && eval "$2" && cd / &&
exec "$3" -m orchestrator run bugfix-mini --agent nop --isolation none --runs "$1/runs"
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


def client(address: Address) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {address.token}"}
    return httpx.AsyncClient(base_url=address.url, headers=headers, trust_env=False)


async def is_served(address: Address) -> bool:
    async with client(address) as http:
        return (await http.get("/v1/sweep")).is_success


async def killed_sweep(place: Place) -> None:
    """A sweep killed as soon as it has started a service."""
    sweep = await anyio.open_process([sys.executable, "-c", SWEEP, str(place.runs)], cwd=FOLDER)
    await until(place.services, "it has been started")
    sweep.kill()
    await sweep.wait()


def leave(place: Place, address: bytes) -> None:
    """Leave a state folder as one that was killed might have, with this in its address file."""
    place.state.mkdir(parents=True)
    (place.state / "lock").write_text(f"{os.getpid()}\n")
    place.address.write_bytes(address)


def written(url: str) -> bytes:
    return orjson.dumps({"url": url, "token": TOKEN, "instance": "0" * 32, "pid": os.getpid()})


async def test_a_service_has_its_own_session_and_ends_with_a_sweep_that_leaves_nothing_in_it(place: Place) -> None:
    """So a Ctrl-C at the sweep's terminal does not reach it."""
    async with place.open() as service:
        assert os.getsid(place.pid) == os.getpgid(place.pid) == place.pid
        assert [stat.S_IMODE(each.stat().st_mode) for each in (place.state, place.state.parent)] == [0o700, 0o700]
        assert await is_served(service.address)
    await until(lambda: not place.services(), "it is gone")
    assert not place.address.exists()


async def test_a_service_outlives_a_sweep_that_leaves_something_in_it(place: Place) -> None:
    async with place.open() as first, client(first.address) as http:
        devbox = (await http.post("/v1/devboxes", json={})).json()["id"]
    async with place.open() as second, client(second.address) as http:
        assert second.address == first.address
        await http.post(f"/v1/devboxes/{devbox}/shutdown")
    await until(lambda: not place.services(), "it ends with the second, for the first is nobody's client any more")


async def test_sweeps_that_start_at_once_share_one(place: Place) -> None:
    found: list[Address] = []
    all_there, seen = anyio.Event(), anyio.Event()

    async def sweep() -> None:
        async with place.open() as service:
            found.append(service.address)
            if len(found) == 4:
                all_there.set()
            await seen.wait()

    async with anyio.create_task_group() as sweeps:
        for _ in range(4):
            sweeps.start_soon(sweep)
        await all_there.wait()
        assert len(set(found)) == 1
        assert await is_served(found[0])
        seen.set()
    await until(lambda: not place.services(), "the last one ends it")


async def test_a_sweep_that_comes_while_it_ends_has_another(place: Place) -> None:
    """A service that has been found can be used, for it knows that it is needed."""
    for _ in range(2):
        async with place.open():
            pass
        async with place.open() as service:
            assert await is_served(service.address)


def is_gone(place: Place, pid: int) -> bool:
    """Tell if this service is gone; the next may be there already."""
    return pid not in place.services()


@pytest.mark.parametrize("deaths", [1, 2])
async def test_a_service_killed_before_it_wrote_its_address_is_followed_by_another(place: Place, deaths: int) -> None:
    async with anyio.create_task_group() as tasks:

        async def sweep() -> None:
            async with place.open() as service:
                assert await is_served(service.address)

        tasks.start_soon(sweep)
        for _ in range(deaths):
            await until(place.services, "it has been started")
            (victim,) = place.services()
            assert place.kill() == 1
            assert not place.address.exists()
            await until(partial(is_gone, place, victim), "it is gone")


async def test_a_service_killed_with_its_sweep_is_followed_by_another(place: Place) -> None:
    await killed_sweep(place)
    place.kill()
    async with place.open() as service:
        assert await is_served(service.address)


async def test_a_service_that_starts_when_its_sweep_is_killed_is_waited_for(place: Place) -> None:
    """It may have the lock already or not: of two that start only one goes on."""
    await killed_sweep(place)
    async with place.open() as service:
        assert await is_served(service.address)
        await until(lambda: len(place.services()) == 1, "there is one")


async def test_a_sweep_stopped_while_it_starts_one_leaves_none(place: Place) -> None:
    async with anyio.create_task_group() as tasks:

        async def sweep() -> None:
            async with place.open():
                pytest.fail("it cannot be there yet")

        tasks.start_soon(sweep)
        await until(place.services, "it has been started")
        tasks.cancel_scope.cancel()
    await until(lambda: not place.services(), "it is gone")


@pytest.mark.parametrize(
    "address",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"url": "http://127.0.0.1:1"}',
        b'{"url": 7, "token": [], "instance": null, "pid": "x"}',
        written("http://127.0.0.1:1"),
        written("http://[::bad"),
        written("gopher://127.0.0.1"),
        written("http://\n"),
        written(""),
    ],
)
async def test_an_address_of_nobody_is_none(place: Place, address: bytes) -> None:
    """Any content of the file, even if its process id is in use now."""
    leave(place, address)
    async with httpx.AsyncClient(trust_env=False) as http:
        assert await proven(http, place.state) is None


@asynccontextmanager
async def impostor(place: Place, answer: bytes | None, heard: list[bytes]) -> AsyncIterator[str]:
    """Somebody who listens where a service was, and answers every request so; never, if that is None."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            while True:
                try:
                    heard.append(await stream.receive())
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return
                if answer is not None:
                    await stream.send(answer)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        leave(place, written(url))
        yield url
        tasks.cancel_scope.cancel()


def ok(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    "answer",
    [
        ok(b'{"instance": "' + b"0" * 32 + b'", "proof": "' + b"0" * 64 + b'"}'),
        ok(b'{"proof": "\\ud800"}'),
        ok(b'{"proof": null}'),
        ok(b"[]"),
        ok(b"yes, it is me"),
        b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer\r\ncontent-length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        None,
    ],
)
async def test_an_impostor_at_an_old_address_never_sees_the_token(place: Place, answer: bytes | None) -> None:
    heard: list[bytes] = []
    async with impostor(place, answer, heard), httpx.AsyncClient(trust_env=False, timeout=1) as http:
        assert await proven(http, place.state) is None
    said = b"".join(heard)
    assert said.startswith(b"GET /v1/sweep/proof?nonce="), said
    assert TOKEN.encode() not in said
    assert b"authorization" not in said.lower()


async def test_a_sweep_starts_a_service_beside_an_impostor_and_tells_him_no_token(place: Place) -> None:
    heard: list[bytes] = []
    async with impostor(place, None, heard) as url, place.open() as service:
        assert service.address.url != url
        assert await is_served(service.address)
        assert place.pid in place.services()
    assert b"authorization" not in b"".join(heard).lower()


async def test_a_redirection_is_not_followed(place: Place) -> None:
    """Nor to the true one, whose proof it would be."""
    heard: list[bytes] = []
    true = b"http://127.0.0.1:1/v1/sweep/proof"
    head = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: " + true + b"\r\ncontent-length: 0\r\n\r\n"
    async with impostor(place, head, heard), loopback_client() as http:
        assert await proven(http, place.state) is None
    assert len(heard) == 1


async def test_a_service_that_cannot_start_says_why(place: Place) -> None:
    place.state.mkdir(parents=True)
    with closing(sqlite3.connect(place.state / "service.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UsageError, match=r"cannot start: The service's state has schema 99, newer than"):
        async with place.open():
            pass


async def test_a_folder_that_cannot_be_one_is_named(place: Place) -> None:
    place.runs.write_text("a file")
    with pytest.raises(UsageError, match=r"cannot be kept here: Not a directory\. Give another --runs\."):
        async with place.open():
            pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("treatment", "words"),
    [
        ('mount -o remount,ro "$1"', "Read-only file system. Give another --runs."),
        ('head -c 1m /dev/zero >"$1/zeros" 2>/dev/null || :', "No space left on device. Give another --runs."),
        ('head -c 48k /dev/zero >"$1/zeros"', "The benchmark service cannot start: "),
    ],
)
def test_a_small_disk_is_one_line(tmp_path: Path, treatment: str, words: str) -> None:
    """Full, read-only, or with hardly any room: exit status 2, and what to do."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    mount = [*NAMESPACE, 'mount -t tmpfs tmpfs "$1"', "sh", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount in a namespace")
    command = [*NAMESPACE, SMALL_DISK, "sh", str(tmp_path), treatment, sys.executable]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
    assert words in ended.stderr


async def test_proxies_are_not_used_for_the_embedded_service(tmp_path: Path) -> None:
    """Neither the sweep's questions nor the service's start: all of it is on loopback."""
    proxy = "http://127.0.0.1:1"
    names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    command = [sys.executable, "-m", "orchestrator", "run", "bugfix-mini", "--agent", "nop", "--limit", "1"]
    command += ["--isolation", "none", "--runs", str(tmp_path / "runs")]
    environment = {**os.environ, **dict.fromkeys(names, proxy)}
    ended = await anyio.run_process(command, cwd=FOLDER, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
