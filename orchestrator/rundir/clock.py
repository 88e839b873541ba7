"""The time of events: the wall clock's when this process began, and what has passed since by a clock that nobody sets.

So what is reckoned from the times of events, such as devbox hours, never jumps within the life of a process.
"""

import time
from typing import Final

_BEGAN: Final = time.time() - time.monotonic()


def now() -> float:
    """Seconds since 1970."""
    return _BEGAN + time.monotonic()
