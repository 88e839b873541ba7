"""Anthropic's Messages."""

from collections.abc import Iterator

from starlette.responses import Response

from .exchange import Ask, Json, Reply, Tool, Usage, as_document, as_events, in_halves, new_id


class Messages:
    """Anthropic's: `input_tokens` are those that were not in the cache."""

    def read(self, body: Json, path: str) -> Ask:
        del path
        spoken = [message for message in body["messages"] if message["role"] == "assistant"]
        blocks = [block for message in spoken for block in message["content"] if isinstance(block, dict)]
        tools = body.get("tools", ())
        return Ask(
            model=body["model"],
            is_stream=bool(body.get("stream")),
            tools=tuple(Tool(name=tool["name"], schema=tool.get("input_schema", {})) for tool in tools),
            calls=sum(block["type"] == "tool_use" for block in blocks),
            body=body,
        )

    def answer(self, ask: Ask, reply: Reply) -> Response:
        block = self._block(reply)
        reason = "end_turn" if reply.call is None else "tool_use"
        message = {
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": ask.model,
            "content": [block],
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": self._usage(reply.usage),
        }
        if not ask.is_stream:
            return as_document(message)
        return as_events(self._stream(message, block, reply), is_named=True)

    def _stream(self, message: Json, block: Json, reply: Reply) -> Iterator[Json]:
        started = {**message, "content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 1}}
        yield {"type": "message_start", "message": started}
        empty = {**block, "text": ""} if reply.call is None else {**block, "input": {}}
        yield {"type": "content_block_start", "index": 0, "content_block": empty}
        for part in in_halves(reply.text if reply.call is None else reply.call.text):
            delta = (
                {"type": "text_delta", "text": part}
                if reply.call is None
                else {"type": "input_json_delta", "partial_json": part}
            )
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        yield {"type": "content_block_stop", "index": 0}
        ended = {"stop_reason": message["stop_reason"], "stop_sequence": None}
        yield {"type": "message_delta", "delta": ended, "usage": {"output_tokens": reply.usage.output}}
        yield {"type": "message_stop"}

    def _block(self, reply: Reply) -> Json:
        if reply.call is None:
            return {"type": "text", "text": reply.text}
        return {"type": "tool_use", "id": new_id("toolu"), "name": reply.call.name, "input": reply.call.arguments}

    def _usage(self, usage: Usage) -> Json:
        return {
            "input_tokens": usage.input - usage.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached,
            "output_tokens": usage.output,
        }
