"""Repeats a call that may fail for a while."""

import asyncio

TRANSIENT = (ConnectionError, TimeoutError)


async def retry(call, *, attempts=5, base=0.5, factor=2.0, max_delay=30.0, retry_on=TRANSIENT, sleep=asyncio.sleep):
    """Returns what `await call()` returns, trying again after exceptions of the types in retry_on.

    Raises the exception of the last attempt; any other type, and cancellation in any case, passes through at once.
    """
    for failures in range(attempts):
        try:
            return await call()
        except asyncio.CancelledError:
            raise
        except retry_on as error:
            if failures == attempts - 1:
                raise
            delay = min(base * factor**failures, max_delay)
            retry_after = getattr(error, "retry_after", None)
        await sleep(delay if retry_after is None else max(delay, retry_after))
