"""No answer takes more memory than an answer may: it is counted while it comes, and broken off above its limit.

An httpx transport. Files have no limit here, because who asks for one takes it piece by piece; everything else is read
as a whole by the client. Answers are asked for uncompressed: a few packed bytes can be any number of others.
"""

from collections.abc import AsyncIterator
from typing import Final, Self, cast

import httpx

#: Bytes of one answer. A page of ours ends with the definition that fills 32 MiB, and one has at most two folders of
#: 32 MiB in base64.
LARGEST_ANSWER: Final = 256 << 20
#: Bytes of one event of a stream; ours are of 64 KiB of text, which JSON may make six times as long.
LARGEST_EVENT: Final = 4 << 20
_ENDS: Final = (b"\n\n", b"\r\r", b"\r\n\r\n")
_LONGEST_END: Final = max(map(len, _ENDS))


class Bounded(httpx.AsyncBaseTransport):
    """Breaks off what is larger than an answer can be, as a failure of the connection."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["accept-encoding"] = "identity"
        response = await self._inner.handle_async_request(request)
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            await response.aclose()
            raise httpx.RemoteProtocolError(f"an answer in {encoding!r}, which was not asked for")
        stream = cast("httpx.AsyncByteStream", response.stream)
        if not response.is_success:  # read here: the client leaves one open that it is canceled in
            response.stream = await _read(_Body(stream))
        elif response.headers.get("content-type", "").startswith("text/event-stream"):
            response.stream = _Events(stream)
        elif request.headers.get("accept") != "application/octet-stream":
            response.stream = _Body(stream)
        return response

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _read(stream: httpx.AsyncByteStream) -> httpx.ByteStream:
    try:
        return httpx.ByteStream(b"".join([piece async for piece in stream]))
    finally:
        await stream.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._inner:
            size += len(piece)
            if size > LARGEST_ANSWER:
                raise httpx.RemoteProtocolError(f"an answer of more than {LARGEST_ANSWER:,} bytes")
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Events(_Body):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        size, end = 0, b""
        async for piece in self._inner:
            end += piece
            last = max(end.rfind(each) for each in _ENDS)
            size = len(end) - last if last >= 0 else size + len(piece)
            end = end[-_LONGEST_END:]
            if size > LARGEST_EVENT:
                raise httpx.RemoteProtocolError(f"an event of more than {LARGEST_EVENT:,} bytes")
            yield piece
