"""The server's HTTP protocol, with a bound on what it keeps of a request before anybody has looked at its token.

Bodies wait in the socket until somebody reads them; heads do not, and the parser has no bound of its own, so a stranger
on this machine could fill our memory with one endless header.
"""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: More than the loop reads at a time (256 KiB), for what it read may hold the start of a body.
MAX_HEAD: Final = 1 << 20


class BoundedHeads(HttpToolsProtocol):
    """Answers 400 and closes when the head of a request has more than MAX_HEAD bytes."""

    _in_head = True
    _head = 0

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head += len(data)
        if self._head > MAX_HEAD:
            if isinstance(self.transport, asyncio.Transport) and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")
            return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._in_head, self._head = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
