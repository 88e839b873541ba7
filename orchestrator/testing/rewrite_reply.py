"""Replies changed on their way out, for layers that make the service speak otherwise than it does."""

from collections.abc import Callable
from typing import Any

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


async def edited(app: ASGIApp, scope: Scope, receive: Receive, send: Send, edit: Callable[[Any], Any]) -> None:
    """Have a request answered; a JSON reply becomes what `edit` makes of it, any other passes as it comes."""
    opening: Message | None = None
    pieces: list[bytes] = []

    async def watch(message: Message) -> None:
        nonlocal opening
        if message["type"] == "http.response.start" and _is_json(message):
            opening = message
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


def _is_json(opening: Message) -> bool:
    return Headers(scope=opening).get("content-type", "").startswith("application/json")
