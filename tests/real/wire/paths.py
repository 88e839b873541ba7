"""The protocol at each path, and the questions there beside the conversation."""

from collections.abc import Callable, Mapping
from typing import Final

from starlette.responses import Response

from .chat import Chat
from .exchange import CREATED, Json, Wire, as_document
from .gemini import Gemini
from .mcp import answer
from .messages import Messages
from .responses import Responses

_ENDINGS: Final[Mapping[str, Wire]] = {
    "/messages": Messages(),
    "/chat/completions": Chat(),
    "/responses": Responses(),
    ":generateContent": Gemini(),
    ":streamGenerateContent": Gemini(),
}
_MODELS: Final = {
    "object": "list",
    "data": [{"id": "scripted", "object": "model", "created": CREATED, "owned_by": "us"}],
}
_ASIDES: Final[Mapping[str, Callable[[], Response]]] = {
    "/messages/count_tokens": lambda: as_document({"input_tokens": 100}),
    ":countTokens": lambda: as_document({"totalTokens": 100}),
    "/models": lambda: as_document(_MODELS),
}


def protocol_of(path: str) -> Wire | None:
    """The protocol of a path, with or without the version in front."""
    return next((wire for ending, wire in _ENDINGS.items() if path.endswith(ending)), None)


def spoken_to(message: Json, tool: str) -> Response:
    """The answer of a server of the Model Context Protocol that has this tool."""
    answered = answer(message, tool)
    return Response(status_code=202) if answered is None else as_document(answered)


def aside(path: str) -> Response | None:
    """The answer to what is asked beside the conversation."""
    return next((answer() for ending, answer in _ASIDES.items() if path.endswith(ending)), None)
