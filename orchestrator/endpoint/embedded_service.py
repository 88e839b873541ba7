"""The service that a sweep starts for itself: found if it runs, started if it does not, proven before it is trusted.

One service per set of benchmark folders, below the runs folder, and another for sweeps with the machine's own network.
It is in a session of its own and outlives us for a while, so that the next process finds what an interrupted one left
in it.

Its secret: it is looked for not once but every few seconds, as long as we live. The process that finds it dead starts
another, and all others find that one, under a new address and a new token. Keeping the old ones would hand the token to
a program that took the port in between, and would need a second answer for that case.
"""

import hmac
import os
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Final, Self

import anyio
import httpx
import structlog

from orchestrator.common import sweep_command
from orchestrator.common.address import ADDRESS, Address, proof
from orchestrator.common.locks import holder
from orchestrator.core.config import RegistryConfig
from orchestrator.core.errors import Unavailable, UsageError
from orchestrator.core.protocol import DiskLimit, Isolation, LockKind

SERVICES: Final = ".service"
LOG: Final = "service.log"
#: Seconds for which it outlives its last client.
LINGER_S: Final = 600
#: Seconds between two looks at it, each of which is also our sign of life.
HEARTBEAT_S: Final = 3.0
START_TIMEOUT_S: Final = 60.0
#: Seconds that it may take to answer the questions of one look.
ANSWER_S: Final = 10.0
_STARTED: Final = "started by"
#: The word for a service whose devboxes may have the machine's network.
_LENDING: Final = "host"
_REBUILDING: Final = "--rebuild"


async def proven(http: httpx.AsyncClient, state: Path) -> Address | None:
    """Read the address in a state folder; None unless the listener proves that it knows the token. That is not sent."""
    address = Address.read(state)
    if address is None:
        return None
    nonce = secrets.token_hex(16)
    try:
        answer = await http.get(f"{address.url}/v1/sweep/proof", params={"nonce": nonce})
        given, expected = str(answer.json()["proof"]).encode(), proof(address.token, nonce).encode()
    except (ValueError, KeyError, TypeError, httpx.HTTPError, httpx.InvalidURL):
        return None
    return address if hmac.compare_digest(given, expected) else None


async def post(http: httpx.AsyncClient, address: Address, verb: str, client: str) -> bool:
    """Tell the service something about this client; return whether it agreed."""
    headers = {"authorization": f"Bearer {address.token}"}
    try:
        answer = await http.post(f"{address.url}/v1/sweep/{verb}", json={"client": client}, headers=headers)
    except httpx.HTTPError:
        return False
    return answer.is_success


@dataclass(slots=True, kw_only=True)
class _Seeker:
    """Finds the service of a state folder, or starts it."""

    state: Path
    command: Sequence[str]
    http: httpx.AsyncClient
    hidden: Collection[str] = ()
    client: str = field(default_factory=lambda: secrets.token_hex(8))
    children: list[Popen[bytes]] = field(default_factory=list)

    async def find_or_start(self) -> Address:
        """Find the service, or start it and wait for it.

        Raises UsageError with the service's own words when it cannot start, Unavailable when it does not answer, and
        OSError.
        """
        child: Popen[bytes] | None = None
        with anyio.move_on_after(START_TIMEOUT_S):
            while (address := await self._find()) is None:
                child = self._started(child)
                await anyio.sleep(0.03)
            return address
        raise Unavailable(
            f"The benchmark service in {self.state} did not answer for {START_TIMEOUT_S:g} s; see {LOG} there."
        )

    async def _find(self) -> Address | None:
        """The address of a service that took our sign of life; one that is about to end does not. Raises OSError."""
        if holder(self.state) is None:
            return None
        with anyio.move_on_after(ANSWER_S):
            address = await proven(self.http, self.state)
            if address is not None and await post(self.http, address, "heartbeat", self.client):
                return address
        return None

    def _started(self, child: Popen[bytes] | None) -> Popen[bytes] | None:
        """Start the service if none runs. Returns our `child`, or a new one; None if another process started it.

        Raises UsageError if ours ended by itself, and not because another one was there first; and OSError.
        """
        self.children = [each for each in self.children if each.poll() is None]
        if child in self.children:
            return child
        if holder(self.state) is not None:
            return None
        if child is not None and child.returncode > 0:
            log_file = self.state / LOG
            words = log_file.read_text(errors="replace").rpartition(_STARTED)[2].splitlines()[1:]
            why = words[-1].removeprefix("sweep: ") if words else f"it ended without a word; see {log_file}."
            raise UsageError(f"The benchmark service cannot start: {why}")
        for folder in (self.state.parent, self.state):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = [name for name in os.environ if not name.startswith("RUNLOOP_") and name not in self.hidden]
        environment = {name: os.environ[name] for name in kept}
        with (self.state / LOG).open("ab") as log:
            log.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {_STARTED} {os.getpid()}\n".encode())
            log.flush()  # a full disk refuses here, where it can be said
            # In its own session, so that a Ctrl-C meant for us does not reach it.
            child = Popen(self.command, stdin=DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment)
        self.children.append(child)
        return child

    def disown(self, found: Address | None) -> None:
        """Let the service that was found outlive us; end any other that we started."""
        for child in self.children:
            if found is None or child.pid != found.pid:
                child.terminate()
            child.returncode = child.poll() or 0  # it may outlive us, and Python would warn of that


