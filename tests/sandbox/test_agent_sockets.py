"""Sockets that a box's agent hands over: the one that was asked for, or the end of the box."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from orchestrator.service.sandbox.agent_connection import AgentConnection
from orchestrator.service.sandbox.provider import BoxDied
from tests.processes import open_files
from tests.waiting import until

pytestmark = pytest.mark.anyio


class Ends:
    """A link, the agent's end of it, and what the link thought of it."""

    def __init__(self) -> None:
        ours, self.agent = socket.socketpair()
        self.broken: list[str | None] = []
        self.link = AgentConnection(ours, self._note)

    def _note(self, why: str | None) -> None:
        self.broken.append(why)
        self.link.close(why or "it hung up")

    def answer(self, line: bytes, *fds: int) -> None:
        socket.send_fds(self.agent, [line], fds) if fds else self.agent.sendall(line)

    async def ask(self, port: int, line: bytes, *fds: int) -> socket.socket:
        """Ask for a port, and let the agent say this. Raises what comes of it."""
        found: list[socket.socket | Exception] = []

        async def listen() -> None:
            try:
                found.append(await self.link.listen(port))
            except (BoxDied, OSError) as error:
                found.append(error)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                await anyio.wait_all_tasks_blocked()
                self.answer(line, *fds)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends()
    yield ends
    ends.link.close("the test is over")
    ends.agent.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


async def test_the_socket_that_was_asked_for_is_handed_over(ends: Ends, listener: socket.socket) -> None:
    with await ends.ask(port_of(listener), b"listening 1 0\n", listener.fileno()) as found:
        assert found.getsockname() == listener.getsockname()
        assert not found.getblocking()
        assert not os.get_inheritable(found.fileno())
    assert ends.broken == []


async def test_a_refused_port_is_answered_with_the_reason(ends: Ends) -> None:
    with pytest.raises(OSError, match="port 80: Permission denied"):
        await ends.ask(80, b"listening 1 13\n")
    assert ends.broken == []


@pytest.mark.parametrize(
    "line", [b"listening 1 0\n", b"listening 2 0\n", b"listening 1\n", b"exit 1 0\n", b"ready 1 0\n"]
)
async def test_an_answer_without_its_socket_ends_the_box(ends: Ends, line: bytes) -> None:
    with pytest.raises(BoxDied):
        await ends.ask(4000, line)
    assert len(ends.broken) == 1


async def test_another_socket_than_was_asked_for_ends_the_box_and_is_closed(
    ends: Ends, listener: socket.socket, tmp_path: Path
) -> None:
    """One of another port or place, one that does not listen, one of another family, and what is no socket at all."""
    with (
        socket.create_server(("127.0.0.2", 0)) as elsewhere,
        socket.socket() as deaf,
        socket.socket(socket.AF_UNIX) as other,
        (tmp_path / "file").open("wb") as file,
    ):
        deaf.bind(("127.0.0.1", 0))
        wrong = [(port_of(each), each.fileno()) for each in (elsewhere, deaf)]
        wrong.append((port_of(listener) + 1, listener.fileno()))
        for port, fd in (*wrong, (4000, other.fileno()), (4000, file.fileno())):
            again = Ends()
            before = open_files()
            with pytest.raises(BoxDied, match=r"its agent sent (another socket|a file)"):
                await again.ask(port, b"listening 1 0\n", fd)
            assert open_files() == before - 1, "the link's own end is closed, and nothing is left beside"
            again.agent.close()


async def test_unrequested_sockets_end_the_box_and_are_closed(ends: Ends, listener: socket.socket) -> None:
    before = open_files()
    ends.answer(b"ready\n", listener.fileno(), listener.fileno())
    await until(lambda: ends.broken, "the box lives on")
    assert ends.broken == ["its agent sent what nobody asked for"]
    assert open_files() == before - 1


async def test_a_socket_that_nobody_waits_for_any_more_is_closed(ends: Ends, listener: socket.socket) -> None:
    with anyio.move_on_after(0):
        await ends.link.listen(port_of(listener))
    before = open_files()
    ends.answer(b"listening 1 0\n", listener.fileno())
    ends.answer(b"ready\n")
    with anyio.fail_after(10):
        await ends.link.ready.wait()
    assert open_files() == before
    assert ends.broken == []
