"""The way out of one devbox: a proxy on the box's own loopback, and the host's named loopback ports beside it.

Its secret: where it listens. The sockets are the box's: its agent opens them and hands them over, and this module
accepts what connects to them. So no forwarder runs in the box that a program could stop or replace, and there is no
other way out, for the box has a network of loopback alone. The rules judge the name, the name is looked up once, here,
and the connection goes to the very address that was judged. Each client has a task, a few buffers and its share of the
box's connections; one that stalls does not stall the others, and all of it ends with the box.

The head of a request is read by h11, the parser of the machine's HTTP servers, so that nothing passes here that another
program would read differently. Everything after the head is passed on as bytes.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import h11
import structlog
from anyio.abc import TaskStatus

from orchestrator.service.sandbox.egress.addresses import Resolver, address_of, is_public, looked_up
from orchestrator.service.sandbox.egress.dialing import Unreachable, Upstream, connect_one, kept
from orchestrator.service.sandbox.egress.rules import FIRST_FREE_PORT, LOCALHOST, Rules, is_address, known_host, spelled
from orchestrator.service.sandbox.provider import Box

#: Outside the range from which the kernel serves programs that ask for any port.
PROXY_PORT: Final = 61_080
MAX_CONNECTIONS: Final = 128
MAX_LOOKUPS: Final = 4
MAX_HEAD_BYTES: Final = 64 << 10
CHUNK_BYTES: Final = 64 << 10
HEAD_TIMEOUT_S: Final = 30.0
#: A model may think for long before it says its first word.
IDLE_TIMEOUT_S: Final = 3600.0
#: The same, once one side has sent all it has to send.
HALF_OPEN_TIMEOUT_S: Final = 600.0
#: Time for a refused client to read the reason.
REFUSAL_TIMEOUT_S: Final = 2.0
#: Pause before a service without a free file descriptor accepts again.
ACCEPT_RETRY_S: Final = 0.5
LOOPBACK: Final = (ip_address("127.0.0.1"), ip_address("::1"))
MAX_ADDRESSES: Final = 8
#: Rules that a refusal lists.
MAX_RULES_SHOWN: Final = 20
#: Hosts that are counted by name; all others are counted under OTHERS, for a program may ask for any number of names.
MAX_COUNTED_HOSTS: Final = 256
OTHERS: Final = "(others)"
CONNECTED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
#: Headers that concern the client and this proxy only.
_HOP_BY_HOP: Final = frozenset(
    {b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive", b"te", b"upgrade"}
)

#: "unreachable": the rules allow the host, but no connection was made.
EgressVerdict = Literal["reached", "refused", "unreachable"]
#: Called once for each verdict on each host.
OnFirstVerdict = Callable[[EgressVerdict, str], Awaitable[None]]


class Forbidden(Exception):
    """The rules do not allow a connection; the message is for the client and names the fix."""


class BadHead(Exception):
    """The bytes are no request to a proxy; `status` and the message are for the client."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyRequest:
    """A client's destination, and the bytes `first` to send there; the client of a tunnel is told when it is open."""

    host: str
    port: int
    first: bytes
    is_tunnel: bool


class RequestHead:
    """The head of one request, parsed as it arrives."""

    def __init__(self) -> None:
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)

    def feed(self, data: bytes) -> ProxyRequest | None:
        """Return the request, or None while the head is incomplete. Raises BadHead."""
        try:
            self._parser.receive_data(data)
            event = self._parser.next_event()
        except h11.RemoteProtocolError as error:
            raise BadHead(f"The request cannot be read: {error}.", error.error_status_hint) from None
        if not isinstance(event, h11.Request):
            return None

        target, (behind, _) = event.target.decode("ascii"), self._parser.trailing_data
        if event.method == b"CONNECT":
            host, port = _destination(f"//{target}", None)
            return ProxyRequest(host=host, port=port, first=behind, is_tunnel=True)
        if not target.startswith("http://"):
            raise BadHead("This is the way out of a devbox, a proxy: it takes CONNECT, and http:// addresses in full.")
        host, port = _destination(target, 80)

        # One request to a connection: no second one goes where the first went.
        url = urlsplit(target)
        values = [value for header, value in event.headers if header == b"connection"]
        dropped = _HOP_BY_HOP | {name.strip().lower() for value in values for name in value.split(b",")} | {b"host"}
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        lines = [
            b"%s %s HTTP/1.1" % (event.method, path.encode()),
            b"Host: " + url.netloc.rpartition("@")[2].encode(),
            *(b"%s: %s" % each for each in event.headers.raw_items() if each[0].lower() not in dropped),
            b"Connection: close",
        ]
        return ProxyRequest(host=host, port=port, first=b"\r\n".join(lines) + b"\r\n\r\n" + behind, is_tunnel=False)