@dataclass(slots=True, kw_only=True)
class Service:
    """The service, which may move to another address."""

    address: Address
    _move: Callable[[str, str], None] = lambda _url, _token: None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        runs: Path,
        *,
        benchmarks: Sequence[Path],
        isolation: Isolation,
        hidden: Collection[str] = (),
        lock: LockKind = "file",
        lends_network: bool = False,
        disk_limit: DiskLimit = DiskLimit.WATCHED,
        images: RegistryConfig | None = None,
    ) -> AsyncIterator[Self]:
        """Find or start the service; keep it running; afterwards ask it to end if nothing is in flight in it.

        One that is started gets our environment without the `hidden` variables, and the settings of `images`, and
        keeps them for its life.
        Raises UsageError with the service's own words when it cannot start, and Unavailable when it died and cannot be
        started again.
        """
        rebuild = images is not None and images.rebuild
        state = state_folder(
            runs, benchmarks, isolation, lends_network=lends_network, rebuild=rebuild, disk_limit=disk_limit
        )
        service = None
        async with loopback_client() as http:
            command = _command(state, benchmarks, isolation, lock, lends_network=lends_network, disk_limit=disk_limit)
            for mirror in images.registry_mirror if images else ():
                command += ["--registry-mirror", mirror]
            if images and images.image_cache:
                command += ["--image-cache", str(images.image_cache)]
            if rebuild:
                command.append(_REBUILDING)
            seeker = _Seeker(state=state, command=command, http=http, hidden=hidden)
            try:
                try:
                    service = cls(address=await seeker.find_or_start())
                except OSError as error:
                    raise UsageError(
                        f"{state}: the benchmark service cannot be kept here: {error.strerror}. Give another --runs."
                    ) from None
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(service._keep, seeker)
                    try:
                        yield service
                    finally:
                        tasks.cancel_scope.cancel()
                        with anyio.move_on_after(5, shield=True):
                            for verb in ("goodbye", "stop"):  # deregister, then ask: the last client's request counts
                                await post(http, service.address, verb, seeker.client)
            finally:
                seeker.disown(service.address if service is not None else None)

    @classmethod
    async def running(cls, runs: Path) -> list[Address]:
        """Find the services of a runs folder that run now, whatever they serve; starts none."""
        files = await anyio.to_thread.run_sync(lambda: sorted(runs.glob(f"{SERVICES}/*/{ADDRESS}")))
        async with loopback_client() as http:
            found = [await proven(http, file.parent) for file in files]
        return [address for address in found if address is not None]

    def follow(self, move: Callable[[str, str], None]) -> None:
        """Call `move` with the address and the token now, and after each change."""
        self._move = move
        move(self.address.url, self.address.token)

    async def _keep(self, seeker: _Seeker) -> None:
        while True:
            await anyio.sleep(HEARTBEAT_S)
            try:
                address = await seeker.find_or_start()
            except (Unavailable, OSError) as error:  # it may live, and answer other requests all the same
                structlog.get_logger().warning("service.silent", error=str(error))
                continue
            except UsageError as error:
                raise Unavailable(
                    f"{error.message} It ended while it was needed. Nothing finished is lost: fix this, then resume."
                ) from None
            if address != self.address:
                structlog.get_logger().warning("service.replaced", url=address.url)
                self.address = address
                self._move(address.url, address.token)


def loopback_client() -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(verify=False)  # plain HTTP on loopback needs no certificates
    return httpx.AsyncClient(transport=transport, trust_env=False, timeout=ANSWER_S)


def state_folder(
    runs: Path,
    benchmarks: Sequence[Path],
    isolation: Isolation,
    *,
    lends_network: bool = False,
    rebuild: bool = False,
    disk_limit: DiskLimit = DiskLimit.WATCHED,
) -> Path:
    mode = [*([_REBUILDING] if rebuild else []), *([_LENDING] if lends_network else []), isolation]
    mode += [disk_limit] if disk_limit is DiskLimit.HARD else []
    what = "\n".join([*mode, *(str(folder.resolve()) for folder in benchmarks)])
    return runs.resolve() / SERVICES / sha256(what.encode()).hexdigest()[:12]


def _command(
    state: Path,
    benchmarks: Sequence[Path],
    isolation: Isolation,
    lock: LockKind,
    *,
    lends_network: bool,
    disk_limit: DiskLimit,
) -> list[str]:
    command = [*sweep_command(), "serve", "--state", str(state), "--isolation", isolation, "--disk-limit", disk_limit]
    command += ["--port", "0", "--linger", str(LINGER_S), "--lock", lock, "--quiet"]
    if lends_network:
        command += ["--network", _LENDING]
    for folder in benchmarks:
        command += ["--benchmarks", str(folder)]
    return command
