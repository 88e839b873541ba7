"""The way of every request to the endpoint, as httpx transports that no caller can forget.

From the outside in: `Throttle` lets at most so many requests a second leave, `Doubt` believes a refusal of our token
only when it is repeated and follows no redirection, `Bounded` breaks off an answer that is larger than any can be.
What `Doubt` and `Bounded` do not accept is a failure of the connection, so the call is made again as after any other.
"""

import time
from collections.abc import AsyncIterator, Callable
from typing import Final, Self, cast

import anyio
import httpx
from aiolimiter import AsyncLimiter

#: An endpoint must refuse our token so many times in a row, within so many seconds.
REFUSALS: Final = 3
REFUSALS_WITHIN_S: Final = 60.0
#: The bytes of one answer. A page of ours ends with the definition that fills 32 MiB, and one has at most two folders
#: of 32 MiB in base64.
MAX_ANSWER_BYTES: Final = 256 << 20
#: The bytes of one event of a stream; ours are of 64 KiB of text, which JSON may make six times as long.
MAX_EVENT_BYTES: Final = 4 << 20
_WAITS: Final = "/wait_for_status"
_REFUSED: Final = frozenset({httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN})
_EVENT_ENDS: Final = (b"\n\n", b"\r\r", b"\r\n\r\n")
_LONGEST_END: Final = max(map(len, _EVENT_ENDS))


class _Around(httpx.AsyncBaseTransport):
    """A transport around another one."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def aclose(self) -> None:
        await self._inner.aclose()


class Throttle(_Around):
    """Passes at most `rate` requests a second to `inner`; None is no limit.

    Waits draw from a limiter of their own, so that a thousand of them cannot starve the requests that end them.
    `on_push_back` is called for each answer that asks for less (429).
    """

    def __init__(
        self, inner: httpx.AsyncBaseTransport, rate: float | None, on_push_back: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(inner)
        self._on_push_back = on_push_back
        #: Requests that wait for their turn.
        self._waiting: set[anyio.CancelScope] = set()
        self.limit(rate)

    def limit(self, rate: float | None) -> None:
        """Pass at most so many requests a second from now on; those that wait already line up anew."""
        self._calls = _limiter(rate)
        self._waits = _limiter(rate)
        for waiting in self._waiting:
            waiting.cancel()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self._turn(is_wait=request.url.path.endswith(_WAITS))
        response = await self._inner.handle_async_request(request)
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            self._on_push_back()
        return response

    async def _turn(self, *, is_wait: bool) -> None:
        while (limiter := self._waits if is_wait else self._calls) is not None:
            with anyio.CancelScope() as waiting:
                self._waiting.add(waiting)
                try:
                    await limiter.acquire()
                    return
                finally:
                    self._waiting.discard(waiting)


def _limiter(rate: float | None) -> AsyncLimiter | None:
    """A limiter without a burst above one request, or above a tenth of a second's worth."""
    if rate is None:
        return None
    burst = max(1.0, rate / 10)
    return AsyncLimiter(burst, burst / rate)


class Doubt(_Around):
    """Passes a 401 or a 403 on when it is the third within a minute without a success in between.

    A proxy may refuse us once; that is no reason to end a night. It refuses all requests that are on their way then,
    so a refusal counts only if its request was sent after the last one that counted. An endpoint does not move, so a
    redirection leads to somebody else.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        super().__init__(inner)
        self._refused_at: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        sent_at = time.monotonic()
        response = await self._inner.handle_async_request(request)
        if response.has_redirect_location:
            await response.aclose()
            place = response.headers["location"]
            raise httpx.RemoteProtocolError(f"HTTP {response.status_code} to {place}, and an endpoint sends nobody on")
        if response.status_code not in _REFUSED:
            if response.is_success:
                self._refused_at.clear()
            return response
        now = time.monotonic()
        self._refused_at = [at for at in self._refused_at if at > now - REFUSALS_WITHIN_S]
        if not self._refused_at or sent_at >= self._refused_at[-1]:
            self._refused_at.append(now)
        if len(self._refused_at) >= REFUSALS:
            return response
        await response.aclose()
        raise httpx.RemoteProtocolError(f"HTTP {response.status_code}, which was not repeated yet")


class Bounded(_Around):
    """Counts each answer while it comes, so that none takes more memory than an answer may.

    Files have no limit here, because their readers take them piece by piece; the client reads everything else as a
    whole. Answers are asked for uncompressed: a few compressed bytes can become any number of others.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["accept-encoding"] = "identity"
        response = await self._inner.handle_async_request(request)
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            await response.aclose()
            raise httpx.RemoteProtocolError(f"an answer in {encoding!r}, which was not asked for")
        stream = cast("httpx.AsyncByteStream", response.stream)
        if not response.is_success:  # read here: the client leaves one open that it is canceled in
            body = _Body(stream)
            try:
                response.stream = httpx.ByteStream(b"".join([piece async for piece in body]))
            finally:
                await body.aclose()
        elif response.headers.get("content-type", "").startswith("text/event-stream"):
            response.stream = _Events(stream)
        elif request.headers.get("accept") != "application/octet-stream":
            response.stream = _Body(stream)
        return response


class _Body(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._inner:
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise httpx.RemoteProtocolError(f"an answer of more than {MAX_ANSWER_BYTES:,} bytes")
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Events(_Body):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        size, end = 0, b""
        async for piece in self._inner:
            end += piece
            last = max(end.rfind(each) for each in _EVENT_ENDS)
            size = len(end) - last if last >= 0 else size + len(piece)
            end = end[-_LONGEST_END:]
            if size > MAX_EVENT_BYTES:
                raise httpx.RemoteProtocolError(f"an event of more than {MAX_EVENT_BYTES:,} bytes")
            yield piece
