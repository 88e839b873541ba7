"""The socket in a run folder by which the process that runs the sweep takes orders.

An order is a line of JSON, and so is its answer: `{"done": …}` or `{"refused": …}`, a sentence each. Whoever may write
in the folder may give orders; the system tells which user that is. The address of a socket is short, and a path need
not be: both sides reach the socket by the open folder.
"""

import os
import pwd
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import orjson
import structlog
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from msgspec import DecodeError
from msgspec.json import encode

from orchestrator.core.errors import SweepError, UsageError
from orchestrator.core.orders import DECODER, Order
from orchestrator.rundir.sweep_index import Holder, as_typed

SOCKET: Final = "control.sock"
MAX_ORDER_BYTES: Final = 1 << 16
#: Seconds in which an order must arrive, and in which its answer must.
ARRIVAL_S: Final = 10.0
ANSWER_S: Final = 60.0
#: The system's record of the process at the other end: its number, user and group.
_PEER: Final = struct.Struct("3i")

#: What a caller may do instead of giving an order.
_GONE: Final = (anyio.BrokenResourceError, anyio.DelimiterNotFound, anyio.IncompleteRead, TimeoutError)

#: Obeys an order of somebody; returns what was done, or raises a SweepError that says why it is not.
Obey = Callable[[Order, str], Awaitable[str]]


async def take_orders(folder: Path, obey: Obey) -> None:
    """Take orders until canceled. A file system without sockets means that none can be given, and nothing worse."""
    with _address(folder) as address:
        try:
            listener = await anyio.create_unix_listener(address, mode=stat.S_IRUSR | stat.S_IWUSR)
        except OSError as error:
            structlog.get_logger().warning("control.unavailable", error=str(error))
            return
        try:
            async with listener:
                await listener.serve(lambda stream: _answer(stream, obey))
        finally:
            with suppress(OSError):
                address.unlink()


async def _answer(stream: SocketStream, obey: Obey) -> None:
    """Answer one order. A caller that is gone, or sends none, is nobody's trouble."""
    with suppress(*_GONE):
        async with stream:
            with anyio.fail_after(ARRIVAL_S):
                line = await BufferedByteReceiveStream(stream).receive_until(b"\n", MAX_ORDER_BYTES)
            try:
                answer = {"done": await obey(DECODER.decode(line), _giver(stream))}
            except DecodeError as error:
                answer = {"refused": f"This sweep does not know such an order: {error}."}
            except SweepError as error:
                answer = {"refused": error.message}
            except Exception as error:  # noqa: BLE001 - whatever an order does, the sweep goes on
                structlog.get_logger().exception("control.broken")
                answer = {"refused": f"it went wrong: {type(error).__name__}: {error} (see sweep.log)"}
            with anyio.fail_after(ARRIVAL_S):
                await stream.send(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE))


def _giver(stream: SocketStream) -> str:
    """The user at the other end of a connection, and the process."""
    raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - anyio's
    pid, user, _ = _PEER.unpack(raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = f"user {user}"
    return f"{name} (process {pid})"


def give(folder: Path, order: Order, at_work: Holder | None) -> str:
    """Give an order to the process at work in a folder; return what it did. Blocking.

    Raises UsageError if the order is refused, or if nobody is there to take it.
    """
    if at_work is None:
        raise UsageError(
            f"{folder.name} is not running: `sweep resume {as_typed(folder)}` goes on with it, and --only NAMES runs "
            "finished trials again."
        )
    try:
        line = encode(order) + b"\n"
    except UnicodeEncodeError:
        raise UsageError("An order is text in UTF-8, and this one is not.") from None
    if len(line) > MAX_ORDER_BYTES:
        raise UsageError(f"An order has {MAX_ORDER_BYTES:,} bytes at most: give a shorter --reason.")
    try:
        with _address(folder) as address, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(str(address))
            connection.sendall(line)
            answer = orjson.loads(connection.makefile("rb").readline() or b'{"refused": "it ended before it answered"}')
    except TimeoutError:
        raise UsageError(f"{folder.name} ({at_work.name}) did not answer in {ANSWER_S:g} s.") from None
    except OSError as error:
        raise UsageError(
            f"{folder.name} is in use by {at_work.name}, which takes no orders here ({error.strerror}): it may be "
            "starting or ending, run on another machine, or be another version's."
        ) from None
    if "done" not in answer:
        raise UsageError(answer["refused"])
    return str(answer["done"])


@contextmanager
def _address(folder: Path) -> Iterator[Path]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        through = Path(f"/proc/self/fd/{fd}")
        yield (through if through.exists() else folder) / SOCKET
    finally:
        os.close(fd)
