"""OpenAI's Responses, which came after Chat Completions."""

from collections.abc import Iterator

from starlette.responses import Response

from .exchange import CREATED, Ask, Json, Reply, Tool, Usage, as_document, as_events, in_halves, new_id


class Responses:
    def read(self, body: Json, path: str) -> Ask:
        del path
        items = body["input"] if isinstance(body["input"], list) else []
        functions = [tool for tool in body.get("tools") or () if tool["type"] == "function"]
        return Ask(
            model=body["model"],
            is_stream=bool(body.get("stream")),
            tools=tuple(Tool(name=tool["name"], schema=tool.get("parameters", {})) for tool in functions),
            calls=sum(str(item.get("type", "")).endswith("_call") for item in items),
            body=body,
        )

    def answer(self, ask: Ask, reply: Reply) -> Response:
        item = self._item(reply)
        response = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": CREATED,
            "status": "completed",
            "model": ask.model,
            "output": [item],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "usage": self._usage(reply.usage),
        }
        if not ask.is_stream:
            return as_document(response)
        stream = self._stream(response, item, reply)
        return as_events(({**event, "sequence_number": n} for n, event in enumerate(stream)), is_named=True)

    def _stream(self, response: Json, item: Json, reply: Reply) -> Iterator[Json]:
        started = {**response, "status": "in_progress", "output": [], "usage": None}
        yield {"type": "response.created", "response": started}
        place = {"output_index": 0, "item_id": item["id"]}
        if reply.call is None:
            empty = {**item, "status": "in_progress", "content": []}
            part = {"type": "output_text", "text": "", "annotations": []}
            yield {"type": "response.output_item.added", "output_index": 0, "item": empty}
            yield {"type": "response.content_part.added", **place, "content_index": 0, "part": part}
            for half in in_halves(reply.text):
                yield {"type": "response.output_text.delta", **place, "content_index": 0, "delta": half}
            yield {"type": "response.output_text.done", **place, "content_index": 0, "text": reply.text}
            whole = {**part, "text": reply.text}
            yield {"type": "response.content_part.done", **place, "content_index": 0, "part": whole}
        else:
            empty = {**item, "status": "in_progress", "arguments": ""}
            yield {"type": "response.output_item.added", "output_index": 0, "item": empty}
            for half in in_halves(reply.call.text):
                yield {"type": "response.function_call_arguments.delta", **place, "delta": half}
            yield {"type": "response.function_call_arguments.done", **place, "arguments": reply.call.text}
        yield {"type": "response.output_item.done", "output_index": 0, "item": item}
        yield {"type": "response.completed", "response": response}

    def _item(self, reply: Reply) -> Json:
        if reply.call is None:
            text = {"type": "output_text", "text": reply.text, "annotations": []}
            return {
                "type": "message",
                "id": new_id("msg"),
                "status": "completed",
                "role": "assistant",
                "content": [text],
            }
        return {
            "type": "function_call",
            "id": new_id("fc"),
            "call_id": new_id("call"),
            "status": "completed",
            "name": reply.call.name,
            "arguments": reply.call.text,
        }

    def _usage(self, usage: Usage) -> Json:
        return {
            "input_tokens": usage.input,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.input + usage.output,
        }
