"""Routes of commands in devboxes: start, wait, kill, speak to, and follow what they print."""

from collections.abc import AsyncIterator
from typing import ClassVar, Final, Literal

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from orchestrator.service.devboxes.executions import DEFAULT_LINES, CommandRequest, Executions
from orchestrator.service.errors import BadRequest, WaitExpired
from orchestrator.service.http import serialization as wire
from orchestrator.service.http.app import hold_time, while_connected
from orchestrator.service.records import ExecutionStatus, view

MAX_HOLD_S: Final = 25.0
#: The deprecated call waits this long; its clients give up at 600 s.
SYNC_HOLD_S: Final = 590.0
SYNC_OUTPUT_BYTES: Final = 8 << 20
PAUSE_S: Final = 10.0
_EXECUTION: Final = "/v1/devboxes/{id}/executions/{execution_id}"


class _AsyncBody(wire.Body):
    limit: ClassVar[int] = wire.MAX_RICH_BODY_BYTES
    command: str
    shell_name: str | None = None
    attach_stdin: bool | None = None


class _ExecuteBody(wire.Body):
    limit: ClassVar[int] = wire.MAX_RICH_BODY_BYTES
    command: str
    command_id: str = Field(min_length=1, max_length=200)
    optimistic_timeout: float | None = None
    shell_name: str | None = None
    attach_stdin: bool | None = None


class _WaitExecutionBody(wire.Body):
    statuses: list[ExecutionStatus] = Field(min_length=1)
    timeout_seconds: float | None = None


class _InputBody(wire.Body):
    limit: ClassVar[int] = wire.MAX_RICH_BODY_BYTES
    text: str | None = None
    signal: Literal["EOF", "INTERRUPT"] | None = None


def execution_routes(executions: Executions) -> list[Route]:
    handlers = _Handlers(executions)
    return [
        Route("/v1/devboxes/{id}/execute", handlers.execute, methods=["POST"]),
        Route("/v1/devboxes/{id}/execute_async", handlers.execute_async, methods=["POST"]),
        Route("/v1/devboxes/{id}/execute_sync", handlers.execute_sync, methods=["POST"]),
        Route(_EXECUTION, handlers.retrieve, methods=["GET"]),
        Route(f"{_EXECUTION}/wait_for_status", handlers.wait_for_status, methods=["POST"]),
        Route(f"{_EXECUTION}/kill", handlers.kill, methods=["POST"]),
        Route(f"{_EXECUTION}/send_std_in", handlers.send_std_in, methods=["POST"]),
        Route(f"{_EXECUTION}/stream_stdout_updates", handlers.stream_stdout, methods=["GET"]),
        Route(f"{_EXECUTION}/stream_stderr_updates", handlers.stream_stderr, methods=["GET"]),
    ]


class _Handlers:
    def __init__(self, executions: Executions) -> None:
        self._executions = executions

    async def execute(self, request: Request) -> Response:
        body = await wire.parse(request, _ExecuteBody)
        if body.attach_stdin:
            raise BadRequest("attach_stdin: not supported by execute; use execute_async.")
        devbox_id, lines = wire.path_id(request), _lines(request)
        command = CommandRequest(command=body.command, shell_name=body.shell_name, command_id=body.command_id)
        identity = await self._executions.start(devbox_id, command, wire.request_key(request))
        hold = hold_time(body.optimistic_timeout, default=MAX_HOLD_S, limit=MAX_HOLD_S)
        try:
            shown = await while_connected(
                request, lambda: self._executions.wait(devbox_id, identity, timeout=hold, lines=lines)
            )
        except WaitExpired:
            shown = await self._executions.view(devbox_id, identity, lines=lines)
        return wire.reply(shown)

    async def execute_async(self, request: Request) -> Response:
        body = await wire.parse(request, _AsyncBody)
        command = CommandRequest(command=body.command, shell_name=body.shell_name, attach_stdin=bool(body.attach_stdin))
        devbox_id = wire.path_id(request)
        identity = await self._executions.start(devbox_id, command, wire.request_key(request))
        return wire.reply(await self._executions.view(devbox_id, identity))

    async def execute_sync(self, request: Request) -> Response:
        body = await wire.parse(request, _AsyncBody)
        if body.attach_stdin:
            raise BadRequest("attach_stdin: not supported by execute_sync; use execute_async.")
        devbox_id = wire.path_id(request)
        command = CommandRequest(command=body.command, shell_name=body.shell_name)
        identity = await self._executions.start(devbox_id, command, wire.request_key(request))
        shown = await while_connected(
            request,
            lambda: self._executions.wait(
                devbox_id, identity, timeout=SYNC_HOLD_S, lines=None, limit=SYNC_OUTPUT_BYTES
            ),
        )
        names = {"devbox_id", "exit_status", "stdout", "stderr", "shell_name"}
        return wire.reply({name: value for name, value in view(shown).items() if name in names})

    async def retrieve(self, request: Request) -> Response:
        return wire.reply(await self._executions.view(*_ids(request), lines=_lines(request)))

    async def wait_for_status(self, request: Request) -> Response:
        body = await wire.parse(request, _WaitExecutionBody)
        devbox_id, identity = _ids(request)
        hold = hold_time(body.timeout_seconds, default=MAX_HOLD_S, limit=MAX_HOLD_S)
        lines = _lines(request)
        shown = await while_connected(
            request,
            lambda: self._executions.wait(devbox_id, identity, statuses=body.statuses, timeout=hold, lines=lines),
        )
        return wire.reply(shown)

    async def kill(self, request: Request) -> Response:
        return wire.reply(await self._executions.kill(*_ids(request)))

    async def send_std_in(self, request: Request) -> Response:
        body = await wire.parse(request, _InputBody)
        if body.text is None and body.signal is None:
            raise BadRequest("The body needs text or signal.")
        devbox_id, identity = _ids(request)
        await self._executions.send(devbox_id, identity, text=body.text, signal=body.signal)
        return wire.reply({"devbox_id": devbox_id, "execution_id": identity, "success": True})

    async def stream_stdout(self, request: Request) -> Response:
        return await self._stream(request, "stdout")

    async def stream_stderr(self, request: Request) -> Response:
        return await self._stream(request, "stderr")

    async def _stream(self, request: Request, stream: str) -> Response:
        """Send a stream as server-sent events; a comment in every pause shows clients that the connection lives."""
        chunks = await self._executions.stream(
            *_ids(request), stream, offset=_number(request, "offset", 0), pause=PAUSE_S
        )

        async def events() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                yield b": ka\n\n" if chunk is None else b"data: " + orjson.dumps(chunk) + b"\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


def _ids(request: Request) -> tuple[str, str]:
    return wire.path_id(request), wire.path_id(request, "execution_id")


def _lines(request: Request) -> int:
    return _number(request, "last_n", DEFAULT_LINES)


def _number(request: Request, name: str, default: int) -> int:
    """Raises BadRequest for a query parameter that is not a whole number of at least 0."""
    text = request.query_params.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or len(text) > wire.MAX_DIGITS:
        raise BadRequest(f"{name}: expected a whole number of at least 0, got {text[:100]!r}.")
    return int(text)
