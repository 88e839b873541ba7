"""A server of the Model Context Protocol with one tool: its answers, and a program that gives them on its output.

It runs by itself in a devbox, so it uses the standard library only.
"""

import json
import sys
from typing import Any


def answer(asked: dict[str, Any], tool: str) -> dict[str, Any] | None:
    """Answer a message; None for one that wants no answer."""
    if "id" not in asked:
        return None
    result: dict[str, Any]
    match asked["method"]:
        case "initialize":
            version = asked["params"]["protocolVersion"]
            result = {
                "protocolVersion": version,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": tool, "version": "1"},
            }
        case "tools/list":
            schema = {"type": "object", "properties": {}}
            result = {"tools": [{"name": tool, "description": "Tells the number.", "inputSchema": schema}]}
        case "tools/call":
            result = {"content": [{"type": "text", "text": "42"}]}
        case _:
            return {
                "jsonrpc": "2.0",
                "id": asked["id"],
                "error": {"code": -32601, "message": "there is no such method"},
            }
    return {"jsonrpc": "2.0", "id": asked["id"], "result": result}


if __name__ == "__main__":
    for line in sys.stdin:
        if (answered := answer(json.loads(line), sys.argv[1])) is not None:
            sys.stdout.write(json.dumps(answered) + "\n")
            sys.stdout.flush()
