import asyncio
import importlib
import os
import sys
import unittest

sys.path.insert(0, os.getcwd())

TURNS = 200


async def settle(task=None):
    """Lets everything that can go on without waiting for time go on."""
    for _ in range(TURNS):
        if task is not None and task.done():
            return
        await asyncio.sleep(0)


class Delays(list):
    """A sleep that takes no time and notes how long it should have been."""

    async def __call__(self, seconds):
        self.append(seconds)
        await asyncio.sleep(0)


class Forever(Delays):
    """A sleep that never ends by itself."""

    async def __call__(self, seconds):
        self.append(seconds)
        await asyncio.get_running_loop().create_future()


class Server:
    """Answers with what it is told, one answer a call: an exception, or a value. The last answer is repeated."""

    def __init__(self, *answers):
        self.answers = answers
        self.calls = []

    async def __call__(self, message=None):
        answer = self.answers[min(len(self.calls), len(self.answers) - 1)]
        self.calls.append(message)
        await asyncio.sleep(0)
        if answer == "hang":
            await asyncio.get_running_loop().create_future()
        if isinstance(answer, BaseException):
            raise answer
        return answer


class CourierCase(unittest.TestCase):
    def setUp(self):
        self.retry = importlib.import_module("courier.retry").retry
        self.Outbox = importlib.import_module("courier.outbox").Outbox
        self.delays = Delays()
        # Not asyncio.run: it waits for tasks that refuse to be cancelled.
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda loop, context: None)
        self.addCleanup(self.loop.close)

    def play(self, scene):
        return self.loop.run_until_complete(scene)

    def outcome(self, call, **options):
        """What retry returned, or the exception that it raised."""

        async def scene():
            task = asyncio.ensure_future(self.retry(call, **{"sleep": self.delays, **options}))
            await settle(task)
            self.assertTrue(task.done(), "retry does not end")
            if task.cancelled():
                return "cancelled"
            return task.exception() or task.result()

        return self.play(scene())


class Attempts(CourierCase):
    def test_success(self):
        server = Server("fine")
        self.assertEqual(self.outcome(server), "fine")
        self.assertEqual((len(server.calls), self.delays), (1, []))

    def test_success_after_failures(self):
        server = Server(ConnectionResetError(), TimeoutError(), "fine", "unused")
        self.assertEqual(self.outcome(server), "fine")
        self.assertEqual((len(server.calls), self.delays), (3, [0.5, 1.0]))

    def test_the_last_exception_is_raised_itself(self):
        errors = [ConnectionError(str(number)) for number in range(9)]
        for attempts in (1, 2, 5):
            server = Server(*errors)
            self.assertIs(self.outcome(server, attempts=attempts), errors[attempts - 1])
            self.assertEqual(len(server.calls), attempts)

    def test_one_attempt_never_waits(self):
        self.outcome(Server(ConnectionError()), attempts=1)
        self.assertEqual(self.delays, [])

    def test_success_on_the_last_attempt(self):
        server = Server(ConnectionError(), ConnectionError(), "fine")
        self.assertEqual(self.outcome(server, attempts=3), "fine")

    def test_other_exceptions_pass_through(self):
        for error in (ValueError("no"), OSError("no"), GeneratorExit(), SystemError("no")):
            server = Server(error)
            self.assertIs(self.outcome(server), error)
            self.assertEqual((len(server.calls), self.delays), (1, []))

    def test_another_exception_after_a_transient_one(self):
        error = KeyError("x")
        server = Server(ConnectionError(), error)
        self.assertIs(self.outcome(server), error)
        self.assertEqual((len(server.calls), self.delays), (2, [0.5]))

    def test_types_of_ones_own(self):
        server = Server(KeyError("x"), IndexError(), "fine")
        self.assertEqual(self.outcome(server, retry_on=(LookupError,)), "fine")
        error = ConnectionError()
        self.assertIs(self.outcome(Server(error), retry_on=(LookupError,)), error)


class Waits(CourierCase):
    def check(self, delays, *answers, **options):
        self.delays.clear()
        self.outcome(Server(*answers), **options)
        self.assertEqual(self.delays, delays)

    def test_they_grow_from_the_base(self):
        self.check([0.5, 1.0, 2.0, 4.0], ConnectionError())
        self.check([2.0, 6.0, 18.0], ConnectionError(), attempts=4, base=2.0, factor=3.0)
        self.check([1.5, 1.5], ConnectionError(), attempts=3, base=1.5, factor=1.0)

    def test_they_are_limited(self):
        self.check([1.0, 4.0, 10.0, 10.0, 10.0], ConnectionError(), attempts=6, base=1.0, factor=4.0, max_delay=10.0)
        self.check([3.0, 3.0], ConnectionError(), attempts=3, base=8.0, max_delay=3.0)

    def test_retry_after(self):
        def told(seconds):
            error = ConnectionError()
            error.retry_after = seconds
            return error

        self.check([7.0, 2.0, 4.0], told(7.0), ConnectionError(), attempts=4, base=1.0)
        self.check(
            [1.0, 90.0, 4.0], ConnectionError(), told(90.0), ConnectionError(), attempts=4, base=1.0, max_delay=30.0
        )
        self.check([1.0, 2.0], told(0.25), told(None), told(None), attempts=3, base=1.0)
        self.check([], told(9.0), attempts=1)


