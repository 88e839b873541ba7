"""Endless answers of an endpoint, and endless files of a devbox, cost the sweep neither memory nor time of its loop."""

import sys
import textwrap
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from orchestrator.agentkit.agent import whole
from orchestrator.core.errors import Unavailable
from orchestrator.endpoint import http
from orchestrator.endpoint.gateway import Gateway

from .conftest import RUN, Misbehaving

pytestmark = pytest.mark.anyio

FILE, LOGS = "/devboxes/dbx_1/download_file", "/devboxes/dbx_1/logs"
OUTPUT = "/devboxes/dbx_1/executions/exec_1/stream_stdout_updates"


async def endless(piece: bytes) -> AsyncIterator[bytes]:
    while True:
        yield piece
        await anyio.lowlevel.checkpoint()


def answer(piece: bytes, kind: str, **headers: str) -> Response:
    return StreamingResponse(endless(piece), media_type=kind, headers=headers)


async def test_no_more_of_an_endless_file_is_read_than_was_asked_for(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on(FILE, answer(bytes(1 << 16), "application/octet-stream"))
    with anyio.fail_after(10), pytest.raises(ValueError, match="/x has more than 1,000,000 bytes"):
        await whole(gateway.read_file("dbx_1", "/x"), "/x", 1_000_000)


async def test_a_download_that_broke_off_continues_where_it_was(gateway: Gateway, endpoint: Misbehaving) -> None:
    data = bytes(range(256)) * 1000

    async def broken() -> AsyncIterator[bytes]:
        yield data[:100_000]
        raise OSError

    async def breaks(request: Request) -> Response:
        return StreamingResponse(broken(), media_type="application/octet-stream")

    endpoint.on(FILE, breaks, Response(data, media_type="application/octet-stream"))
    assert await whole(gateway.read_file("dbx_1", "/x"), "/x", len(data)) == data


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_an_answer_that_is_too_large_is_trouble_on_the_way(
    gateway: Gateway, endpoint: Misbehaving, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 1 << 20)
    flood = StreamingResponse(endless(b" " * 4096), status_code=status, media_type="application/json")
    endpoint.on("/scenarios/runs/scr_1", flood, RUN)
    with anyio.fail_after(10):
        assert (await gateway.run("scr_1")).id == "scr_1"


async def test_an_event_that_does_not_end_is_trouble_on_the_way(
    gateway: Gateway, endpoint: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are of those that do."""
    monkeypatch.setattr(http, "MAX_EVENT_BYTES", 10_000)

    async def events() -> AsyncIterator[bytes]:
        for _ in range(500):
            yield b'data: {"output": "0123456789"}\n\n'

    endpoint.on(
        OUTPUT,
        answer(b"data: x", "text/event-stream"),
        StreamingResponse(events(), media_type="text/event-stream"),
    )
    with anyio.fail_after(10):
        pieces = [piece async for piece, _ in gateway.output("dbx_1", "exec_1")]
    assert pieces == ["0123456789"] * 500


async def test_a_compressed_answer_that_was_not_asked_for_is_not_unpacked(
    gateway: Gateway, endpoint: Misbehaving
) -> None:
    endpoint.on("/scenarios/runs/scr_1", answer(b"x", "application/json", **{"content-encoding": "gzip"}))
    with anyio.fail_after(0.3), pytest.raises(Unavailable, match="'gzip', which was not asked for"):
        await gateway.run("scr_1")
    assert endpoint.requests[0].headers["accept-encoding"] == "identity"


async def test_a_devboxs_log_is_lines_of_text(gateway: Gateway, endpoint: Misbehaving) -> None:
    entries = [
        {"source": "exec", "level": "info", "timestamp_ms": 1, "cmd": "true"},
        {"source": "exec", "level": "error", "timestamp_ms": 2, "message": "no"},
        {"source": "exec", "level": "info", "timestamp_ms": 3},
    ]
    endpoint.on(LOGS, {"logs": entries})
    assert await gateway.devbox_log("dbx_1") == "exec info true\nexec error no\nexec info \n"


#: Serves /dev/zero in the thread of another process, and reads it here into an attempt's folder.
READING = """
import anyio, resource, sys
from contextlib import aclosing
from orchestrator.endpoint.gateway import Gateway
from orchestrator.agentkit.agent import whole

async def beat(gaps):
    last = anyio.current_time()
    while True:
        await anyio.sleep(0.001)
        now = anyio.current_time()
        gaps.append(now - last)
        last = now

async def main(url):
    async with Gateway.open(url, "secret", rate=None) as gateway, anyio.create_task_group() as tasks:
        await gateway.devbox_log("dbx_1")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        gaps = []
        tasks.start_soon(beat, gaps)
        try:
            await whole(gateway.read_file("dbx_1", "/x"), "/x", 8 << 20)
        except ValueError:
            pass
        size = 0
        async with aclosing(gateway.read_file("dbx_1", "/x")) as pieces:
            async for piece in pieces:
                size += len(piece)
                if size > 300 << 20:
                    break
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, max(gaps))
        tasks.cancel_scope.cancel()

anyio.run(main, sys.argv[1])
"""


async def test_a_devboxs_file_costs_little_memory_and_does_not_hold_the_loop(endpoint: Misbehaving) -> None:
    """Measured in a process of its own: its peak above what it needs anyway, and the longest pause of its loop."""
    endpoint.on(FILE, answer(bytes(1 << 16), "application/octet-stream"))
    endpoint.on(LOGS, {"logs": []})
    words = [sys.executable, "-c", textwrap.dedent(READING), endpoint.url]
    ended = await anyio.run_process(words, stderr=None)
    mebibytes, gap = map(float, ended.stdout.split())
    assert mebibytes <= 64
    assert gap < 0.05
