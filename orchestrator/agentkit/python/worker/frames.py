"""The protocol of the socket: frames of a header, which is JSON, and a body of bytes."""

from __future__ import annotations

import json
import os
import struct
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    Header = dict[str, Any]

#: Bytes; a longer header or body is a mistake of the program at the other end.
MAX_HEADER = 64 << 20
MAX_BODY = 256 << 20

_SIZES = struct.Struct("!II")
#: Bytes at the start of a frame, with the lengths of header and body.
FRAME_START = _SIZES.size


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
    if header > MAX_HEADER or body > MAX_BODY:
        raise ValueError(f"too large: at most {MAX_BODY >> 20} MiB can pass at once")


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
        header, body = decode_sizes(self._exactly(FRAME_START))
        return decode_header(self._exactly(header)), self._exactly(body)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._socket.recv(min(size - len(data), 1 << 20))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)