class Cancellation(CourierCase):
    def cancelled(self, server, sleep, turns_calls, **options):
        """Cancels a retry that hangs in its n-th call, or in the wait after it; it has to end as cancelled."""

        async def scene():
            task = asyncio.ensure_future(self.retry(server, sleep=sleep, **options))
            await settle()
            self.assertEqual(len(server.calls), turns_calls)
            task.cancel()
            await settle(task)
            self.assertTrue(task.cancelled())
            self.assertEqual(len(server.calls), turns_calls)

        self.play(scene())

    def test_during_an_attempt(self):
        self.cancelled(Server("hang"), self.delays, 1)
        self.assertEqual(self.delays, [])

    def test_during_a_later_attempt(self):
        self.cancelled(Server(ConnectionError(), "hang"), self.delays, 2)

    def test_during_a_wait(self):
        self.cancelled(Server(ConnectionError()), Forever(), 1)

    def test_whatever_is_retried(self):
        for types in ((BaseException,), (asyncio.CancelledError, ConnectionError), (Exception,)):
            self.cancelled(Server("hang"), self.delays, 1, retry_on=types)
            self.cancelled(Server(ConnectionError()), Forever(), 1, retry_on=types)

    def test_a_timeout_around_it(self):
        server = Server(ConnectionError())

        async def limited():
            async with asyncio.timeout(0.02):
                await self.retry(server, sleep=Forever())

        async def scene():
            task = asyncio.ensure_future(limited())
            await asyncio.wait([task], timeout=1)
            self.assertTrue(task.done())
            self.assertIsInstance(task.exception(), TimeoutError)
            self.assertEqual(len(server.calls), 1)

        self.play(scene())


class OutboxCase(CourierCase):
    def start(self, server, sleep=None, **options):
        self.outbox = self.Outbox(server, sleep=self.delays if sleep is None else sleep, **options)

    async def run_and_cancel(self, *, before=TURNS):
        task = asyncio.ensure_future(self.outbox.run())
        for _ in range(before):
            await asyncio.sleep(0)
        self.assertFalse(task.done())
        task.cancel()
        await settle(task)
        self.assertTrue(task.cancelled(), "run() does not end when it is cancelled")

    def test_idle(self):
        self.start(Server("fine"))
        self.play(self.run_and_cancel())

    def test_messages_in_order_and_later_ones(self):
        server = Server("fine")
        self.start(server)
        self.outbox.put("one")
        self.outbox.put("two")

        async def scene():
            task = asyncio.ensure_future(self.outbox.run())
            await settle()
            self.assertEqual((server.calls, self.outbox.pending), (["one", "two"], []))
            self.outbox.put("three")
            await settle()
            self.assertEqual((server.calls, self.outbox.pending, self.outbox.dead), (["one", "two", "three"], [], []))
            task.cancel()
            await settle(task)
            self.assertTrue(task.cancelled())

        self.play(scene())

    def test_cancelled_during_a_delivery(self):
        server = Server("fine", "hang", "fine")
        self.start(server)
        for message in ("one", "two", "three"):
            self.outbox.put(message)
        self.play(self.run_and_cancel())
        self.assertEqual((self.outbox.pending, self.outbox.dead), (["two", "three"], []))
        self.play(self.run_and_cancel())
        self.assertEqual((self.outbox.pending, self.outbox.dead), ([], []))
        self.assertEqual(server.calls, ["one", "two", "two", "three"])

    def test_cancelled_while_it_waits_to_retry(self):
        self.start(Server(ConnectionError()), Forever())
        self.outbox.put("one")
        self.outbox.put("two")
        self.play(self.run_and_cancel())
        self.assertEqual((self.outbox.pending, self.outbox.dead), (["one", "two"], []))

    def test_a_message_is_pending_while_it_is_delivered(self):
        seen = []

        async def send(message):
            seen.append(list(self.outbox.pending))

        self.start(send)
        self.outbox.put("one")
        self.outbox.put("two")
        self.play(self.run_and_cancel())
        self.assertEqual(seen, [["one", "two"], ["two"]])

    def test_given_up(self):
        refused, wrong = ConnectionRefusedError("away"), ValueError("bad address")
        server = Server(refused, refused, wrong, "fine")
        self.start(server, attempts=2)
        for message in ("one", "two", "three"):
            self.outbox.put(message)
        self.play(self.run_and_cancel())
        self.assertEqual(server.calls, ["one", "one", "two", "three"])
        self.assertEqual((self.outbox.pending, self.outbox.dead), ([], [("one", refused), ("two", wrong)]))
        self.assertIs(self.outbox.dead[0][1], refused)

    def test_equal_messages(self):
        server = Server(ConnectionError(), "fine", "hang")
        self.start(server, attempts=1)
        for message in ("same", "same", "same"):
            self.outbox.put(message)
        self.play(self.run_and_cancel())
        self.assertEqual((len(self.outbox.dead), self.outbox.pending, len(server.calls)), (1, ["same"], 3))


if __name__ == "__main__":
    unittest.main(verbosity=2)
