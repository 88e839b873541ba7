"""Repeats a call that may fail for a while."""

import asyncio

TRANSIENT = (ConnectionError, TimeoutError)


class RetryError(Exception):
    """All attempts failed."""


async def retry(call, *, attempts=5, base=0.5, factor=2.0, max_delay=30.0, retry_on=TRANSIENT, sleep=asyncio.sleep):
    """Returns what `await call()` returns, trying again after exceptions of the types in retry_on."""
    delay = base
    for _ in range(attempts + 1):
        try:
            return await call()
        except BaseException as error:
            last = error
        delay = delay * factor
        await sleep(min(delay, max_delay))
    if isinstance(last, retry_on):
        raise RetryError(f"gave up after {attempts} attempts") from last
    raise last
