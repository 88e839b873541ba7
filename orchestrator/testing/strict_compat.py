"""A service that follows the published protocol and adds nothing, as an endpoint that is not ours.

`sweep serve --foreign` is such a service, to try sweeps on. Its views have the published keys only, and a repeated
request has its effect again.

Why a layer on the wire and not a condition in each part: our additions to views are made in many places, and a view
without them is best seen in one. A test reads every view of such a service as strictly as the published client can.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Final

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.service.assembly import Opened, Seams
from orchestrator.service.runs.states import Dialect
from orchestrator.service.sandbox.provider import Capability
from orchestrator.service.store import BENCHMARK_RUNS, DEVBOXES, SCENARIO_RUNS

FOREIGN: Final = Dialect(is_rescoring=False, is_error_failure=False, is_devbox_labelled=False, is_scored_apart=False)

#: Places of a devbox's folders: without these no client could use a devbox whose folders are not at /.
PLACES: Final = frozenset({"home", "working_directory"})
#: Our additions to the published views, by the prefix of their ids.
ADDED: Final[Mapping[str, frozenset[str]]] = {
    BENCHMARK_RUNS.prefix: frozenset({"pending_scenarios", "scenario_runs"}),
    SCENARIO_RUNS.prefix: frozenset({"failure_reason", "scoring"}),
    DEVBOXES.prefix: PLACES
    | {
        "failure_message",
        "isolation",
        "enforced_limits",
        "network",
        "has_one_user",
        "reached",
        "refused",
        "installed",
        "failed_install",
        "has_failed_environment",
        "preparing",
    }
    | {"broken_by_agent"},
}
ADDED_TO_FUNCTIONS: Final = frozenset({"seconds", "python", "rewards", "broken"})
_KEY: Final = b"x-request-id"


def strict(seams: Seams) -> Seams:
    """Return the seams of a service like this one that follows the published protocol strictly."""

    def layer(opened: Opened) -> Middleware:
        return Middleware(PublishedOnly, kept=() if Capability.ROOTED in opened.capabilities else PLACES)

    return replace(seams, dialect=FOREIGN, has_own_routes=False, layers=(*seams.layers, layer))


class PublishedOnly:
    """Removes the idempotency key from every request, and our additions from every reply, except the keys `kept`."""

    def __init__(self, app: ASGIApp, *, kept: Collection[str] = ()) -> None:
        self._app = app
        self._kept = frozenset(kept)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "headers": [header for header in scope["headers"] if header[0] != _KEY]}
        await edited(self._app, scope, receive, send, self._published)

    def _published(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._published(item) for item in value]
        if not isinstance(value, dict):
            return value
        added = ADDED.get(str(value.get("id")).partition("_")[0], frozenset())
        hidden = (ADDED_TO_FUNCTIONS if "scoring_function_name" in value else added) - self._kept
        return {key: self._published(item) for key, item in value.items() if key not in hidden}


async def edited(app: ASGIApp, scope: Scope, receive: Receive, send: Send, edit: Callable[[Any], Any]) -> None:
    """Answer a request by `app`; `edit` is applied to the value of a JSON reply, any other reply passes unchanged."""
    opening: Message | None = None
    pieces: list[bytes] = []

    async def watch(message: Message) -> None:
        nonlocal opening
        if message["type"] == "http.response.start":
            is_json = Headers(scope=message).get("content-type", "").startswith("application/json")
            opening = message if is_json else None
            if not is_json:
                await send(message)
        elif opening is None or message["type"] != "http.response.body":
            await send(message)
        else:
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                body = orjson.dumps(edit(orjson.loads(b"".join(pieces))))
                MutableHeaders(scope=opening)["content-length"] = str(len(body))
                await send(opening)
                await send({**message, "body": body})

    await app(scope, receive, watch)
