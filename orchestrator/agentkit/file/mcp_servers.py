"""The file in which an agent's program reads its MCP servers, as the agent's file describes it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.agentkit.file.definition import Mcp
from orchestrator.core.protocol import McpServer


def file_of(mcp: Mcp, servers: Iterable[McpServer]) -> str:
    """Write the file for these servers, each of a transport that `mcp` has a form for."""
    table: dict[str, Any] = {server.name: _filled(mcp.form(server.transport), _values(server)) for server in servers}
    for key in reversed(mcp.servers.split(".") if mcp.servers else []):
        table = {key: table}
    if mcp.format == "toml":
        return "".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in table.items())
    return f"{json.dumps(table, indent=2)}\n"


def _values(server: McpServer) -> Mapping[str, Any]:
    given = {**asdict(server), "args": list(server.args)}
    return {f"{{{name}}}": value for name, value in given.items()}


def _filled(form: Any, values: Mapping[str, Any]) -> Any:
    """Put the values in their places. An empty one leaves its key out, and one that is a list joins a list."""
    if isinstance(form, str):
        return values.get(form, form)
    if isinstance(form, list):
        items: list[Any] = []
        for each in form:
            value = _filled(each, values)
            items += value if isinstance(each, str) and isinstance(value, list) else [value]
        return items
    if isinstance(form, dict):
        left_out = {key for key, each in form.items() if isinstance(each, str) and not values.get(each, True)}
        return {key: _filled(each, values) for key, each in form.items() if key not in left_out}
    return form


def _toml(value: Any) -> str:
    """Write a value in one line. The escapes of JSON are TOML's too, but for one that JSON does not need."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml(key)} = {_toml(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
