"""Requests made into values and values into replies, the same for every route.

Bodies are pydantic models that ignore what they do not know; mistakes are answered 400 with every wrong key named.
Replies are JSON with the wire's own spelling, each as `records.view` shows it.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from orchestrator.service.errors import BadRequest
from orchestrator.service.records import Record, view
from orchestrator.service.store import Document, ListQuery, Page

MAX_LIMIT = 5000
#: Digits of a whole number in a query: Python takes long for many, and then refuses.
MAX_DIGITS: Final = 18
DEFAULT_LIMIT = 20
#: Bytes of a body: of most, of those that may hold files, scripts or commands, and of one that is a file of 100 MiB,
#: whatever it is made of.
MAX_BODY_BYTES: Final = 1 << 20
MAX_RICH_BODY_BYTES: Final = 32 << 20
MAX_FILE_BODY_BYTES: Final = 256 << 20
MAX_DEPTH = 128
#: Values of a body, however deep inside; and mistakes in it that are named one by one.
MAX_VALUES: Final = 250_000
MAX_PROBLEMS: Final = 100
#: Values of one filter, and ids in one list: SQLite takes 32,766 in one statement.
MAX_CHOICES: Final = 1000
MAX_IDS: Final = 30_000

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=256)], Annotated[str, Field(max_length=4096)]], Field(max_length=128)
]
"""What a client may say of its own about a thing: it is shown in every list."""
Ids = Annotated[list[str], Field(max_length=MAX_IDS)]
Title = Annotated[str, Field(max_length=1000)]

M = TypeVar("M", bound="Body")


class Body(BaseModel):
    """A request body of at most `limit` bytes.

    A field that was not sent is None; `given` tells it from one that was sent as null. Its validator is built at its
    first use, in the event loop: most bodies are never sent to most services.
    """

    limit: ClassVar[int] = MAX_BODY_BYTES
    model_config = ConfigDict(extra="ignore", populate_by_name=True, defer_build=True, allow_inf_nan=False)

    def given(self) -> dict[str, Any]:
        """Return the fields that were sent with a value, by name."""
        return {name: value for name, value in self.model_dump(exclude_unset=True).items() if value is not None}


async def parse(request: Request, model: type[M]) -> M:
    """Read the body as `model`; an empty body is an empty object. Raises BadRequest naming each wrong key."""
    raw = b"".join([piece async for piece in bounded(request, model.limit).stream()])
    try:
        data = orjson.loads(raw) if raw.strip() else {}
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}.") from None

    # Refuse what could be read, and not be written again inside the document that it becomes part of; and so many
    # values that to find fault with each would take as long as all other requests have patience.
    level, room = [data], MAX_VALUES
    for _ in range(MAX_DEPTH):
        inside = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        room -= sum(map(len, inside))
        if room < 0:
            raise BadRequest(f"The body is not valid: it has more than {MAX_VALUES} values.")
        level = [each for values in inside for each in values]
        if not level:
            break
    else:
        raise BadRequest(f"The body is not valid: it nests deeper than {MAX_DEPTH} levels.")

    try:
        return model.model_validate(data)
    except ValidationError as error:
        if error.error_count() > MAX_PROBLEMS:
            raise BadRequest(f"The body is not valid: it has {error.error_count()} mistakes.") from None
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors())
        raise BadRequest(f"The body is not valid: {problems}.") from None


def bounded(request: Request, limit: int) -> Request:
    """Bound the body of a request to `limit` bytes, whatever it says itself: more raises BadRequest when read."""
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise BadRequest(f"The body is larger than {limit} bytes, which this route does not take.")
        return message

    return Request(request.scope, receive)


def request_key(request: Request) -> str | None:
    """Return the idempotency key of this request, tied to its path; None if it carries none."""
    key = request.headers.get("x-request-id")
    return f"{request.url.path} {key}" if key else None


def list_query(request: Request) -> ListQuery:
    """Read the parameters of a list. Raises BadRequest for a limit that is not a whole number from 1 to 5000."""
    params = request.query_params
    text = params.get("limit", str(DEFAULT_LIMIT))
    if not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS or not 1 <= int(text) <= MAX_LIMIT:
        raise BadRequest(f"limit: expected a whole number from 1 to {MAX_LIMIT}, got {text[:100]!r}.")
    return ListQuery(
        limit=int(text),
        starting_after=params.get("starting_after") or None,
        search=params.get("search", ""),
        with_total=params.get("include_total_count", "true") != "false",
    )


def choice(request: Request, name: str) -> Sequence[str] | None:
    """Read a filter that may be a comma list; None if it was not given. Raises BadRequest for more than MAX_CHOICES."""
    values = [part for text in request.query_params.getlist(name) for part in text.split(",") if part]
    if len(values) > MAX_CHOICES:
        raise BadRequest(f"{name}: expected {MAX_CHOICES} values at most, got {len(values)}.")
    return values or None


def globs(request: Request, name: str) -> tuple[str, ...]:
    """Read a list of globs, as JSON: names may have commas. Raises BadRequest for anything else."""
    given = request.query_params.get(name, "[]")
    try:
        found = orjson.loads(given)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, list) or len(found) > MAX_CHOICES or not all(isinstance(each, str) for each in found):
        raise BadRequest(f"{name}: expected a JSON list of at most {MAX_CHOICES} globs, got {given[:100]!r}.")
    return tuple(found)


def path_id(request: Request, name: str = "id") -> str:
    """Return the part of the path that the route calls `{id}`, or as `name` says."""
    identity: str = request.path_params[name]
    return identity


def reply(
    thing: Record | Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Make a JSON reply of one thing."""
    return Response(orjson.dumps(view(thing)), status, headers, "application/json")


def reply_page(key: str, page: Page[Any], *, headers: Mapping[str, str] | None = None) -> Response:
    """Make a JSON reply of one page, its items below `key`."""
    body: Document = {key: [view(item) for item in page.items], "has_more": page.has_more}
    if page.total_count is not None:
        body |= {"total_count": page.total_count}
    return Response(orjson.dumps(body), 200, headers, "application/json")
