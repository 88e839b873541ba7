"""One token per HTTP request that leaves, as an httpx transport: nothing above it can forget to ask.

Waits draw from a limiter of their own, so that a thousand of them cannot starve the requests that end them.
"""

from collections.abc import Callable
from typing import Final, Self

import httpx
from aiolimiter import AsyncLimiter

_WAITS: Final = "/wait_for_status"


class Throttle(httpx.AsyncBaseTransport):
    """Let at most `rate` requests a second through to `inner`; None is no limit.

    `on_push_back` is called for each answer that asks for less (429).
    """

    def __init__(
        self, inner: httpx.AsyncBaseTransport, rate: float | None, on_push_back: Callable[[], None] = lambda: None
    ) -> None:
        self._inner = inner
        self._on_push_back = on_push_back
        self._calls = _limiter(rate)
        self._waits = _limiter(rate)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limiter = self._waits if request.url.path.endswith(_WAITS) else self._calls
        if limiter is not None:
            await limiter.acquire()
        response = await self._inner.handle_async_request(request)
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            self._on_push_back()
        return response

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def aclose(self) -> None:
        await self._inner.aclose()


def _limiter(rate: float | None) -> AsyncLimiter | None:
    """A limiter without a burst above one request, or above a tenth of a second's worth."""
    if rate is None:
        return None
    burst = max(1.0, rate / 10)
    return AsyncLimiter(burst, burst / rate)
