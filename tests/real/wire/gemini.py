"""Google's generateContent: the model, and whether it streams, are in the path."""

from starlette.responses import Response

from .exchange import Ask, Json, Reply, Tool, as_document, as_events, new_id


class Gemini:
    def read(self, body: Json, path: str) -> Ask:
        spoken = [content for content in body["contents"] if content.get("role") == "model"]
        declared = [one for tool in body.get("tools") or () for one in tool.get("functionDeclarations", ())]
        return Ask(
            model=path.rpartition("/")[2].partition(":")[0],
            is_stream=path.endswith(":streamGenerateContent"),
            tools=tuple(
                Tool(name=one["name"], schema=one.get("parametersJsonSchema") or one.get("parameters") or {})
                for one in declared
            ),
            calls=sum("functionCall" in part for content in spoken for part in content["parts"]),
            body=body,
        )

    def answer(self, ask: Ask, reply: Reply) -> Response:
        part: Json = {"text": reply.text}
        if reply.call is not None:
            part = {"functionCall": {"name": reply.call.name, "args": reply.call.arguments}}
        document = {
            "candidates": [{"index": 0, "content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}],
            "usageMetadata": {
                "promptTokenCount": reply.usage.input,
                "cachedContentTokenCount": reply.usage.cached,
                "candidatesTokenCount": reply.usage.output,
                "totalTokenCount": reply.usage.input + reply.usage.output,
            },
            "modelVersion": ask.model,
            "responseId": new_id("r"),
        }
        return as_events([document]) if ask.is_stream else as_document(document)
