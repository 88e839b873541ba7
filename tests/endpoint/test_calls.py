"""Trying again and waiting, on a clock that jumps."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx
import pytest
import runloop_api_client as client

from orchestrator.core.errors import Missing, Throttled, Unavailable, WorldError
from orchestrator.endpoint.calls import FIRST_PAUSE_S, LONGEST_PAUSE_S, hold, patiently, poll
from orchestrator.testing.clock import run_virtually


class Answers:
    """A call that gives these answers, the last one for ever; raises those that are errors. Notes when it was asked."""

    def __init__(self, *answers: Any, takes: float = 0.0) -> None:
        self.answers = list(answers)
        self.takes = takes
        self.asked: list[float] = []

    async def __call__(self) -> Any:
        self.asked.append(anyio.current_time())
        await anyio.sleep(self.takes)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def pauses(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.asked, self.asked[1:], strict=False)]


def within(seconds: float, wait: Callable[[], Awaitable[Any]]) -> Any:
    """The result of a wait that has a deadline."""

    async def main() -> Any:
        with anyio.fail_after(seconds):
            return await wait()

    return run_virtually(main)


def test_an_endpoint_in_trouble_is_asked_until_it_answers() -> None:
    call = Answers(Unavailable("down"), Throttled("less"), "hello")
    assert within(60, lambda: patiently("asking", call)) == "hello"
    assert len(call.asked) == 3


def test_failures_of_the_client_are_translated_before_they_are_judged() -> None:
    call = Answers(httpx.ConnectError("refused"), client.APITimeoutError(httpx.Request("GET", "http://x/")), "hello")
    assert within(60, lambda: patiently("asking", call)) == "hello"


def test_a_refusal_is_not_asked_again() -> None:
    call = Answers(Missing("no such run"))
    with pytest.raises(Missing):
        within(60, lambda: patiently("asking", call))
    assert len(call.asked) == 1


def test_pauses_double_from_a_quarter_second_to_half_a_minute_and_are_jittered() -> None:
    call = Answers(*[Unavailable("down")] * 20, "hello")
    within(10_000, lambda: patiently("asking", call))
    ceilings = [min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S) for number in range(20)]
    assert all(0.5 * most <= pause <= most + 0.01 for pause, most in zip(call.pauses, ceilings, strict=True))
    assert len({round(pause / most, 3) for pause, most in zip(call.pauses, ceilings, strict=True)}) > 5


def test_an_endpoint_that_asks_for_time_gets_it_to_the_second() -> None:
    call = Answers(Throttled("less", retry_after=90), "hello")
    within(100, lambda: patiently("asking", call))
    assert call.pauses == [pytest.approx(90, abs=0.01)]


def test_the_last_fault_is_raised_and_not_a_timeout_when_no_time_is_left_for_a_retry() -> None:
    call = Answers(Unavailable("first"), Unavailable("second", retry_after=500), "hello")
    with pytest.raises(Unavailable, match="second"):
        within(100, lambda: patiently("asking", call))
    assert len(call.asked) == 2


def test_a_long_poll_that_is_held_is_repeated_at_once() -> None:
    call = Answers(None, None, "done", takes=20)
    assert within(100, lambda: hold(call)) == "done"
    assert call.pauses == [pytest.approx(20, abs=0.01)] * 2


def test_an_endpoint_that_does_not_hold_a_long_poll_is_asked_once_a_second() -> None:
    call = Answers(*[None] * 50, "done")
    assert within(100, lambda: hold(call)) == "done"
    assert call.pauses == [pytest.approx(1, abs=0.01)] * 50


def test_polling_is_quick_at_first_and_then_steady() -> None:
    call = Answers(*range(100))
    assert within(1000, lambda: poll(call, lambda answer: answer == 30, longest=2)) == 30
    assert call.pauses[0] == pytest.approx(0.05, abs=0.01)
    assert call.pauses[-1] == pytest.approx(2, abs=0.01)
    rounded = [round(pause, 3) for pause in call.pauses]
    assert rounded == sorted(rounded)


def test_polling_and_holding_raise_what_the_question_raises() -> None:
    for wait in (lambda: hold(Answers(WorldError("gone"))), lambda: poll(Answers(WorldError("gone")), bool)):
        with pytest.raises(WorldError, match="gone"):
            within(10, wait)
