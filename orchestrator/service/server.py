"""The benchmark service as a running thing: a socket, signals, an orderly end.

When the service ends, requests that wait for its devboxes are still answered while these are shut down, and the socket
goes last.

Why uvicorn's own signal handling is off: it would close the socket first and leave the devboxes for afterwards.
"""

import os
import resource
import secrets
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Self, cast

import anyio
import structlog
import uvicorn
from anyio.abc import TaskGroup, TaskStatus
from starlette.types import ASGIApp

from orchestrator.common.address import Address
from orchestrator.core.errors import UsageError, leaf
from orchestrator.core.protocol import DiskLimit, Isolation, LockKind, Mirror
from orchestrator.service.assembly import SOUND, Seams, Service
from orchestrator.service.http.gate import BoundedHeads, BrowserGate, HostNames, Strangers, is_loopback
from orchestrator.service.state_folder import Home, forget_address, hold_lock, publish

BACKLOG: Final = 4096
KEEP_ALIVE_S: Final = 75
#: Time that requests in flight get once the devboxes are gone.
_LAST_REPLIES_S: Final = 3
#: Pause between two looks whether its state folder is there.
_LOOK_PAUSE_S: Final = 0.5
_MAX_OPEN_FILES: Final = 65_536
#: Connections that have not shown the token: as many as wait in the backlog, and never more than half of our files.
_MAX_STRANGERS: Final = BACKLOG
#: Characters of a token, which guessing must not find.
MIN_TOKEN: Final = 16


async def serve(
    host: str,
    port: int,
    token: str | None,
    state: Path,
    benchmarks: Sequence[Path],
    isolation: Isolation,
    linger: float | None,
    *,
    seams: Seams = SOUND,
    secret_names: Sequence[str] = (),
    allowed_hosts: Sequence[str] = (),
    lock: LockKind = "file",
    mirrors: Sequence[Mirror] = (),
    image_budget: int | None = None,
    rebuild: bool = False,
    lends_network: bool = False,
    disk_limit: DiskLimit = DiskLimit.WATCHED,
    task_status: TaskStatus[Address] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGTERM or SIGINT, until a client stops it, or until nobody has used it for `linger` seconds.

    Port 0 is any free one; its address goes to `task_status` and to `state/address.json`. A second signal
    ends it at once. `allowed_hosts` are names that clients may know it by beside those that `HostNames` has. Raises
    UsageError for a bad address or token, a state folder in use, a secret that is not in the environment, and what
    `Service.open` raises.
    """
    if token is None and not is_loopback(host):
        raise UsageError(f"Listening on {host} makes the service reachable for others: give it a --token of your own.")
    _check_token(token)
    if missing := [name for name in secret_names if name not in os.environ]:
        raise UsageError(f"--secret {missing[0]}: there is no such variable in the environment of the service.")
    token = token or secrets.token_urlsafe(32)
    raise_open_files()
    with hold_lock(state, lock), _listen(host, port) as listener, _ungrouped():
        forget_address(state)
        async with anyio.create_task_group() as watchers:
            try:
                async with (
                    _Http.open(listener) as http,
                    Service.open(
                        state=state,
                        benchmarks=benchmarks,
                        isolation=isolation,
                        token=token,
                        seams=seams,
                        secret_names=secret_names,
                        lock=lock,
                        mirrors=mirrors,
                        image_budget=image_budget,
                        rebuild=rebuild,
                        lends_network=lends_network,
                        disk_limit=disk_limit,
                    ) as service,
                ):
                    names = HostNames(host=host, others=frozenset(map(str.lower, allowed_hosts)))
                    http.answer(BrowserGate(service.app, names), seams.connection)
                    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
                    named = f"[{reachable}]" if ":" in reachable else reachable
                    url = f"http://{named}:{listener.getsockname()[1]}"
                    address = Address(url=url, token=token, instance=service.instance, pid=os.getpid())
                    watchers.start_soon(_heed_signals, service.stopping, watchers.cancel_scope)
                    if linger is not None:
                        watchers.start_soon(_stop_unused, service, linger)
                    watchers.start_soon(_stop_homeless, service, service.home)
                    with publish(state, address):
                        structlog.get_logger().info("service.listening", url=address.url, isolation=isolation)
                        task_status.started(address)
                        await service.stopping.wait()
                        structlog.get_logger().info("service.stopping")
            finally:
                watchers.cancel_scope.cancel()


def _check_token(token: str | None) -> None:
    """Raises UsageError for one that could be guessed, or that no header can carry; None will be a random one."""
    if token is None:
        return
    if len(token) < MIN_TOKEN:
        raise UsageError(
            f"--token, or SWEEP_TOKEN, has {len(token)} characters, which can be guessed: take at least {MIN_TOKEN}, "
            "such as those of `openssl rand -hex 16`, or none, for a random one."
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("--token, or SWEEP_TOKEN, has characters that a header cannot carry: take letters and digits.")


async def _heed_signals(stopping: anyio.Event, scope: anyio.CancelScope) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if stopping.is_set():
                scope.cancel()
            stopping.set()


async def _stop_unused(service: Service, linger: float) -> None:
    await service.activity.wait_unused(linger)
    service.activity.is_ending = True
    structlog.get_logger().info("service.unused", seconds=linger)
    service.stopping.set()


async def _stop_homeless(service: Service, home: Home) -> None:
    """Stop a service whose state folder is gone: no client could find it, and its devboxes would be left over."""
    while await anyio.to_thread.run_sync(home.is_there):  # noqa: ASYNC110 - a folder announces nothing
        await anyio.sleep(_LOOK_PAUSE_S)
    structlog.get_logger().error("service.homeless")
    service.activity.is_ending = True
    service.stopping.set()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`."""
        yield


class _Http:
    """The socket's side, which outlives the service that it answers for."""

    def __init__(self, tasks: TaskGroup, listener: socket.socket) -> None:
        self._tasks = tasks
        self._listener = listener
        self._server: _Server | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, listener: socket.socket) -> AsyncIterator[Self]:
        """On leaving, the last replies are sent and the listener is closed."""
        async with anyio.create_task_group() as tasks:
            http = cls(tasks, listener)
            try:
                yield http
            finally:
                if http._server is not None:
                    http._server.should_exit = True

    def answer(self, app: ASGIApp, connections: type[BoundedHeads]) -> None:
        """Start to answer requests, those too that wait in the backlog."""
        strangers = Strangers(min(_MAX_STRANGERS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        server = self._server = _Server(
            uvicorn.Config(
                app,
                http=cast("type[BoundedHeads]", partial(connections, strangers=strangers)),
                ws="none",
                lifespan="off",
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=_LAST_REPLIES_S,
                access_log=False,
                log_config=None,
                server_header=False,
            )
        )

        async def run() -> None:
            with anyio.CancelScope(shield=True):  # it ends when it shall, bounded, so that its sockets are closed
                await server.serve(sockets=[self._listener])

        self._tasks.start_soon(run)


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, because asyncio switches Nagle's delay off only where it is: 45 ms of every POST.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise UsageError(f"The service cannot listen on {host}, port {port}: {error}. Choose others.") from None
        yield listener


@contextmanager
def _ungrouped() -> Iterator[None]:
    """Let an exception that task groups have wrapped pass as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise leaf(group) from None


def raise_open_files() -> None:
    """Raise the soft limit on open files as far as the hard one allows: each client and each command needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
