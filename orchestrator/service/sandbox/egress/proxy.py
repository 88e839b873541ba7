"""The way out of one devbox: a proxy on the box's own loopback, and the host's named loopback ports beside it.

Its secret: where it listens. The sockets are the box's, opened by its agent and handed over; what connects to them is
accepted here, so there is no forwarder in the box that a program could stop or replace, and no other way out: the box
has a network of loopback alone. Whatever is asked for, the rules are asked about the name, the name is looked up once,
here, and the very address that was judged is connected to. A client has a task, a few buffers and its share of the
box's connections; one that stalls stalls nobody else, and all of it ends with the box.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Final

import anyio
import anyio.lowlevel
import structlog
from anyio.abc import TaskStatus

from orchestrator.service.sandbox.egress.addresses import Resolver, address_of, is_public, looked_up
from orchestrator.service.sandbox.egress.counters import Tally, Told
from orchestrator.service.sandbox.egress.dialing import Unreachable, Upstream, connect_one, kept
from orchestrator.service.sandbox.egress.http_head import CONNECTED, Asked, BadHead, Head, refusal
from orchestrator.service.sandbox.egress.rules import FIRST_FREE_PORT, LOCALHOST, Address, Rules, is_address, spelled
from orchestrator.service.sandbox.provider import Box

#: Outside of what the kernel gives to programs that ask for any port.
PORT: Final = 61_080
MAX_CONNECTIONS: Final = 128
LOOKUPS: Final = 4
HEAD_PATIENCE: Final = 30.0
#: A model may think for long before it says its first word.
IDLE_PATIENCE: Final = 3600.0
#: The same once one side has said all it has to say.
HALF_PATIENCE: Final = 600.0
#: How long a refused client may take to read why.
LAST_WORDS: Final = 2.0
#: Seconds after which a service without a file descriptor to spare accepts again.
SHORTAGE: Final = 0.5
PIECE: Final = 64 << 10
LOOPBACK: Final = (ip_address("127.0.0.1"), ip_address("::1"))
MAX_ADDRESSES: Final = 8
#: How many of the rules a refusal names.
SHOWN: Final = 20


class Forbidden(Exception):
    """It is not allowed; the words are for the client, and name the fix."""


class Egress:
    """Lets one devbox out to what `rules` name. `told` hears of each host once.

    With an `upstream`, all goes by that but what it does not serve, and where names lead is its business.
    """

    def __init__(
        self, rules: Rules, told: Told, resolve: Resolver | None = None, upstream: Upstream | None = None
    ) -> None:
        self._rules = rules
        self._upstream = upstream
        self._resolve = resolve or looked_up(LOOKUPS)
        self._places = anyio.Semaphore(MAX_CONNECTIONS)
        self.tally = Tally(told)
        self.port = next(port for port in range(PORT, FIRST_FREE_PORT, -1) if port not in rules.straight)

    @property
    def variables(self) -> Mapping[str, str]:
        """What commands find in their environment. Loopback is the box's own, so nothing there goes by the proxy."""
        proxy = f"http://127.0.0.1:{self.port}"
        named = {"http_proxy": proxy, "https_proxy": proxy, "all_proxy": proxy, "no_proxy": "localhost,127.0.0.1,::1"}
        return {**named, **{name.upper(): value for name, value in named.items()}, "NODE_USE_ENV_PROXY": "1"}

    async def serve(self, box: Box, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started once all ports are open. Raises BoxDied and OSError before."""
        with ExitStack() as stack:
            listeners = {
                port: stack.enter_context(await box.listen(port)) for port in (self.port, *self._rules.straight)
            }
            async with anyio.create_task_group() as tasks:
                for port, listener in listeners.items():
                    tasks.start_soon(self._accept, listener, port)
                task_status.started()

    async def _accept(self, listener: socket.socket, port: int) -> None:
        async with anyio.create_task_group() as clients:
            while True:
                try:
                    client, _ = await asyncio.get_running_loop().sock_accept(listener)
                except OSError as error:
                    structlog.get_logger().warning("egress.not_accepted", error=str(error))
                    await anyio.sleep(SHORTAGE)
                    continue
                with kept(client):
                    await self._places.acquire()
                    clients.start_soon(self._attend, client, self._rules.straight.get(port), port)

    async def _attend(self, client: socket.socket, straight: str | None, port: int) -> None:
        """Serve one connection: to the proxy, or straight to a port of the host's loopback."""
        try:
            with client:
                if straight is None:
                    await self._mediate(client)
                else:
                    await self._pass_on(client, Asked(host=straight, port=port, first=b"", is_tunnel=False))
        except (OSError, Unreachable, Forbidden) as error:
            structlog.get_logger().debug("egress.broken", error=str(error))
        except Exception:  # noqa: BLE001 - one client's trouble is not the box's
            structlog.get_logger().exception("egress.crashed")
        finally:
            self._places.release()

    async def _mediate(self, client: socket.socket) -> None:
        """Read what is asked for and do it, or say why not."""
        try:
            with anyio.fail_after(HEAD_PATIENCE):
                asked = await _read_head(client)
            await self._pass_on(client, asked)
        except BadHead as error:
            await _answer(client, refusal(error.status, "not understood by sweep", str(error)))
        except Forbidden as error:
            await _answer(client, refusal(403, "forbidden by sweep's rules", str(error)))
        except Unreachable as error:
            await _answer(client, refusal(502, "not reachable", str(error)))
        except (EOFError, TimeoutError):
            return

    async def _pass_on(self, client: socket.socket, asked: Asked) -> None:
        """Raises Forbidden and Unreachable, before the first byte is passed on."""
        server = await self._connect(asked.host, asked.port)
        with server:
            loop = asyncio.get_running_loop()
            if asked.is_tunnel:
                await loop.sock_sendall(client, CONNECTED)
            await _relay(client, server, asked.first)

    async def _connect(self, host: str, port: int) -> socket.socket:
        name = spelled(host, port)
        try:
            server = await self._reach(name, host, port)
        except (Forbidden, Unreachable) as error:
            await self.tally.count("refused" if isinstance(error, Forbidden) else "unreachable", name)
            raise
        with kept(server):
            await self.tally.count("reached", name)
        return server

    async def _reach(self, name: str, host: str, port: int) -> socket.socket:
        if not self._rules.lets(host, port):
            raise Forbidden(self._explain(name, "no rule names it", name))
        if self._upstream is not None and self._upstream.serves(host, port):
            return await self._upstream.connect(host, port, self._resolve)
        found = await self._addresses(host, port)
        is_trusted = self._rules.trusts(host, port)
        allowed = [each for each in found if is_trusted or self._rules.names(each, port) or is_public(each)]
        if not allowed:
            places = ", ".join(map(str, found[:MAX_ADDRESSES]))
            why = f"it is at {places}, no public address, and no rule names that"
            raise Forbidden(self._explain(name, why, spelled(str(found[0]), port)))
        return await connect_one(name, allowed[:MAX_ADDRESSES], port)

    async def _addresses(self, host: str, port: int) -> list[Address]:
        if is_address(host):
            return [address_of(host)]
        if host == LOCALHOST:
            return list(LOOPBACK)
        try:
            found = list(await self._resolve(host, port))
        except (OSError, UnicodeError) as error:
            raise Unreachable(f"The address of {host} is not known: {str(error) or 'no answer in time'}.") from None
        if not found:
            raise Unreachable(f"{host} has no address.")
        return found

    def _explain(self, name: str, why: str, missing: str) -> str:
        named = [str(rule) for rule in self._rules.all[:SHOWN]]
        hosts = ", ".join([*named, *(["every public host"] if self._rules.is_public else [])])
        return (
            f"This devbox may not reach {name}: {why}. It may reach: {hosts}. "
            f"To allow it, add {missing!r} to [network] hosts of the agent's file, or to allowed_hostnames of the "
            "devbox's network policy; `--network host` allows everything."
        )


async def _read_head(client: socket.socket) -> Asked:
    """Raises BadHead, and EOFError if the client goes."""
    head, asked = Head(), None
    while asked is None:
        data = await _receive(client)
        if not data:
            raise EOFError
        asked = head.feed(data)
    return asked


async def _answer(client: socket.socket, answer: bytes) -> None:
    """Send the last words, and take what still comes: a reset would overtake them."""
    with anyio.move_on_after(LAST_WORDS):
        await asyncio.get_running_loop().sock_sendall(client, answer)
        client.shutdown(socket.SHUT_WR)
        while await _receive(client):
            pass


async def _relay(client: socket.socket, server: socket.socket, first: bytes) -> None:
    """Pass on both ways until both have ended, one has broken, or nothing has moved for long."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    patience = IDLE_PATIENCE
    async with anyio.create_task_group() as both:

        def moved() -> None:
            both.cancel_scope.deadline = anyio.current_time() + patience

        async def pump(source: socket.socket, target: socket.socket, data: bytes) -> None:
            nonlocal patience
            try:
                await _pump(source, target, data, moved)
            except OSError:
                both.cancel_scope.cancel()
            patience = HALF_PATIENCE
            moved()

        moved()
        both.start_soon(pump, client, server, first)
        both.start_soon(pump, server, client, b"")


async def _pump(source: socket.socket, target: socket.socket, data: bytes, moved: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    if data:
        await loop.sock_sendall(target, data)
    while data := await _receive(source):
        moved()
        await loop.sock_sendall(target, data)
        moved()
    target.shutdown(socket.SHUT_WR)


async def _receive(source: socket.socket) -> bytes:
    """What has come, nothing at the end; whoever sends without a pause does not hold up the others."""
    await anyio.lowlevel.checkpoint()
    return await asyncio.get_running_loop().sock_recv(source, PIECE)
