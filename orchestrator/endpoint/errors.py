"""Translates the failures of the client and of HTTP into ours: one place, one table, every one of them.

A test walks the client's exceptions and fails when one is new. The client is only called inside `translated()`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from math import isfinite
from time import time
from typing import Final

import httpx
import runloop_api_client as client
from runloop_api_client.lib.polling import PollingTimeout

from orchestrator.core.errors import Conflicted, Missing, Refused, Throttled, Unauthorized, Unavailable, WorldError

#: Classes with no HTTP status to go by.
BY_CLASS: Final[Mapping[type[Exception], type[WorldError]]] = {
    client.APITimeoutError: Unavailable,
    client.APIConnectionError: Unavailable,
    client.APIResponseValidationError: Refused,
    client.APIError: Unavailable,
    client.RunloopError: Refused,
    PollingTimeout: Unavailable,
    httpx.TransportError: Unavailable,
    httpx.StreamError: Unavailable,
    httpx.HTTPError: Unavailable,
    httpx.InvalidURL: Refused,
    httpx.CookieConflict: Refused,
    JSONDecodeError: Unavailable,
    UnicodeDecodeError: Unavailable,
    UnicodeEncodeError: Refused,  # the request is at fault: half of a surrogate pair cannot be sent
}
FAILURES: Final[tuple[type[Exception], ...]] = (client.APIStatusError, *BY_CLASS)
#: Characters of an endpoint's message that are kept.
MAX_MESSAGE: Final = 1000

BY_STATUS: Final[Mapping[int, type[WorldError]]] = {
    400: Conflicted,
    401: Unauthorized,
    403: Unauthorized,
    404: Missing,
    408: Unavailable,
    409: Conflicted,
    425: Unavailable,
    429: Throttled,
}


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise our error for any failure of the client inside; `what` names the call, for messages."""
    try:
        yield
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise Unavailable(f"{what}: the endpoint's answer is not JSON: {error}") from error
    except FAILURES as error:
        raise translate(error, what) from error


def translate(error: Exception, what: str) -> WorldError:
    """Make our error of a failure of the client, by its class or HTTP status; `what` is as in `translated`.

    A refusal counts only as a JSON object, as endpoints make it: any proxy says 404.
    """
    if not isinstance(error, client.APIStatusError):
        cls = next(BY_CLASS[base] for base in type(error).__mro__ if base in BY_CLASS)
        cause = error.__cause__ or error
        return cls(f"{what}: {type(cause).__name__}: {cause}")

    status, body = error.response.status_code, error.body
    if isinstance(body, Mapping) and isinstance(body.get("message"), str):
        words = str(body["message"])[:MAX_MESSAGE]
    else:
        words = str(body)[:MAX_MESSAGE] if body else error.message
    message = f"{what}: {words} (HTTP {status})"
    cls = BY_STATUS.get(status, Unavailable if status >= 500 else Refused)
    if issubclass(cls, Refused) and not (isinstance(body, Mapping) and body):
        cls = Unavailable
    if cls in {Unauthorized, Refused, Conflicted} and "quota" in words.lower():
        cls = Throttled
    if cls is Unavailable:
        return Unavailable(message, retry_after=retry_after(error.response.headers), status=status)
    if cls is Throttled:
        return Throttled(message, retry_after=retry_after(error.response.headers))
    return cls(message)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks us to wait: `retry-after-ms`, or `retry-after` as seconds or as a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        with suppress(ValueError):
            seconds = float(text) * unit
            if isfinite(seconds):
                return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time())
    except (ValueError, OverflowError):
        return None
