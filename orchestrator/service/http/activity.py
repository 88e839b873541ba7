"""Whether anybody still uses the service: requests in flight, the last one, and who said that they are there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

#: Seconds after which a client that sends no heartbeat is taken for gone.
HEARTBEAT: Final = 20.0


class Activity:
    """`is_ending`, once set, turns new requests away; while it is being decided, they wait."""

    def __init__(self) -> None:
        self.is_ending = False
        self._deciding: anyio.Event | None = None
        self.requests = 0
        self._last = anyio.current_time()
        #: When each client was there last, and the sweep that it is at work on.
        self._clients: dict[str, tuple[float, str]] = {}

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """While it is found out whether the service may end: what is counted inside stays true."""
        decided = self._deciding = anyio.Event()
        try:
            yield
        finally:
            self._deciding = None
            decided.set()

    async def wait_decided(self) -> None:
        """Wait until nobody is deciding whether the service ends."""
        while self._deciding is not None:
            await self._deciding.wait()

    @contextmanager
    def request(self) -> Iterator[None]:
        """While a request is answered."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1
            self._last = anyio.current_time()

    def beat(self, client: str, sweep: str = "") -> list[str]:
        """A client says that it is there; returns the other clients that are at work on the same sweep."""
        self._forget_silent()
        self._clients[client] = (anyio.current_time(), sweep)
        return [name for name, (_, its) in self._clients.items() if sweep and its == sweep and name != client]

    def others(self, client: str) -> int:
        """How many other clients have been there lately."""
        self._forget_silent()
        return len(self._clients.keys() - {client})

    def _forget_silent(self) -> None:
        since = anyio.current_time() - HEARTBEAT
        self._clients = {name: (at, sweep) for name, (at, sweep) in self._clients.items() if at > since}

    def forget(self, client: str) -> None:
        """A client says that it goes."""
        self._clients.pop(client, None)

    async def wait_unused(self, seconds: float) -> None:
        """Wait until there has been no request for so long."""
        left = seconds
        while left > 0:
            await anyio.sleep(left)
            left = self._left(seconds)

    def _left(self, seconds: float) -> float:
        if self.requests:
            return seconds
        return self._last + seconds - anyio.current_time()
