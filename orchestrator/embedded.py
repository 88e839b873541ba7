"""The service that a sweep starts for itself: found if it runs, started if it does not, proven before it is trusted.

One service per set of benchmark folders, below the runs folder. It is in a session of its own and outlives us for a
while, so that the next process finds what an interrupted one left in it.
"""

import fcntl
import hmac
import os
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Final, Self

import anyio
import httpx
import orjson
import structlog

from orchestrator.errors import Unavailable, UsageError

ADDRESS: Final = "address.json"
LOG: Final = "service.log"
LINGER: Final = 600
HEARTBEAT: Final = 60.0
START_TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service that has proven that it knows the token in its address file."""

    url: str
    token: str

    @classmethod
    @asynccontextmanager
    async def open(cls, runs: Path, *, benchmarks: Sequence[Path], isolation: str) -> AsyncIterator[Self]:
        """Find or start the service; keep it alive meanwhile; ask it to end afterwards if nothing is in flight in it.

        Raises UsageError with the service's own words when it cannot start.
        """
        state = _state_folder(runs, benchmarks, isolation)
        try:
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(f"{runs}: this folder cannot be made: {error.strerror}. Give another --runs.") from None
        client = secrets.token_hex(8)
        transport = httpx.AsyncHTTPTransport(verify=False)  # plain HTTP on loopback needs no certificates
        async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=10) as http:
            service = await cls._find_or_start(http, state, benchmarks, isolation)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(service.beat, http, client)
                try:
                    yield service
                finally:
                    tasks.cancel_scope.cancel()
                    with anyio.move_on_after(5, shield=True), suppress(httpx.HTTPError):
                        await service.post(http, "stop", client)

    @classmethod
    async def _find_or_start(
        cls, http: httpx.AsyncClient, state: Path, benchmarks: Sequence[Path], isolation: str
    ) -> Self:
        child: Popen[bytes] | None = None
        with anyio.move_on_after(START_TIMEOUT):
            while True:
                service = await cls._find(http, state)
                if service is not None:
                    return service
                if child is None:
                    child = _spawn(state, benchmarks, isolation)
                elif child.poll() is not None:
                    # Somebody else's service may have taken the lock first: then its address is there soon.
                    if not _is_locked(state):
                        raise UsageError(f"The benchmark service cannot start: {_last_words(state)}")
                    child = None
                await anyio.sleep(0.03)
        raise Unavailable(f"The benchmark service in {state} did not answer for {START_TIMEOUT:g} s; see {LOG} there.")

    @classmethod
    async def _find(cls, http: httpx.AsyncClient, state: Path) -> Self | None:
        """The service whose address file this is, if it is alive and knows the token."""
        try:
            address: dict[str, Any] = orjson.loads((state / ADDRESS).read_bytes())
            url, token = str(address["url"]), str(address["token"])
            nonce = secrets.token_hex(16)
            answer = await http.get(f"{url}/v1/sweep/proof", params={"nonce": nonce})
            proof = str(answer.json()["proof"])
        except (OSError, ValueError, KeyError, TypeError, httpx.HTTPError, httpx.InvalidURL):
            return None
        expected = hmac.new(token.encode(), nonce.encode(), sha256).hexdigest()
        return cls(url=url, token=token) if hmac.compare_digest(proof, expected) else None

    async def beat(self, http: httpx.AsyncClient, client: str) -> None:
        while True:
            try:
                await self.post(http, "heartbeat", client)
            except httpx.HTTPError as error:
                structlog.get_logger().warning("service.heartbeat_failed", error=str(error))
            await anyio.sleep(HEARTBEAT)

    async def post(self, http: httpx.AsyncClient, verb: str, client: str) -> None:
        headers = {"authorization": f"Bearer {self.token}"}
        await http.post(f"{self.url}/v1/sweep/{verb}", json={"client": client}, headers=headers)


def _state_folder(runs: Path, benchmarks: Sequence[Path], isolation: str) -> Path:
    what = "\n".join([isolation, *(str(folder.resolve()) for folder in benchmarks)])
    return runs.resolve() / ".service" / sha256(what.encode()).hexdigest()[:12]


def _spawn(state: Path, benchmarks: Sequence[Path], isolation: str) -> Popen[bytes]:
    """Start the service in its own session, so that a Ctrl-C meant for us does not reach it."""
    command = [sys.executable, "-m", "orchestrator", "serve", "--state", str(state), "--isolation", isolation]
    command += ["--port", "0", "--linger", str(LINGER), "--quiet"]
    for folder in benchmarks:
        command += ["--benchmarks", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNLOOP_")}
    with (state / LOG).open("wb") as log:
        return Popen(command, stdin=DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment)


def _is_locked(state: Path) -> bool:
    with (state / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _last_words(state: Path) -> str:
    lines = (state / LOG).read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("sweep: ") if lines else f"it ended without a word; see {state / LOG}"
