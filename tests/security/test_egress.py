"""Reach of a program in a devbox whose rules name some hosts: those, and nothing else, by any way.

No packet leaves the machine: names lead where the test says, and that is loopback.
"""

import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from ipaddress import ip_address
from pathlib import Path
from subprocess import DEVNULL, run

import anyio
import anyio.to_thread
import pytest
from anyio.abc import ByteStream, SocketAttribute, TaskGroup
from anyio.streams.tls import TLSListener

from orchestrator.service.sandbox.base_provider import AgentBox
from orchestrator.service.sandbox.commands import run as run_in
from orchestrator.service.sandbox.egress import dialing
from orchestrator.service.sandbox.egress.proxy import MAX_CONNECTIONS, Egress, EgressVerdict
from orchestrator.service.sandbox.egress.rules import IPAddress, Rules
from orchestrator.service.sandbox.provider import Command
from tests.waiting import until

pytestmark = pytest.mark.anyio
Boot = Callable[..., Awaitable[AgentBox]]
Ask = Callable[[AgentBox, str], Awaitable[str]]
Handler = Callable[[ByteStream], Awaitable[None]]
Serve = Callable[..., Awaitable[int]]

PROXIED = "curl -sS --noproxy '' --max-time 20"
#: What a program says to the proxy itself, and what it hears.
TALK = """\
import os, socket, sys
proxy = int(os.environ["HTTP_PROXY"].rpartition(":")[2])
def talk(said, end=False):
    with socket.create_connection(("127.0.0.1", proxy), timeout=20) as way:
        way.sendall(said)
        if end:
            way.shutdown(socket.SHUT_WR)
        heard = b""
        while part := way.recv(65536):
            heard += part
        return heard.decode(errors="replace")
"""


class LetOut:
    """A booted box with a way out, and the verdicts on its connections."""

    def __init__(self, box: AgentBox, egress: Egress) -> None:
        self.box = box
        self.egress = egress
        self.told: list[tuple[EgressVerdict, str]] = []
        self.asked: list[str] = []

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        return self.egress.counters.document()


Let = Callable[..., Awaitable[LetOut]]


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    async with anyio.create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()


@pytest.fixture
def let(boot: Boot, tasks: TaskGroup) -> Let:
    """Boots a box that may reach these hosts; a name leads to the addresses in `book`, one after the other.

    With commas between them they are one answer.
    """

    async def let(*hosts: str, book: dict[str, str] | None = None, is_public: bool = False) -> LetOut:
        places = {name: places.split() for name, places in (book or {}).items()}

        async def resolve(host: str, port: int) -> list[IPAddress]:
            del port
            out.asked.append(host)
            if host not in places:
                raise socket.gaierror(socket.EAI_NONAME, "nobody knows it")
            answer = places[host].pop(0) if len(places[host]) > 1 else places[host][0]
            return [ip_address(each) for each in answer.split(",")]

        async def tell(verdict: EgressVerdict, host: str) -> None:
            out.told.append((verdict, host))

        egress = Egress(Rules.parse(hosts, is_public=is_public), tell, resolve)
        out = LetOut(await boot(environment=egress.variables), egress)
        await tasks.start(egress.serve, out.box)
        return out

    return let


@pytest.fixture
async def answering() -> AsyncIterator[Serve]:
    """Serves something on the host's loopback; returns the port."""
    async with AsyncExitStack() as listeners, anyio.create_task_group() as serving:

        async def answering(handler: Handler, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> int:
            listener = await listeners.enter_async_context(await anyio.create_tcp_listener(local_host=host))
            served = listener if context is None else TLSListener(listener, context, standard_compatible=False)
            serving.start_soon(served.serve, handler)
            return int(listener.extra(SocketAttribute.local_port))

        yield answering
        serving.cancel_scope.cancel()


async def greet(stream: ByteStream) -> None:
    """An HTTP server that says what it was asked."""
    async with stream:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive()
        body = b"hello from the host\n" + head
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)


async def echo_at_the_end(stream: ByteStream) -> None:
    """Answers once the client has said all it has to say."""
    async with stream:
        said = b"".join([part async for part in stream])
        await stream.send(b"heard " + said)


@pytest.fixture
def certified(tmp_path: Path) -> ssl.SSLContext:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here to make a certificate")
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=model.test -keyout key -out certificate"
    run(made.split(), cwd=tmp_path, check=True, stdout=DEVNULL, stderr=DEVNULL)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    return context


