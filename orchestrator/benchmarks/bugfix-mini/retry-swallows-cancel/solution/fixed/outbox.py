"""Delivers messages one after another."""

import asyncio

from .retry import retry


class Outbox:
    """Messages that wait to be sent; run() sends them."""

    def __init__(self, send, **retry_options):
        self._send = send
        self._retry_options = retry_options
        self._arrived = asyncio.Event()
        self.pending = []
        self.dead = []

    def put(self, message):
        self.pending.append(message)
        self._arrived.set()

    async def run(self):
        """Delivers what is pending and what is put later, until it is cancelled."""
        while True:
            while not self.pending:
                self._arrived.clear()
                await self._arrived.wait()
            message = self.pending[0]
            try:
                await retry(lambda: self._send(message), **self._retry_options)
            except Exception as error:
                self.dead.append((message, error))
            # Only now: a delivery that is cancelled leaves its message where it is.
            self.pending.pop(0)
