"""The way of a request: no faster than the rate, and an answer without an end costs neither memory nor the loop."""

import sys
import textwrap
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from orchestrator.agentkit.agent import whole
from orchestrator.core.errors import Unavailable
from orchestrator.endpoint import http
from orchestrator.endpoint.gateway import Gateway
from orchestrator.testing.clock import run_virtually

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
from orchestrator.testing.clock import run_virtually
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


class Inner(httpx.AsyncBaseTransport):
    """Notes when each request left, by its path."""

    def __init__(self) -> None:
        self.left: dict[str, list[float]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.left.setdefault(request.url.path, []).append(anyio.current_time())
        return httpx.Response(200)


def leave(rate: float | None, *paths: str) -> dict[str, list[float]]:
    """The times at which requests to these paths leave that are all asked for at once."""
    inner = Inner()

    async def main() -> None:
        async with httpx.AsyncClient(transport=http.Throttle(inner, rate)) as asker, anyio.create_task_group() as tasks:
            for path in paths:
                tasks.start_soon(_get, asker, path)

    def _get(asker: httpx.AsyncClient, path: str) -> Coroutine[Any, Any, httpx.Response]:
        return asker.get(f"http://x{path}")

    run_virtually(main)
    return inner.left


@pytest.mark.parametrize(("rate", "burst"), [(20, 2), (5, 1), (0.5, 1), (200, 20)])
def test_requests_leave_no_faster_than_the_rate_after_a_small_burst(rate: float, burst: int) -> None:
    left = leave(rate, *["/v1/x"] * 100)["/v1/x"]
    assert left[-1] - left[0] == pytest.approx((100 - burst) / rate, rel=0.02)
    assert max(sum(start <= time < start + 1 for time in left) for start in left) <= rate + burst + 1


def test_a_rate_that_is_set_holds_at_once_also_for_what_waits() -> None:
    inner = Inner()

    async def main() -> None:
        throttle = http.Throttle(inner, 0.01)
        async with httpx.AsyncClient(transport=throttle) as asker, anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(asker.get, "http://x/v1/x")
            await anyio.sleep(1)
            throttle.limit(10)

    run_virtually(main)
    left = inner.left["/v1/x"]
    assert len(left) == 10
    assert left[-1] - left[0] == pytest.approx(1 + 8 / 10, abs=0.2)


def test_without_a_rate_nothing_waits() -> None:
    left = leave(None, *["/v1/x"] * 100)["/v1/x"]
    assert left[-1] - left[0] < 0.1


def test_waits_draw_from_a_limiter_of_their_own() -> None:
    waits = ["/v1/devboxes/d/wait_for_status"] * 100
    left = leave(10, *waits, "/v1/devboxes/d")
    assert left["/v1/devboxes/d"][0] < 1
    assert left[waits[0]][-1] > 9
