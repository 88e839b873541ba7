"""The program of a worker process: one Python agent in the user's interpreter, or one command of this machine.

This folder is run by path, so it uses the standard library only, stays within Python 3.8, and names its parts
relatively: there it is a package called `_sweep_worker`, and nothing of ours can be imported by accident.

A worker is two processes. The first supervises: it adopts the processes that the agent's descendants leave behind, and
ends the whole tree when the agent is done or when the other end of the socket is closed, which also happens when the
sweep itself is killed. The second, forked from it, loads the agent and runs it.

A process namespace (bubblewrap) would end the tree with a kernel's certainty. But it needs a machine that permits it,
so this way would be needed as well; and for an ordinary user it brings a user namespace along, in which the files of
root belong to nobody and no program gains rights. An agent has to find the machine it was written on.

The socket is standard input: nothing writes there by accident. Both ends send frames: a header, which is JSON, and a
body of bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import threading
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    Header = dict[str, Any]

#: A longer header or body is a mistake of the program at the other end.
MAX_HEADER_BYTES = 64 << 20
MAX_BODY_BYTES = 256 << 20

#: The import path as it was before the agent's folder was added.
_PATH = tuple(sys.path)
_ours = threading.local()
_SIZES = struct.Struct("!II")
#: The start of a frame, with the lengths of header and body.
SIZES_BYTES = _SIZES.size


def encode_frame(header: Header, body: bytes = b"") -> bytes:
    """Encode one frame. Raises ValueError if it is too large."""
    data = json.dumps(header).encode()
    check_sizes(len(data), len(body))
    return _SIZES.pack(len(data), len(body)) + data + body


def decode_sizes(data: bytes) -> tuple[int, int]:
    """The lengths of header and body, from the start of a frame. Raises ValueError if one is too large."""
    header, body = _SIZES.unpack(data)
    check_sizes(header, body)
    return header, body


def check_sizes(header: int, body: int) -> None:
    if header > MAX_HEADER_BYTES or body > MAX_BODY_BYTES:
        raise ValueError(f"too large: at most {MAX_BODY_BYTES >> 20} MiB can pass at once")


def decode_header(data: bytes) -> Header:
    """The header of a frame. Raises ValueError if it is not a JSON object."""
    header = json.loads(data)
    if not isinstance(header, dict):
        raise ValueError("the header of a frame is an object")  # noqa: TRY004 - wrong bytes, not a wrong call
    return header


class Channel:
    """Frames over a blocking socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._process = os.getpid()
        self._sending = threading.Lock()

    def send(self, header: Header, body: bytes = b"") -> None:
        if os.getpid() != self._process:
            raise RuntimeError("workspace and log work in the agent's own process, not in one forked from it")
        frame = encode_frame(header, body)
        with self._sending:
            self._socket.sendall(frame)

    def receive(self) -> tuple[Header, bytes]:
        """Read one frame. Raises EOFError when the other end is closed."""
        header, body = decode_sizes(self._exactly(SIZES_BYTES))
        return decode_header(self._exactly(header)), self._exactly(body)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._socket.recv(min(size - len(data), 1 << 20))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)


class _StandardFinder:
    """Finds standard modules for `standard_library`, in threads that are in it."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None and getattr(_ours, "are_importing", False):
            return PathFinder.find_spec(name, list(_PATH), target)
        return None


@contextlib.contextmanager
def standard_library() -> Iterator[None]:
    """Import, in this thread, as if the agent's folder were not on the import path.

    A file in that folder that is named like a standard module is the agent's, not ours.
    """
    if _StandardFinder not in sys.meta_path:
        sys.meta_path.insert(0, _StandardFinder)
    _ours.are_importing = True
    try:
        yield
    finally:
        _ours.are_importing = False
