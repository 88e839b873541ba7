import asyncio
import unittest

from courier.outbox import Outbox


class QuietSea(unittest.IsolatedAsyncioTestCase):
    async def test_messages_are_sent_in_order(self):
        sent = []
        done = asyncio.Event()

        async def send(message):
            sent.append(message)
            if len(sent) == 2:
                done.set()

        outbox = Outbox(send)
        outbox.put("one")
        outbox.put("two")
        task = asyncio.create_task(outbox.run())
        await done.wait()
        self.assertEqual((sent, outbox.dead), (["one", "two"], []))
        task.cancel()


if __name__ == "__main__":
    unittest.main()
