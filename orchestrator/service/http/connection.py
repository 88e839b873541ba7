"""What a handler that waits owes its client: to stop when the client has gone.

The server does not cancel a handler whose client went away, so hundreds of clients that give up and ask again would
leave hundreds of handlers waiting for nobody.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.requests import Request

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection; nobody reads the answer."""


async def while_connected(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """Do `work`, whose exceptions pass as they are, unless the client goes. Raises ClientGone.

    The body of the request must have been read.
    """
    outcome: list[T] = []
    failed: list[Exception] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            outcome.append(await work())
        except Exception as error:  # noqa: BLE001 - carried through the task group as it is
            failed.append(error)
        tasks.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if not outcome:
        raise ClientGone
    return outcome[0]


def hold_time(asked: float | None, *, default: float, limit: float) -> float:
    """How long to hold a request that waits, in seconds."""
    return default if asked is None else min(max(asked, 0.0), limit)
