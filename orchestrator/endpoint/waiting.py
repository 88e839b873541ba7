"""Trying again and waiting, by the loop's clock. The caller's deadline bounds everything here.

Why not the client's own retries and waiters: they hammer a dead endpoint, give up after two minutes, and run inside
our clocks without telling us.
"""

import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio

from orchestrator.core.errors import Throttled, Unavailable
from orchestrator.endpoint.errors import translated

T = TypeVar("T")

#: A long-poll is asked to last this long, in seconds; endpoints grant 25 to 30.
HOLD: Final = 20.0
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 30.0


async def patiently(what: str, call: Callable[[], Awaitable[T]]) -> T:
    """Call until it is answered. Raises the last fault once the caller's deadline leaves no time for another try."""
    pause = FIRST_PAUSE
    while True:
        try:
            with translated(what):
                return await call()
        except (Unavailable, Throttled) as fault:
            delay = max(fault.retry_after or 0.0, pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            if anyio.current_time() + delay >= anyio.current_effective_deadline():
                raise
            await anyio.sleep(delay)
            pause = min(2 * pause, LONGEST_PAUSE)


async def poll(ask: Callable[[], Awaitable[T]], is_done: Callable[[T], bool], *, longest: float = 2.0) -> T:
    """Ask until the answer is the one waited for, first often, then every `longest` seconds."""
    pause = 0.05
    while not is_done(answer := await ask()):
        await anyio.sleep(pause)
        pause = min(1.5 * pause, longest)
    return answer


async def hold(ask: Callable[[], Awaitable[T | None]]) -> T:
    """Repeat a long-poll until it answers; None is "not yet". An endpoint that does not hold is not hammered."""
    while True:
        asked_at = anyio.current_time()
        answer = await ask()
        if answer is not None:
            return answer
        await anyio.sleep(max(0.0, asked_at + 1.0 - anyio.current_time()))
