"""A word against our key is believed when it is repeated: one of a proxy's is no reason to end a night.

Nor is a redirection followed: an endpoint is where it is, and who answers elsewhere is somebody else.

An httpx transport. What is not believed is a failure of the connection, so the call is made again like after any other.
"""

import time
from typing import Final, Self

import httpx

#: How often in a row, and within how many seconds, an endpoint must refuse our key.
TIMES: Final = 3
WITHIN: Final = 60.0
_REFUSALS: Final = frozenset({httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN})


class Doubt(httpx.AsyncBaseTransport):
    """Let a 401 or a 403 through when it is the third within a minute and no right answer came in between."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self._refused_at: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if response.has_redirect_location:
            await response.aclose()
            place = response.headers["location"]
            raise httpx.RemoteProtocolError(f"HTTP {response.status_code} to {place}, and an endpoint sends nobody on")
        if response.status_code not in _REFUSALS:
            if response.is_success:
                self._refused_at.clear()
            return response
        now = time.monotonic()
        self._refused_at = [*(at for at in self._refused_at if at > now - WITHIN), now]
        if len(self._refused_at) >= TIMES:
            return response
        await response.aclose()
        raise httpx.RemoteProtocolError(f"HTTP {response.status_code}, which was not repeated yet")

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def aclose(self) -> None:
        await self._inner.aclose()
