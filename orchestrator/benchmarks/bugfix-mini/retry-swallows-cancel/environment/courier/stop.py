"""Cancels an outbox whose server is away and says what became of it."""

import asyncio
import os

from .outbox import Outbox


async def away(message):
    raise ConnectionRefusedError("the server is away")


async def main():
    outbox = Outbox(away, attempts=3, base=0.05)
    outbox.put("hello")
    task = asyncio.create_task(outbox.run())
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task], timeout=1)
    state = "stopped" if task.cancelled() else "still running"
    print(f"cancelled while retrying: {state}, pending {len(outbox.pending)}, dead {len(outbox.dead)}", flush=True)
    if not task.done():
        os._exit(1)


if __name__ == "__main__":
    asyncio.run(main())
