"""Run as a program in a network and a mount namespace of its own: boxes on an internet of two machines.

This machine has a neighbour in a private and in a public network, and behind that neighbour are a site of the internet
and one of a private network. All of them say hello on one port, and the neighbour answers for every name with the
site's address. Prints {box: {question: answer}} for boxes on the machine's system and on an image, the layers of which
are arguments. Not one packet leaves the two namespaces.
"""

import asyncio
import inspect
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.provider import BoxNetwork, BoxSpec, Command, ImageRoot

PORT: Final = 8080
OURS, NEIGHBOUR = "10.77.0.1", "10.77.0.2"
OURS_OUTSIDE, NEIGHBOUR_OUTSIDE = "12.0.0.1", "12.0.0.2"
SITE, PRIVATE_SITE = "11.22.33.44", "10.99.0.1"
GATEWAY, BOX = "10.0.2.2", "10.0.2.100"
GROUP: Final = "239.77.0.1"
_ANSWER_S: Final = 5


def ask(address: str, *, device: str = "") -> str:
    """Ask a host for its greeting, through a device if one is named; returns that or why there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(_ANSWER_S)
        try:
            if device:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            client.connect((address, PORT))
            return client.recv(99).decode()
        except OSError as error:
            return str(error)


def throw(word: str, address: str, *, multicast: bool = False, raw: bool = False) -> str:
    """Send a word that is not answered; raw, in a packet that is sent to the site and names another address."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW if raw else socket.SOCK_DGRAM, 255 if raw else 0) as client:
        try:
            if multicast:
                client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(BOX))
            if not raw:
                return str(client.sendto(word.encode(), (address, PORT)))
            length = 8 + len(word)
            datagram = struct.pack("!HHHH", 5555, PORT, length, 0) + word.encode()
            ends = socket.inet_aton(BOX) + socket.inet_aton(address)
            packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, 17, 0) + ends + datagram
            return str(client.sendto(packet, (SITE, 0)))
        except OSError as error:
            return str(error)


#: Run in a box by its Python, with `ask` before it.
QUESTIONS: Final[Mapping[str, str]] = {
    "a site": f"ask({SITE!r})",
    "its name": "socket.gethostbyname('site.test')",
    "a private site": f"ask({PRIVATE_SITE!r})",
    "the neighbour": f"ask({NEIGHBOUR!r})",
    "the neighbour's public address": f"ask({NEIGHBOUR_OUTSIDE!r})",
    "this machine": f"ask({OURS!r})",
    "this machine's public address": f"ask({OURS_OUTSIDE!r})",
    "this machine's loopback": "ask('127.0.0.1')",
    "the gateway": f"ask({GATEWAY!r})",
    "a private site, by the device": f"ask({PRIVATE_SITE!r}, device='tap0')",
}
#: The same with `throw`. Of these words the first must arrive at the neighbour, and no other.
THROWS: Final[Mapping[str, str]] = {
    "to a site": f"throw('to a site', {SITE!r})",
    "to a private site": f"throw('to a private site', {PRIVATE_SITE!r})",
    "to a group": f"throw('to a group', {GROUP!r})",
    "to a group, by the device": f"throw('to a group, by the device', {GROUP!r}, multicast=True)",
    "to a private site, raw": f"throw('to a private site, raw', {PRIVATE_SITE!r}, raw=True)",
}


def greet() -> None:
    """Greet who connects, on all addresses."""
    server = socket.create_server(("0.0.0.0", PORT))
    while True:
        client, _ = server.accept()
        with client:
            client.sendall(b"hello")


def answer_names() -> None:
    """Answer each question for a name with the site's address (RFC 1035), other questions with nothing."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((NEIGHBOUR, 53))
    while True:
        query, client = server.recvfrom(512)
        end = query.index(b"\0", 12) + 5
        is_address = query[end - 4 : end - 2] == b"\0\1"
        head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_address else b"\0\0") + bytes(4)
        place = b"\xc0\x0c\0\1\0\1" + (60).to_bytes(4, "big") + b"\0\4" + socket.inet_aton(SITE)
        server.sendto(head + query[12:end] + (place if is_address else b""), client)


def listen(heard: list[str], interface: str) -> None:
    """Note the words that come, to the group too."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("0.0.0.0", PORT))
    member = socket.inet_aton(GROUP) + socket.inet_aton(interface)
    server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    while True:
        heard.append(server.recv(99).decode())


