"""Boxes with the internet in a network of their own: what they reach, and what stays out of reach."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest
from anyio.abc import SocketAttribute

from orchestrator.service.sandbox.bwrap import bwrap_provider, public_network
from orchestrator.service.sandbox.bwrap.bwrap_box import BwrapBox
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.provider import BoxNetwork, BoxSpec, BoxStartFailed, Capability, ImageRoot
from tests.processes import is_alive
from tests.sandbox.internet import QUESTIONS
from tests.sandbox.test_service_death import in_session, start_alone
from tests.waiting import until

if TYPE_CHECKING:
    from tests.sandbox.conftest import AnyProvider, Bench

pytestmark = pytest.mark.anyio

#: Questions to the little internet that are answered.
PUBLIC: Final = {"a site": "hello", "its name": "11.22.33.44"}
REPOSITORY: Final = Path(__file__).parents[2]


@pytest.fixture(scope="module")
async def answers(tmp_path_factory: pytest.TempPathFactory, image: ImageRoot) -> Mapping[str, Any]:
    """What boxes get for an answer on the internet of `internet.py`."""
    users = await anyio.Path("/proc/self/uid_map").read_text()
    if os.geteuid() != 0 or users.split() != ["0", "0", "4294967295"]:
        pytest.skip("needs the machine's root, for a little internet of its own")
    if missing := [name for name in ("ip", "unshare", "nsenter", public_network.PROGRAM) if shutil.which(name) is None]:
        pytest.skip(f"this machine lacks {', '.join(missing)}")
    place = tmp_path_factory.mktemp("internet")
    words = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.sandbox.internet", str(place)]
    words += map(str, image.layers)
    with anyio.fail_after(120):
        done = await anyio.run_process(words, cwd=REPOSITORY)
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["machine", "image"])
async def test_a_box_reaches_the_internet_by_address_and_name_and_nothing_else(
    answers: Mapping[str, Any], kind: str
) -> None:
    assert set(answers["directly"]) == {"hello"}, "from this machine, all are there"
    assert {name: answer for name, answer in answers[kind].items() if name in PUBLIC} == PUBLIC
    words = ("No route to host", "Network is unreachable", "Connection refused")
    closed = {name: answers[kind][name] for name in QUESTIONS.keys() - PUBLIC.keys()}
    assert {name: said for name, said in closed.items() if not said.endswith(words)} == {}
    assert set(answers["heard"]) == {"to a site"}, "other packets are dropped, even those that no route is asked for"
    assert kind == "machine" or answers[kind]["to a private site, raw"].isdigit(), "it was sent"


@pytest.fixture
def online(bench: "Bench") -> "Bench":
    """A bench for each kind of box that can have the internet."""
    if Capability.PUBLIC not in bench.provider.capabilities:
        pytest.skip(bench.provider.no_public or f"{bench.provider.name} does not declare {Capability.PUBLIC}")
    return bench


async def test_two_boxes_that_listen_on_one_port_do_not_meet(online: "Bench") -> None:
    serve = "import socket; s = socket.create_server(('0.0.0.0', 7777)); print('up', flush=True); s.accept()"
    try_it = f'python3 -c "{knock("127.0.0.1", 7777)}"'
    boxes = [await online.boot(network=BoxNetwork.PUBLIC) for _ in range(3)]
    for box in boxes[:2]:
        await online.run(box, f'setsid python3 -c "{serve}" >up 2>&1 & until [ -s up ]; do sleep 0.02; done')
        assert (await online.run(box, f"cat up; {try_it}")).output == "up\nin\n"
    assert "refused" in (await online.run(boxes[2], try_it)).output


async def test_the_hosts_loopback_is_out_of_reach(online: "Bench") -> None:
    box = await online.boot(network=BoxNetwork.PUBLIC)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(SocketAttribute.local_port)
        for address in ("127.0.0.1", "10.0.2.2"):
            done = await online.run(box, f'python3 -c "{knock(address, port)}"')
            assert "refused" in done.output or "unreachable" in done.output


async def test_names_are_looked_up_beside_the_box(online: "Bench") -> None:
    box = await online.boot(network=BoxNetwork.PUBLIC)
    assert (await online.run(box, "cat /etc/resolv.conf")).output == "nameserver 10.0.2.3\n"


async def test_a_port_of_the_hosts_can_be_lent_to_a_box_on_the_internet(online: "Bench") -> None:
    box = await online.boot(network=BoxNetwork.PUBLIC)
    with await box.listen(7001) as listener:
        assert (await online.run(box, f'python3 -c "{knock("127.0.0.1", 7001)}"')).output == "in\n"
        listener.accept()[0].close()


async def test_a_box_cannot_hide_its_resolver_from_boxes_beside_it(online: "Bench") -> None:
    first = await online.boot(network=BoxNetwork.PUBLIC)
    for words in ("mv /etc /elsewhere", "rm /etc/resolv.conf", "mv /etc/resolv.conf /etc/other"):
        assert (await online.run(first, words)).status != 0
    await first.retire()
    second = await online.boot(network=BoxNetwork.PUBLIC, beside=first)
    assert (await online.run(second, "cat /etc/resolv.conf")).output == "nameserver 10.0.2.3\n"


async def test_what_connects_a_box_ends_with_it(online: "Bench") -> None:
    stopped, retired = [await online.boot(network=BoxNetwork.PUBLIC) for _ in range(2)]
    pids = [link_of(box) for box in (stopped, retired)]
    assert all(map(is_alive, pids))
    await stopped.stop()
    await retired.retire()
    assert not any(map(is_alive, pids))


async def test_a_box_ends_when_its_connection_does(online: "Bench") -> None:
    box = await online.boot(network=BoxNetwork.PUBLIC)
    os.kill(link_of(box), signal.SIGKILL)
    with anyio.fail_after(10):
        assert await box.wait_dead() == "its connection to the internet was lost"
    assert not box.is_broken_from_inside


async def test_what_connects_a_box_is_in_a_sandbox_and_the_boxs_user(online: "Bench") -> None:
    box = await online.boot(network=BoxNetwork.PUBLIC)
    process = Path(f"/proc/{link_of(box)}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    owner = os.geteuid() if box.folder.owner is None else box.folder.owner
    assert status["Uid"].split() == [str(owner)] * 4
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapEff"], 16) in {0, 1 << 10}, "none but CAP_NET_BIND_SERVICE"
    if os.geteuid() == 0:
        assert {place.name for place in (process / "root").iterdir()} == {"etc", "run"}


async def test_a_box_that_cannot_be_connected_says_why_and_leaves_nothing(online: "Bench") -> None:
    host = await online.provider.prepare()
    broken = public_network.PublicNetworks(program="/bin/false", spawner=host.spawner, guard=host.guard)
    provider = BwrapProvider(online.place / "state")
    shared = await provider.prepare()
    provider._shared = replace(shared, public=broken)
    with pytest.raises(BoxStartFailed, match="slirp4netns cannot connect a devbox to the internet"):
        await provider.start(BoxSpec(id="dark", network=BoxNetwork.PUBLIC))
    assert not provider._boxes
    await provider.close()


@pytest.mark.parametrize("booting", [0, 3])
async def test_a_killed_service_leaves_nothing_that_connects_boxes(
    booting: int, state: Path, local_provider: "AnyProvider"
) -> None:
    if Capability.PUBLIC not in local_provider.capabilities:
        pytest.skip(local_provider.no_public)
    service = start_alone(SERVICE, state)
    assert service.stdout is not None
    with anyio.fail_after(30):
        assert await anyio.to_thread.run_sync(service.stdout.readline) == b"up\n"
    await until(lambda: len(list((state / "boxes").iterdir())) > booting, "boxes boot")
    service.send_signal(signal.SIGKILL)
    service.communicate()
    await until(lambda: not in_session(service.pid), "nothing is left")


async def test_where_the_program_is_missing_no_box_is_promised_the_internet(
    state: Path, local_provider: "AnyProvider", monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (public_network, bwrap_provider):
        monkeypatch.setattr(module, "PROGRAM", "slirp4nobody")
    provider = BwrapProvider(state)
    await provider.prepare()
    assert Capability.PUBLIC not in provider.capabilities
    assert provider.no_public == "slirp4nobody is not installed here"
    with pytest.raises(BoxStartFailed, match="gives no box a network on the internet"):
        await provider.start(BoxSpec(id="dark", network=BoxNetwork.PUBLIC))
    await provider.close()


def knock(address: str, port: int) -> str:
    """The Python code of a client."""
    return f"import socket; socket.create_connection(('{address}', {port}), 9); print('in')"


def link_of(box: object) -> int:
    """The host's process that connects a box."""
    assert isinstance(box, BwrapBox)
    assert box._link is not None
    return box._link.pid


SERVICE = """
import asyncio, sys
from pathlib import Path
from orchestrator.service.sandbox.provider import BoxNetwork, BoxSpec
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider

async def main():
    provider = BwrapProvider(Path(sys.argv[1]))
    await provider.start(BoxSpec(id="first", network=BoxNetwork.PUBLIC))
    print("up", flush=True)
    specs = [BoxSpec(id=f"victim-{number}", network=BoxNetwork.PUBLIC) for number in range(20)]
    await asyncio.gather(*map(provider.start, specs))

asyncio.run(main())
"""
