"""Waiting for conditions that no event announces: files, processes, and services that a test does not hold."""

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio

PAUSE_S: Final = 0.01
#: Long enough for a busy machine; waiting for a condition that comes at once costs nothing.
PATIENCE_S: Final = 60.0
T = TypeVar("T")


def wait_until(holds: Callable[[], T | None], message: object, *, seconds: float = PATIENCE_S) -> T:
    """Return the first true answer; fail with the message when time is up."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, _text(message)
        time.sleep(PAUSE_S)
    return found


async def until(holds: Callable[[], T | None], message: object, *, seconds: float = PATIENCE_S) -> T:
    """Return the first true answer, as `wait_until` does, and let other tasks work meanwhile."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, _text(message)
        await anyio.sleep(PAUSE_S)
    return found


async def poll(
    ask: Callable[[], Awaitable[T]], is_wanted: Callable[[T], object], message: object, *, seconds: float = PATIENCE_S
) -> T:
    """Ask until the answer is wanted, and return it; fail with the message when time is up."""
    deadline = time.monotonic() + seconds
    while not is_wanted(answer := await ask()):
        assert time.monotonic() < deadline, _text(message)
        await anyio.sleep(PAUSE_S)
    return answer


def _text(message: object) -> str:
    """Call or format the message; done only when time is up."""
    return str(message() if callable(message) else message)
