"""A model server on loopback that plays a script: real agents talk to it and cannot tell it from the world's.

It speaks Anthropic Messages, OpenAI Chat Completions and Responses, and Gemini's generateContent, streaming or not. The
script is the shortest that proves an agent: the first reply calls whatever shell tool the request offers, with the
command that mends the scenario; the next says that it is done. What differs between protocols is in `wire/`.

    with serving(Script(fixes=solutions(BUGFIX_MINI))) as server:
        server.url          # http://127.0.0.1:PORT, without /v1
        server.requests     # everything that was asked, unknown paths too (those are answered with 404)
        server.total        # the usage of all replies so far, as the agent should have counted it

A script keeps no state: where it stands is in the conversation that each request carries, so any number of agents may
talk to it at once.
"""

import base64
import io
import socket
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as Incoming
from starlette.responses import Response
from starlette.routing import Route

from .wire.exchange import Ask, Reply, Usage
from .wire.paths import aside, protocol_of, spoken_to

BUGFIX_MINI: Final = Path(__file__).parents[2] / "orchestrator" / "benchmarks" / "bugfix-mini"
#: Two scripted replies to an agent: different numbers, so that a sum is told from the last and from a double count.
MENDING: Final = Usage(input=1000, cached=200, output=30)
ENDING: Final = Usage(input=1300, cached=900, output=12)
#: The words of the last reply.
DONE: Final = "The problem is mended."


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The model's lines.

    `fixes` are shell commands by a part of the problem statement; the first whose part is in the request is taken.
    """

    fixes: Mapping[str, str] = field(default_factory=dict)

    def reply(self, ask: Ask) -> Reply:
        if (fix := self.fix(ask)) and not ask.calls and (tool := ask.shell):
            return Reply(call=tool.called_with(fix), usage=MENDING)
        return Reply(text=DONE, usage=ENDING)

    def fix(self, ask: Ask) -> str | None:
        """The command that fixes the scenario that the request is about."""
        return next((fix for part, fix in self.fixes.items() if ask.says(part)), None)


class Submitting(Script):
    """mini-SWE-agent is done when a command prints a certain line."""

    def reply(self, ask: Ask) -> Reply:
        reply = Script.reply(self, ask)
        if reply.call is None and (shell := ask.shell):
            call = shell.called_with("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")
            return Reply(text=reply.text, call=call, usage=reply.usage)
        return reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as it came; `body` is None where it is no JSON object."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server and what it was asked."""

    url: str
    script: Script
    requests: list[Request] = field(default_factory=list)
    conversation: list[tuple[Ask, Reply]] = field(default_factory=list)

    @property
    def total(self) -> Usage:
        """Usage of all replies so far; `input` counts the cached tokens too."""
        usages = [reply.usage for _, reply in self.conversation]
        return Usage(
            input=sum(usage.input for usage in usages),
            cached=sum(usage.cached for usage in usages),
            output=sum(usage.output for usage in usages),
        )

    @property
    def unknown(self) -> list[str]:
        """Method and path of the requests that it had no answer to."""
        return [f"{asked.method} {asked.path}" for asked in self.requests if not _is_known(asked)]


def solutions(benchmark: Path, names: Sequence[str] = ()) -> dict[str, str]:
    """For each scenario of a folder (or those named), the first line of its statement and a command that mends it."""
    folders = [benchmark / name for name in names] or sorted(file.parent for file in benchmark.glob("*/task.toml"))
    return {_first_line(folder / "instruction.md"): solution(folder) for folder in folders}


def solution(scenario: Path) -> str:
    """One shell command that does in the working directory what the scenario's reference solution does.

    It substitutes nothing: some agents refuse commands that do.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(scenario / "solution", arcname=".")
    text = base64.b64encode(packed.getvalue()).decode()
    place = f"/tmp/solution-{scenario.name}"
    unpack = f"mkdir -p {place} && echo {text} | base64 -d | tar -xzf - --no-same-owner -C {place}"
    return f"{unpack} && sed s#/solution/#{place}/#g {place}/solve.sh | bash"


def _first_line(file: Path) -> str:
    return file.read_text().lstrip().splitlines()[0].lstrip("# ").strip()


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    """Serve a script on a free port of 127.0.0.1, from a thread, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(url=f"http://127.0.0.1:{listener.getsockname()[1]}", script=script)
        uvicorn_server = uvicorn.Server(
            uvicorn.Config(_app(server), log_level="error", ws="none", lifespan="off", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            uvicorn_server.should_exit = True
            thread.join(10)


def _app(server: Server) -> Starlette:
    async def answer(incoming: Incoming) -> Response:
        asked = _asked(incoming, await incoming.body())
        server.requests.append(asked)
        protocol = protocol_of(asked.path)
        if asked.method == "POST" and protocol is not None and asked.body is not None:
            ask = protocol.read(asked.body, asked.path)
            reply = server.script.reply(ask)
            server.conversation.append((ask, reply))
            return protocol.answer(ask, reply)
        if asked.path == "/mcp" and asked.body is not None:
            return spoken_to(asked.body, "far_tool")
        return aside(asked.path) or Response(b'{"error":{"message":"there is no such path"}}', status_code=404)

    methods = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"]
    return Starlette(routes=[Route("/{path:path}", answer, methods=methods)])


def _asked(incoming: Incoming, body: bytes) -> Request:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    return Request(
        method=incoming.method,
        path=incoming.url.path,
        headers=dict(incoming.headers),
        body=parsed if isinstance(parsed, dict) else None,
    )


def _is_known(asked: Request) -> bool:
    return protocol_of(asked.path) is not None or aside(asked.path) is not None