async def test_a_named_port_of_the_hosts_loopback_is_at_the_same_place_in_the_box(
    let: Let, answering: Serve, say: Ask
) -> None:
    """Straight, for clients go by no proxy to localhost; and by the proxy, both ways."""
    port = await answering(greet)
    out = await let(f"127.0.0.1:{port}")
    assert "hello from the host\nGET /straight" in await say(out.box, f"curl -sS http://127.0.0.1:{port}/straight")
    assert "GET /name" in await say(out.box, f"curl -sS http://localhost:{port}/name")
    assert "GET /proxied" in await say(out.box, f"{PROXIED} http://127.0.0.1:{port}/proxied")
    assert "GET /tunnel" in await say(out.box, f"{PROXIED} -p http://127.0.0.1:{port}/tunnel")
    assert out.counts == {"reached": {f"127.0.0.1:{port}": 4}, "refused": {}}


async def test_a_named_host_is_reached_over_tls_and_plainly(
    let: Let, answering: Serve, say: Ask, tell: Ask, certified: ssl.SSLContext
) -> None:
    safe, plain = await answering(greet, certified), await answering(greet)
    named = (f"model.test:{safe}", f"model.test:{plain}", f"127.0.0.1:{safe}", f"127.0.0.1:{plain}")
    out = await let(*named, book={"model.test": "127.0.0.1"})
    assert "GET /one" in await say(out.box, f"curl -sSk https://model.test:{safe}/one")
    assert "GET /two" in await say(out.box, f"curl -sS http://model.test:{plain}/two")
    program = """\
import ssl, urllib.request
unchecked = ssl._create_unverified_context()
print(urllib.request.urlopen("https://model.test:{safe}/three", context=unchecked).read().decode())
print(urllib.request.urlopen("http://model.test:{plain}/four", data=b"x" * 100000).read().decode())
"""
    said = await tell(out.box, program.format(safe=safe, plain=plain))
    assert "GET /three" in said
    assert "POST /four HTTP/1.1" in said
    assert f"Host: model.test:{plain}" in said
    assert out.counts["reached"] == {f"model.test:{safe}": 2, f"model.test:{plain}": 2}
    assert out.told == [("reached", f"model.test:{safe}"), ("reached", f"model.test:{plain}")]


async def test_a_host_that_is_not_named_is_refused_with_the_fix(let: Let, answering: Serve, say: Ask) -> None:
    port = await answering(greet)
    out = await let("*.model.test", "model.test:8443", f"127.0.0.1:{port}")
    said = await say(out.box, "curl -sS -w '%{http_code}' http://other.test/")
    assert "may not reach other.test: no rule names it" in said
    assert "add 'other.test' to [network] hosts" in said
    assert said.endswith("403")
    for url in (
        "https://model.test/",
        "http://model.test:8080/",
        "https://badmodel.test/",
        f"https://other.test:{port}/",
    ):
        assert "403" in await say(out.box, f"curl -sS -w '%{{http_code}}' {url}")
    refused = {"other.test": 1, "model.test": 1, "model.test:8080": 1, "badmodel.test": 1, f"other.test:{port}": 1}
    assert out.counts == {"reached": {}, "refused": refused}
    assert out.asked == [], "a name that is not allowed must not even be looked up"


