"""A clock that jumps: an hour of the engine takes milliseconds, and every test of it is the same each time.

Work for a thread is done at once, for this clock cannot measure a thread's time. Code with processes needs the real
clock: this one does not wait for them.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar
from unittest.mock import patch

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: moves the clock to where the loop wanted to wait for.

    Each poll creeps by a microsecond, because a clock that stands still livelocks with code that waits for it to move.
    """

    CREEP_S: Final = 1e-6

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("every task waits for something that will never happen")
            self.now += max(0.0, timeout)
        self.now += self.CREEP_S
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time. Starts at 0."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


async def _at_once(function: Callable[..., T], *args: object, **options: object) -> T:
    """Stands in for `anyio.to_thread.run_sync`."""
    del options
    return function(*args)


def run_virtually(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a virtual clock. Raises RuntimeError when it would wait for ever."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner, patch("anyio.to_thread.run_sync", _at_once):
        return runner.run(main())
