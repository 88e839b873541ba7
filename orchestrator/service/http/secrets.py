"""The secrets that this service keeps, by name: variables of its own environment that its owner gave out.

These are what a run profile may name; of the rest of its environment the service gives away neither value nor name.
"""

from collections.abc import Iterable
from hashlib import sha256

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.service.serialization import list_query, reply_page
from orchestrator.service.store import Page, now_ms


class Secrets:
    def __init__(self, names: Iterable[str]) -> None:
        since = now_ms()
        self._items = [
            {
                "id": f"sec_{sha256(name.encode()).hexdigest()[:20]}",
                "name": name,
                "create_time_ms": since,
                "update_time_ms": since,
            }
            for name in sorted(set(names))
        ]

    def routes(self) -> list[Route]:
        return [Route("/v1/secrets", self.page, methods=["GET"])]

    async def page(self, request: Request) -> Response:
        limit = list_query(request).limit
        return reply_page("secrets", Page(self._items[:limit], len(self._items) > limit, len(self._items)))
