"""A service that shows and does what the published protocol says and no more, as an endpoint that is not ours.

`sweep serve --foreign` is such a service, to try sweeps on. Its views have no more than the published keys, and a
request that is repeated has its effect again.

Why a layer on the wire and not a word in each part: what we add to views is made in many places, and what is left of
them without it is best seen in one. A test reads every view of such a service as strictly as the published client can.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.service.assembly import Opened, Seams
from orchestrator.service.runs.states import Dialect
from orchestrator.service.sandbox.provider import Capability
from orchestrator.service.store import BENCHMARK_RUNS, DEVBOXES, SCENARIO_RUNS
from orchestrator.testing.rewrite_reply import edited

FOREIGN: Final = Dialect(is_rescoring=False, is_error_failure=False, is_devbox_labelled=False, is_scored_apart=False)

#: Where the folders of a devbox are: without these nobody could use one whose folders are not at /.
PLACES: Final = frozenset({"home", "working_directory"})
#: What we add to the published views, by what their ids open with.
ADDED: Final[Mapping[str, frozenset[str]]] = {
    BENCHMARK_RUNS.prefix: frozenset({"pending_scenarios", "scenario_runs"}),
    SCENARIO_RUNS.prefix: frozenset({"failure_reason", "scoring"}),
    DEVBOXES.prefix: PLACES
    | {"failure_message", "isolation", "enforced_limits", "reached", "refused", "installed", "failed_install"}
    | {"broken_by_agent"},
}
ADDED_TO_FUNCTIONS: Final = frozenset({"seconds", "python", "rewards", "broken"})
_KEY: Final = b"x-request-id"


def strict(seams: Seams) -> Seams:
    """The seams of a service like this one that follows the published protocol strictly."""
    return replace(seams, dialect=FOREIGN, has_own_routes=False, layers=(*seams.layers, _layer))


def _layer(opened: Opened) -> Middleware:
    return Middleware(PublishedOnly, kept=() if Capability.ROOTED in opened.capabilities else PLACES)


class PublishedOnly:
    """Takes away the idempotency key of every request, and of every reply what we add and is not `kept`."""

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
        hidden = _added(value) - self._kept
        return {key: self._published(item) for key, item in value.items() if key not in hidden}


def _added(view: Mapping[str, Any]) -> frozenset[str]:
    if "scoring_function_name" in view:
        return ADDED_TO_FUNCTIONS
    return ADDED.get(str(view.get("id")).partition("_")[0], frozenset())
