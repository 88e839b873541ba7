"""OpenAI's Chat Completions, which most others speak too."""

from collections.abc import Iterator

from starlette.responses import Response

from .exchange import CREATED, Ask, Call, Json, Reply, Tool, Usage, as_document, as_events, in_halves, new_id


class Chat:
    def read(self, body: Json, path: str) -> Ask:
        del path
        spoken = [message for message in body["messages"] if message["role"] == "assistant"]
        functions = [tool["function"] for tool in body.get("tools") or () if tool["type"] == "function"]
        return Ask(
            model=body["model"],
            is_stream=bool(body.get("stream")),
            tools=tuple(Tool(name=tool["name"], schema=tool.get("parameters", {})) for tool in functions),
            calls=sum(len(message.get("tool_calls") or ()) for message in spoken),
            body=body,
        )

    def answer(self, ask: Ask, reply: Reply) -> Response:
        head = {"id": new_id("chatcmpl"), "created": CREATED, "model": ask.model}
        reason = "stop" if reply.call is None else "tool_calls"
        if ask.is_stream:
            chunk = {**head, "object": "chat.completion.chunk"}
            return as_events(self._stream(chunk, reason, reply), last=b"data: [DONE]\n\n")
        message: Json = {"role": "assistant", "content": reply.text or None}
        if reply.call is not None:
            message["tool_calls"] = [self._call(reply.call)]
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return as_document(
            {**head, "object": "chat.completion", "choices": [choice], "usage": self._usage(reply.usage)}
        )

    def _stream(self, chunk: Json, reason: str, reply: Reply) -> Iterator[Json]:
        def chosen(delta: Json, finish: str | None = None) -> Json:
            return {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        yield chosen({"role": "assistant", "content": "" if reply.call is None else None})
        if reply.call is None:
            for part in in_halves(reply.text):
                yield chosen({"content": part})
        else:
            first, second = in_halves(reply.call.text)
            call = self._call(reply.call)
            call["function"]["arguments"] = first
            yield chosen({"tool_calls": [{"index": 0, **call}]})
            yield chosen({"tool_calls": [{"index": 0, "function": {"arguments": second}}]})
        yield chosen({}, reason)
        yield {**chunk, "choices": [], "usage": self._usage(reply.usage)}

    def _call(self, call: Call) -> Json:
        return {"id": new_id("call"), "type": "function", "function": {"name": call.name, "arguments": call.text}}

    def _usage(self, usage: Usage) -> Json:
        return {
            "prompt_tokens": usage.input,
            "completion_tokens": usage.output,
            "total_tokens": usage.input + usage.output,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