PRIVATE = (
    *("10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0"),
    *("127.1", "2130706433", "0x7f000001", "017700000001", "127.0.0.2", "localhost", "localhost.", "LOCALHOST"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[fe80::1%25lo]", "[fe80::1]", "[fd00:ec2::254]"),
)


async def test_no_spelling_of_a_private_address_is_let_out(let: Let, answering: Serve, tell: Ask) -> None:
    """Though one of the host's loopback ports is named, and names of any kind."""
    port, named = await answering(greet), await answering(greet)
    out = await let("*.test", "*.1", f"127.0.0.1:{named}")
    ask = 'print(place, talk(f"CONNECT {place}:%d HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())[9:12])'
    said = await tell(out.box, f"{TALK}for place in {PRIVATE}:\n    {ask % port}")
    heard = dict(line.split() for line in said.splitlines())
    assert heard.keys() == set(PRIVATE)
    assert set(heard.values()) <= {"403", "400"}
    assert out.counts["reached"] == {}


async def test_with_the_internet_this_machine_and_its_neighbours_stay_closed(
    let: Let, answering: Serve, tell: Ask
) -> None:
    """In every spelling, by name and by number, at any port."""
    port = await answering(greet)
    names = {
        **dict.fromkeys(("2130706433", "0x7f000001", "017700000001", "127.1", "0x7f.1", "a.test"), "127.0.0.1"),
        **dict.fromkeys(("metadata.google.internal", "imds.test"), "169.254.169.254"),
        "azure.test": "168.63.129.16",
        "neighbour.test": "192.168.1.1",
        "mapped.test": "::ffff:7f00:1",
        "a.localhost": "127.0.0.1",
        "printer.local": "192.168.1.9",
        "intranet": "127.0.0.1",
    }
    out = await let(is_public=True, book=names)
    places = [
        *PRIVATE,
        *names,
        "168.63.129.16",
        "192.0.0.8",
        "192.88.99.1",
        "[3fff::1]",
        "[::ffff:7f00:1]",
        "[5f00::1]",
    ]
    ask = f'print(place, talk(f"CONNECT {{place}}:{port} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())[9:12])'
    said = await tell(out.box, f"{TALK}for place in {places}:\n    {ask}")
    heard = dict(line.split() for line in said.splitlines())
    assert heard.keys() == set(places)
    assert set(heard.values()) <= {"403", "400"}, heard
    assert out.counts["reached"] == {}
    asked = {"metadata.google.internal", "a.localhost", "printer.local", "intranet"} & set(out.asked)
    assert asked == set(), "what is ours by its name is not even looked up"


async def test_with_the_internet_any_public_host_is_reached_at_the_very_address_that_was_judged(
    let: Let, answering: Serve, say: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No packet leaves: what would go to a public address is turned to loopback at the last step."""
    port, dialed, dial = await answering(greet), list[tuple[str, int]](), dialing.dial

    async def turned(address: IPAddress, asked: int) -> socket.socket:
        dialed.append((str(address), asked))
        return await dial(ip_address("127.0.0.1"), port)

    monkeypatch.setattr(dialing, "dial", turned)
    out = await let(is_public=True, book={"site.test": "1.1.1.1 127.0.0.1", "other.test": "8.8.8.8"})
    assert "GET /one" in await say(out.box, "curl -sS http://site.test/one")
    assert "GET /two" in await say(out.box, "curl -sS -p http://other.test:8080/two")
    assert dialed == [("1.1.1.1", 80), ("8.8.8.8", 8080)]
    said = await say(out.box, "curl -sS http://site.test/again")
    assert "no public address" in said, "now it leads to this machine"
    assert "It may reach: every public host." in said
    assert out.counts["reached"] == {"site.test": 1, "other.test:8080": 1}


async def test_only_public_addresses_of_a_name_are_tried(let: Let, say: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many others stand before them."""
    dialed: list[str] = []

    async def refuse(address: IPAddress, asked: int) -> socket.socket:
        dialed.append(f"{address}:{asked}")
        raise ConnectionRefusedError("nobody is there")

    monkeypatch.setattr(dialing, "dial", refuse)
    private = ",".join(f"10.0.0.{last}" for last in range(1, 20))
    out = await let(is_public=True, book={"mixed.test": f"{private},1.1.1.1,::1,9.9.9.9"})
    assert "502" in await say(out.box, "curl -sS -w '%{http_code}' http://mixed.test/")
    assert dialed == ["1.1.1.1:80", "9.9.9.9:80"]


async def test_a_named_host_that_leads_to_a_private_address_is_refused(let: Let, answering: Serve, say: Ask) -> None:
    """Its owner decides where it leads, and may decide otherwise every minute."""
    port = await answering(greet)
    places = "127.0.0.1 10.1.2.3 169.254.169.254 100.64.0.1 ::1 ::ffff:7f00:1 fe80::1 224.0.0.1"
    out = await let(f"rebind.test:{port}", book={"rebind.test": places})
    for place in places.split():
        said = await say(out.box, f"curl -sS http://rebind.test:{port}/")
        assert f"it is at {ip_address(place)}, no public address" in said
    assert out.counts == {"reached": {}, "refused": {f"rebind.test:{port}": 8}}


async def test_a_name_is_looked_up_once_and_what_was_judged_is_connected_to(
    let: Let, answering: Serve, say: Ask
) -> None:
    """A second look-up could lead elsewhere than the first."""
    port = await answering(greet)
    elsewhere = await answering(echo_at_the_end)
    out = await let(f"flip.test:{port}", f"127.0.0.1:{port}", book={"flip.test": "127.0.0.1 127.0.0.2"})
    assert "hello from the host" in await say(out.box, f"curl -sS http://flip.test:{port}/")
    assert out.asked == ["flip.test"]
    assert "no public address" in await say(out.box, f"curl -sS http://flip.test:{port}/")
    assert elsewhere != port


ROADS = """\
import errno, os, socket
def attempt(what, act):
    try:
        act()
    except OSError as error:
        print(what, errno.errorcode.get(error.errno, error.errno))
    else:
        print(what, "WENT THROUGH")
def stream(family, place):
    with socket.socket(family, socket.SOCK_STREAM) as way:
        way.settimeout(5)
        way.connect(place)
def datagram(family, place):
    with socket.socket(family, socket.SOCK_DGRAM) as way:
        way.sendto(b"x" * 20, place)
attempt("loopback", lambda: stream(socket.AF_INET, ("127.0.0.1", {port})))
attempt("loopback6", lambda: stream(socket.AF_INET6, ("::1", {port6})))
attempt("elsewhere", lambda: stream(socket.AF_INET, ("192.0.2.1", 443)))
attempt("elsewhere6", lambda: stream(socket.AF_INET6, ("2001:db8::1", 443)))
attempt("metadata", lambda: stream(socket.AF_INET, ("169.254.169.254", 80)))
attempt("dns", lambda: datagram(socket.AF_INET, ("192.0.2.53", 53)))
attempt("dns6", lambda: datagram(socket.AF_INET6, ("2001:db8::53", 53)))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("ping", lambda: stream(socket.AF_UNIX, "\\0{abstract}"))
attempt("name", lambda: socket.getaddrinfo("model.test", 443))
"""


async def test_the_proxy_is_the_only_way_out(let: Let, answering: Serve, tell: Ask) -> None:
    """Not the host's loopback, neither family, no datagram, no raw or packet socket, no abstract one, no name."""
    port, named = await answering(greet), await answering(greet)
    port6 = await answering(greet, host="::1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abstract:
        name = f"sweep-test-{port}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        out = await let(f"127.0.0.1:{named}", "model.test", book={"model.test": "127.0.0.1"})
        said = await tell(out.box, ROADS.format(port=port, port6=port6, abstract=name))
    assert "WENT THROUGH" not in said
    heard = dict(line.split() for line in said.splitlines())
    assert heard["loopback"] == heard["loopback6"] == heard["ping"] == "ECONNREFUSED"
    assert {heard[road] for road in ("elsewhere", "elsewhere6", "metadata", "dns", "dns6")} == {"ENETUNREACH"}
    assert {heard["raw"], heard["packet"]} <= {"EPERM", "EAFNOSUPPORT"}
    assert out.counts == {"reached": {}, "refused": {}}


async def test_the_proxys_place_cannot_be_taken(let: Let, tell: Ask) -> None:
    out = await let("model.test")
    program = """\
import os, socket
for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
    with socket.socket() as mine:
        mine.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            mine.bind(("127.0.0.1", int(os.environ["HTTP_PROXY"].rpartition(":")[2])))
            mine.listen()
            print("TAKEN")
        except OSError as error:
            print(error)
"""
    assert "TAKEN" not in await tell(out.box, program)


async def test_programs_of_ours_are_given_no_proxy(let: Let) -> None:
    out = await let("model.test")
    ours = Command(argv=("env",), is_plain=True)
    assert "proxy" not in (await run_in(out.box, ours, timeout=20)).output.lower()
    theirs = (await run_in(out.box, Command(argv=("env",)), timeout=20)).output
    for name in ("HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        assert f"{name}=http://127.0.0.1:{out.egress.port}\n" in theirs
    assert "NODE_USE_ENV_PROXY=1\n" in theirs


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ('b"GET / HTTP/1.1\\r\\nHost: model.test\\r\\n\\r\\n"', 400),
        ('b"GET https://model.test/ HTTP/1.1\\r\\nHost: model.test\\r\\n\\r\\n"', 400),
        ('b"CONNECT model.test HTTP/1.1\\r\\nHost: model.test\\r\\n\\r\\n"', 400),
        ('b"CONNECT model.test:99999 HTTP/1.1\\r\\nHost: model.test\\r\\n\\r\\n"', 400),
        ('b"CONNECT model.test:443@evil.test:443 HTTP/1.1\\r\\nHost: model.test\\r\\n\\r\\n"', 403),
        ('b"CONNECT model.test:443\\\\@evil.test:443 HTTP/1.1\\r\\nHost: model.test\\r\\n\\r\\n"', 403),
        ('b"GET http://model.test\\x00.evil.test/ HTTP/1.1\\r\\nHost: model.test\\r\\n\\r\\n"', 400),
        ('b"GET http://evil.test/ HTTP/1.1\\r\\nHost: model.test\\r\\n\\r\\n"', 403),
        ('b"\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03"', 400),
        ('b"GET http://model.test/ HTTP/1.1\\r\\n" + b"X: y\\r\\n" * 20000', 431),
    ],
)
async def test_bytes_that_are_no_proxy_request_get_nowhere(let: Let, tell: Ask, said: str, status: int) -> None:
    out = await let("model.test", book={"model.test": "127.0.0.1"})
    assert (await tell(out.box, f"{TALK}print(talk({said}, end=True))")).startswith(f"HTTP/1.1 {status} ")
    assert out.counts["reached"] == {}


async def test_one_side_of_a_tunnel_may_end_before_the_other(let: Let, answering: Serve, tell: Ask) -> None:
    """The server speaks only when the client has ended, and all of it arrives."""
    port = await answering(echo_at_the_end)
    out = await let(f"127.0.0.1:{port}")
    ask = f'talk(b"CONNECT 127.0.0.1:{port} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" + b"early " + b"z" * 1000000, end=True)'
    said = await tell(out.box, f"{TALK}print(len({ask}.partition('heard early ')[2]))")
    assert said == "1000000\n"


async def test_a_client_that_does_not_read_holds_up_its_server_and_nobody_else(
    let: Let, answering: Serve, say: Ask, tasks: TaskGroup
) -> None:
    sent = 0

    async def flood(stream: ByteStream) -> None:
        nonlocal sent
        with suppress(anyio.BrokenResourceError):
            async with stream:
                while True:
                    await stream.send(bytes(65536))
                    sent += 65536

    flooding, port = await answering(flood), await answering(greet)
    out = await let(f"127.0.0.1:{flooding}", f"127.0.0.1:{port}")

    async def stall() -> None:
        await say(out.box, f"exec 3<>/dev/tcp/127.0.0.1/{flooding}; sleep 60")

    tasks.start_soon(stall)
    await until(lambda: sent, "nothing is sent")
    with anyio.fail_after(20):
        before = -1
        while sent > before:
            before = sent
            await anyio.sleep(0.3)
    assert sent < 32 << 20
    assert "hello from the host" in await say(out.box, f"curl -sS http://127.0.0.1:{port}/")


async def test_connections_beyond_the_bound_wait_and_are_served(let: Let, answering: Serve, tell: Ask) -> None:
    """Silent ones fill the places; once they go, those who wait have their turn."""
    port = await answering(greet)
    out = await let(f"127.0.0.1:{port}")
    program = f"""{TALK}
silent = [socket.create_connection(("127.0.0.1", proxy)) for _ in range({MAX_CONNECTIONS + 20})]
waiting = socket.create_connection(("127.0.0.1", proxy))
waiting.sendall(b"GET http://127.0.0.1:{port}/turn HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
waiting.settimeout(1)
try:
    print("served early", waiting.recv(10))
except TimeoutError:
    print("waits")
for each in silent:
    each.close()
waiting.settimeout(20)
print(waiting.recv(65536).decode())
"""
    said = await tell(out.box, program)
    assert said.startswith("waits\nHTTP/1.1 200 OK")
    assert "GET /turn" in said


async def test_a_host_that_does_not_answer_is_reported_and_no_connection(let: Let, say: Ask) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        out = await let(f"127.0.0.1:{port}", "unknown.test")
        assert f"127.0.0.1:{port} cannot be reached: " in await say(out.box, f"{PROXIED} http://127.0.0.1:{port}/")
        assert "curl: (" in await say(out.box, f"curl -sS http://127.0.0.1:{port}/")
        assert "The address of unknown.test is not known" in await say(out.box, "curl -sS http://unknown.test/")
    assert out.counts == {"reached": {}, "refused": {}}
    assert out.told == [("unreachable", f"127.0.0.1:{port}"), ("unreachable", "unknown.test")]


async def test_the_way_out_ends_with_its_task(boot: Boot, answering: Serve, say: Ask, tasks: TaskGroup) -> None:
    del tasks

    async def tell(verdict: EgressVerdict, host: str) -> None:
        del verdict, host

    port = await answering(greet)
    egress = Egress(Rules.parse([f"127.0.0.1:{port}"]), tell)
    box = await boot(environment=egress.variables)
    async with anyio.create_task_group() as serving:
        await serving.start(egress.serve, box)
        assert "hello" in await say(box, f"curl -sS http://127.0.0.1:{port}/")
        serving.cancel_scope.cancel()
    assert "Failed to connect" in await say(box, f"curl -sS http://127.0.0.1:{port}/ {PROXIED[5:]}")


async def test_a_port_that_cannot_be_had_is_an_error_of_its_own(boot: Boot) -> None:
    box = await boot()
    with await box.listen(4000):
        with pytest.raises(OSError, match="port 4000: Address already in use"):
            await box.listen(4000)
        with pytest.raises(OSError, match="port 80: Permission denied"):
            await box.listen(80)
