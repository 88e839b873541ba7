"""Strangers that answer in the endpoint's place, to any request and in any shape: nothing they say is believed."""

import re
import time
from collections import Counter

import pytest

from .conftest import Night
from .proxy import WRONG

#: Seconds in which nobody but the stranger answers.
PORTAL = 4.0


def kind_of(request: str) -> str:
    """A request's method and route, for whichever thing it is."""
    return re.sub(r"/[a-z]+_[0-9a-f]{16,}|\?.*", "", request)


@pytest.mark.slow
@pytest.mark.parametrize("answer", sorted(set(WRONG) - {"html-502", "list-200"}))
def test_a_stranger_that_answers_each_kind_of_request_once_changes_no_result(night: Night, answer: str) -> None:
    seen: Counter[str] = Counter()

    def choose(request: str) -> bytes | None:
        seen[kind_of(request)] += 1
        return WRONG[answer] if seen[kind_of(request)] == 2 else None

    night.world.proxy.choose = choose
    night.start()
    night.ends_well()


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["html-200", "nothing-204", "nothing-200", "object-200"])
def test_a_stranger_that_answers_a_fifth_of_all_uploads_changes_no_result(night: Night, answer: str) -> None:
    """A file that never came must not become an agent that did nothing."""
    uploads: list[str] = []

    def choose(request: str) -> bytes | None:
        if "upload_file" not in request:
            return None
        uploads.append(request)
        return WRONG[answer] if len(uploads) % 5 == 4 else None

    night.world.proxy.choose = choose
    night.start()
    night.ends_well()


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["html-200", "html-403"])
def test_a_captive_portal_for_some_seconds_changes_no_result(night: Night, answer: str) -> None:
    night.start()
    night.comes_to("score")
    until = time.monotonic() + PORTAL
    night.world.proxy.choose = lambda _request: WRONG[answer] if time.monotonic() < until else None
    night.ends_well()