def say(words: str = "") -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def be_neighbour() -> None:
    """Serve on the other machine, once it has its addresses, and say in the end what it heard."""
    heard: list[str] = []
    say()
    sys.stdin.readline()
    threading.Thread(target=listen, args=(heard, NEIGHBOUR), daemon=True).start()
    threading.Thread(target=answer_names, daemon=True).start()
    threading.Thread(target=greet, daemon=True).start()
    say()
    sys.stdin.read()
    say(json.dumps(heard))


def ip(words: str, pid: int | None = None) -> None:
    where = [] if pid is None else ["nsenter", "-t", str(pid), "-n"]
    subprocess.run([*where, "ip", *words.split()], check=True)


def lay_cables(neighbour: int) -> None:
    ip("link set lo up")
    ip("link set lo up", neighbour)
    ip(f"link add near type veth peer name far netns {neighbour}")
    for ours, theirs in ((OURS, NEIGHBOUR), (OURS_OUTSIDE, NEIGHBOUR_OUTSIDE)):
        ip(f"addr add {ours}/30 dev near")
        ip(f"addr add {theirs}/30 dev far", neighbour)
    ip("link set near up")
    ip("link set far up", neighbour)
    for site in (SITE, PRIVATE_SITE):
        ip(f"addr add {site}/32 dev lo", neighbour)
    ip(f"route add default via {NEIGHBOUR}")


async def ask_from_boxes(place: Path, layers: Sequence[Path]) -> dict[str, dict[str, str]]:
    images = {"machine": None, "image": ImageRoot(layers=tuple(layers))}
    provider = BwrapProvider(place / "state")
    answers: dict[str, dict[str, str]] = {}
    try:
        for kind, image in images.items():
            box = await provider.start(BoxSpec(id=kind, network=BoxNetwork.PUBLIC, image=image))
            known = {"PORT": PORT, "SITE": SITE, "BOX": BOX, "_ANSWER_S": _ANSWER_S}
            start = "import socket, struct\n" + "".join(f"{name} = {value!r}\n" for name, value in known.items())
            start += f"{inspect.getsource(ask)}\n{inspect.getsource(throw)}\n"
            answers[kind] = {}
            for name, question in {**QUESTIONS, **THROWS}.items():
                command = Command(argv=("python3", "-c", f"{start}print({question})"))
                answers[kind][name] = (await run(box, command, timeout=30)).output.strip()
    finally:
        await provider.close()
    return answers


def main(place: Path, *layers: Path) -> None:
    """Lay out the internet, with `place` for all files, and print what boxes say of it, and this machine."""
    place.chmod(0o700)
    settings = place / "resolv.conf"
    settings.write_text(f"nameserver {NEIGHBOUR}\n")
    subprocess.run(["mount", "--bind", settings, "/etc/resolv.conf"], check=True)
    words = ["unshare", "--net", sys.executable, __file__]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as neighbour:
        assert neighbour.stdin is not None
        assert neighbour.stdout is not None
        neighbour.stdout.readline()
        lay_cables(neighbour.pid)
        neighbour.stdin.write("\n")
        neighbour.stdin.flush()
        neighbour.stdout.readline()
        threading.Thread(target=greet, daemon=True).start()
        overheard: list[str] = []
        threading.Thread(target=listen, args=(overheard, OURS), daemon=True).start()
        direct = [ask(address) for address in (SITE, PRIVATE_SITE, NEIGHBOUR, NEIGHBOUR_OUTSIDE, OURS)]
        answers = asyncio.run(ask_from_boxes(place, layers))
        neighbour.stdin.close()
        heard = [*json.loads(neighbour.stdout.readline()), *overheard]
        say(json.dumps({"directly": direct, "heard": heard, **answers}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:])) if sys.argv[1:] else be_neighbour()
