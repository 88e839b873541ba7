"""Failures of the client and of HTTP become failures of ours, every one of them."""

import inspect
import re
from collections.abc import Iterator
from email.utils import formatdate
from http import HTTPStatus
from json import JSONDecodeError, loads
from pathlib import Path
from time import time
from typing import Any

import httpx
import pytest
import runloop_api_client as client
from hypothesis import given
from hypothesis import strategies as st
from runloop_api_client.lib.polling import PollingTimeout

from orchestrator.core.errors import (
    Conflicted,
    Missing,
    Refused,
    SweepError,
    Throttled,
    Unauthorized,
    Unavailable,
    WorldError,
)
from orchestrator.endpoint.errors import MAX_MESSAGE, retry_after, translate, translated

REQUEST = httpx.Request("GET", "http://127.0.0.1/")


def below(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from below(sub)


CLIENTS: list[type[Exception]] = [PollingTimeout, *dict.fromkeys(below(client.RunloopError))]
HTTPX = [cls for _, cls in inspect.getmembers(httpx, inspect.isclass) if issubclass(cls, Exception)]


def status_error(
    status: int,
    *,
    body: object = None,
    headers: dict[str, str] | None = None,
    cls: type[client.APIStatusError] = client.APIStatusError,
) -> client.APIStatusError:
    response = httpx.Response(status, headers=headers, request=REQUEST)
    return cls(f"Error code: {status}", response=response, body=body)


def made(cls: type[Exception]) -> Exception:
    if issubclass(cls, client.APIStatusError):
        return status_error(418, cls=cls)
    return cls.__new__(cls, "x")


@pytest.mark.parametrize("cls", [*CLIENTS, *HTTPX], ids=lambda cls: f"{cls.__module__.split('.')[0]}-{cls.__name__}")
def test_every_failure_of_the_client_and_of_http_becomes_one_of_the_worlds(cls: type[Exception]) -> None:
    with pytest.raises(WorldError, match="asking the time: "), translated("asking the time"):
        raise made(cls)


def test_the_client_defines_no_failure_that_is_unknown_here() -> None:
    package = Path(inspect.getfile(client)).parent
    pattern = re.compile(r"^class (\w+)\([^)]*(?:Exception|Error|Timeout)\b[^)]*\)", re.MULTILINE)
    defined = {name for path in package.rglob("*.py") for name in pattern.findall(path.read_text("utf-8"))}
    of_its_own_code = {"MissingStreamClassError"}
    assert defined - {cls.__name__ for cls in CLIENTS} == of_its_own_code


@pytest.mark.parametrize("status", range(400, 600))
def test_every_status_has_a_meaning(status: int) -> None:
    error = translate(status_error(status, body={"message": "because"}), "asking")
    assert isinstance(error, WorldError)
    assert error.message == f"asking: because (HTTP {status})"
    assert isinstance(error, Unavailable) == (status >= 500 or status in {408, 425})


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (HTTPStatus.BAD_REQUEST, Conflicted),
        (HTTPStatus.UNAUTHORIZED, Unauthorized),
        (HTTPStatus.FORBIDDEN, Unauthorized),
        (HTTPStatus.NOT_FOUND, Missing),
        (HTTPStatus.CONFLICT, Conflicted),
        (HTTPStatus.UNPROCESSABLE_ENTITY, Refused),
        (HTTPStatus.TOO_MANY_REQUESTS, Throttled),
        (HTTPStatus.BAD_GATEWAY, Unavailable),
    ],
)
def test_the_statuses_that_matter_have_classes_of_their_own(status: int, cls: type[SweepError]) -> None:
    assert type(translate(status_error(status, body={"message": "because"}), "x")) is cls


@pytest.mark.parametrize("body", [None, "", "<h1>Nothing here</h1>", {}, [], 5])
@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 409, 422, 502])
def test_a_refusal_that_is_not_in_the_endpoints_form_is_not_the_endpoints(status: int, body: object) -> None:
    assert type(translate(status_error(status, body=body), "x")) is Unavailable


@pytest.mark.parametrize("status", [400, 403, 409, 422])
def test_a_quota_is_throttling_by_another_name(status: int) -> None:
    error = translate(
        status_error(status, body={"message": "Devbox Quota exceeded"}, headers={"retry-after": "7"}), "x"
    )
    assert isinstance(error, Throttled)
    assert error.retry_after == 7


@pytest.mark.parametrize(
    "body", [None, "", "oops", {"error": "x"}, {"message": 5}, [1], "x" * 10_000, {"message": "y" * 9999}]
)
def test_any_error_body_gives_a_short_message(body: Any) -> None:
    error = translate(status_error(500, body=body), "asking")
    assert error.message.startswith("asking: ")
    assert len(error.message) < MAX_MESSAGE + 50


def test_the_cause_of_a_failed_connection_is_in_the_message() -> None:
    error = client.APIConnectionError(request=REQUEST)
    error.__cause__ = OSError("no route to host")
    assert translate(error, "asking").message == "asking: OSError: no route to host"


@pytest.mark.parametrize("content", [b"<html>", b"", b'{"a"', b"\xff\xfe\x00\xff"])
def test_an_answer_that_is_not_json_is_an_endpoint_in_trouble(content: bytes) -> None:
    with pytest.raises(Unavailable, match="not JSON"), translated("asking"):
        loads(content)
    assert issubclass(JSONDecodeError, ValueError)


def test_mistakes_of_ours_and_cancellation_pass_untouched() -> None:
    for error in (ZeroDivisionError(), KeyboardInterrupt(), GeneratorExit(), SweepError("x")):
        with pytest.raises(type(error)), translated("asking"):
            raise error


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
    ],
)
def test_retry_after_is_read_as_seconds_and_as_milliseconds(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_is_read_as_a_date() -> None:
    assert retry_after({"retry-after": formatdate(time() + 100, usegmt=True)}) == pytest.approx(100, abs=5)


@given(st.text(), st.text())
def test_no_header_breaks_the_reading(seconds: str, milliseconds: str) -> None:
    asked = retry_after({"retry-after": seconds, "retry-after-ms": milliseconds})
    assert asked is None or 0 <= asked < float("inf")