def _destination(target: str, default_port: int | None) -> tuple[str, int]:
    try:
        url = urlsplit(target)
        host, port = known_host(url.hostname or ""), url.port or default_port
    except ValueError:
        host, port = "", None
    if not host or port is None:
        raise BadHead("The address is not of the form host:port.")
    return host, port


def refusal(status: int, reason: str, message: str) -> bytes:
    """An error response. Many clients show no more of it than the reason."""
    body = f"{message}\n".encode()
    lines = [
        f"HTTP/1.1 {status} {reason}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class EgressCounters:
    """Counts connections by verdict and host."""

    def __init__(self, on_first: OnFirstVerdict) -> None:
        self._on_first = on_first
        self._counts: Mapping[EgressVerdict, dict[str, int]] = {"reached": {}, "refused": {}, "unreachable": {}}

    async def count(self, verdict: EgressVerdict, host: str) -> None:
        counts = self._counts[verdict]
        name = host if host in counts or len(counts) < MAX_COUNTED_HOSTS else OTHERS
        counts[name] = counts.get(name, 0) + 1
        if counts[name] == 1:
            await self._on_first(verdict, name)

    def document(self) -> dict[str, dict[str, int]]:
        """{"reached": {host: count}, "refused": {host: count}}."""
        return {"reached": dict(self._counts["reached"]), "refused": dict(self._counts["refused"])}


class Egress:
    """Lets one devbox out to what `rules` name. `on_first` is called once for each verdict on each host.

    With an `upstream` proxy, everything goes through it but what it does not serve, and it resolves the names.
    """

    def __init__(
        self,
        rules: Rules,
        on_first: OnFirstVerdict,
        resolve: Resolver | None = None,
        upstream: Upstream | None = None,
    ) -> None:
        self._rules = rules
        self._upstream = upstream
        self._resolve = resolve or looked_up(MAX_LOOKUPS)
        self._connections = anyio.Semaphore(MAX_CONNECTIONS)
        self.counters = EgressCounters(on_first)
        self.port = next(port for port in range(PROXY_PORT, FIRST_FREE_PORT, -1) if port not in rules.straight)

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment variables for the box's commands. Loopback is the box's own, so it bypasses the proxy."""
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
                    await anyio.sleep(ACCEPT_RETRY_S)
                    continue
                with kept(client):
                    await self._connections.acquire()
                    clients.start_soon(self._attend, client, self._rules.straight.get(port), port)

    async def _attend(self, client: socket.socket, straight: str | None, port: int) -> None:
        """Serve one connection: to the proxy, or straight to a port of the host's loopback."""
        try:
            with client:
                if straight is None:
                    await self._mediate(client)
                else:
                    await self._pass_on(client, ProxyRequest(host=straight, port=port, first=b"", is_tunnel=False))
        except (OSError, Unreachable, Forbidden) as error:
            structlog.get_logger().debug("egress.broken", error=str(error))
        except Exception:  # noqa: BLE001 - one client's trouble is not the box's
            structlog.get_logger().exception("egress.crashed")
        finally:
            self._connections.release()

    async def _mediate(self, client: socket.socket) -> None:
        """Read a request and carry it out, or answer why not."""
        try:
            with anyio.fail_after(HEAD_TIMEOUT_S):
                head, request = RequestHead(), None
                while request is None:
                    data = await _receive(client)
                    if not data:
                        return
                    request = head.feed(data)
            await self._pass_on(client, request)
        except BadHead as error:
            await _answer(client, refusal(error.status, "not understood by sweep", str(error)))
        except Forbidden as error:
            await _answer(client, refusal(403, "forbidden by sweep's rules", str(error)))
        except Unreachable as error:
            await _answer(client, refusal(502, "not reachable", str(error)))
        except TimeoutError:
            return

    async def _pass_on(self, client: socket.socket, request: ProxyRequest) -> None:
        """Connect and relay. Raises Forbidden and Unreachable, before the first byte is passed on."""
        name = spelled(request.host, request.port)
        try:
            server = await self._connect(name, request.host, request.port)
        except (Forbidden, Unreachable) as error:
            await self.counters.count("refused" if isinstance(error, Forbidden) else "unreachable", name)
            raise
        with server:
            await self.counters.count("reached", name)
            if request.is_tunnel:
                await asyncio.get_running_loop().sock_sendall(client, CONNECTED)
            await _relay(client, server, request.first)

    async def _connect(self, name: str, host: str, port: int) -> socket.socket:
        if not self._rules.lets(host, port):
            raise Forbidden(self._explain(name, "no rule names it", name))
        if self._upstream is not None and self._upstream.serves(host, port):
            return await self._upstream.connect(host, port, self._resolve)

        if is_address(host):
            found = [address_of(host)]
        elif host == LOCALHOST:
            found = list(LOOPBACK)
        else:
            try:
                found = list(await self._resolve(host, port))
            except (OSError, UnicodeError) as error:
                why = str(error) or "no answer in time"
                raise Unreachable(f"The address of {host} is not known: {why}.") from None
            if not found:
                raise Unreachable(f"{host} has no address.")

        is_trusted = self._rules.trusts(host, port)
        allowed = [each for each in found if is_trusted or self._rules.names(each, port) or is_public(each)]
        if not allowed:
            places = ", ".join(map(str, found[:MAX_ADDRESSES]))
            why = f"it is at {places}, no public address, and no rule names that"
            raise Forbidden(self._explain(name, why, spelled(str(found[0]), port)))
        return await connect_one(name, allowed[:MAX_ADDRESSES], port)

    def _explain(self, name: str, why: str, missing: str) -> str:
        named = [str(rule) for rule in self._rules.all[:MAX_RULES_SHOWN]]
        hosts = ", ".join([*named, *(["every public host"] if self._rules.is_public else [])])
        return (
            f"This devbox may not reach {name}: {why}. It may reach: {hosts}. "
            f"To allow it, add {missing!r} to [network] hosts of the agent's file, or to allowed_hostnames of the "
            "devbox's network policy; `--network host` allows everything."
        )


async def _answer(client: socket.socket, answer: bytes) -> None:
    """Send an answer and read on until the client closes: a reset would overtake the answer."""
    with anyio.move_on_after(REFUSAL_TIMEOUT_S):
        await asyncio.get_running_loop().sock_sendall(client, answer)
        client.shutdown(socket.SHUT_WR)
        while await _receive(client):
            pass


async def _relay(client: socket.socket, server: socket.socket, first: bytes) -> None:
    """Pass bytes both ways until both sides have ended, one has broken, or nothing has moved for long."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    loop = asyncio.get_running_loop()
    timeout_s = IDLE_TIMEOUT_S
    async with anyio.create_task_group() as both:

        def moved() -> None:
            both.cancel_scope.deadline = anyio.current_time() + timeout_s

        async def pump(source: socket.socket, target: socket.socket, data: bytes) -> None:
            nonlocal timeout_s
            try:
                if data:
                    await loop.sock_sendall(target, data)
                while data := await _receive(source):
                    moved()
                    await loop.sock_sendall(target, data)
                    moved()
                target.shutdown(socket.SHUT_WR)
            except OSError:
                both.cancel_scope.cancel()
            timeout_s = HALF_OPEN_TIMEOUT_S
            moved()

        moved()
        both.start_soon(pump, client, server, first)
        both.start_soon(pump, server, client, b"")


async def _receive(source: socket.socket) -> bytes:
    """Receive what has come, b"" at the end; a sender without pauses does not hold up the other tasks."""
    await anyio.lowlevel.checkpoint()
    return await asyncio.get_running_loop().sock_recv(source, CHUNK_BYTES)
