"""The gateway against an endpoint that misbehaves."""

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import orjson
import pytest
from anyio.abc import SocketStream
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from orchestrator.agentkit.agent import whole
from orchestrator.core.errors import (
    Conflicted,
    DevboxFailed,
    DevboxLost,
    Missing,
    Refused,
    Throttled,
    Unauthorized,
    Unavailable,
    WorldError,
)
from orchestrator.core.records import Benchmark, Needs
from orchestrator.endpoint.gateway import Gateway
from tests.waiting import until

from .conftest import RUN, Misbehaving

pytestmark = pytest.mark.anyio

DEVBOX = {"id": "dbx_1", "status": "running"}
EXECUTION = {"execution_id": "exec_1", "devbox_id": "dbx_1", "status": "completed", "exit_status": 0}
RUN_PATH, DEVBOX_PATH = "/scenarios/runs/scr_1", "/devboxes/dbx_1"
WAIT = f"{DEVBOX_PATH}/wait_for_status"
EXECUTION_PATH = f"{DEVBOX_PATH}/executions/exec_1"
STREAM = f"{EXECUTION_PATH}/stream_stdout_updates"
BENCHMARK = Benchmark(id="bmd_1", name="b", scenario_ids=())
#: Seconds that leave time for a second call, made after 0.125 to 0.25 s, and never for a third.
LAST_CALL = 0.37


def failing(status: int, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"message": "no"}, status_code=status, headers=named)


async def test_an_endpoint_that_stumbles_is_asked_again(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on(RUN_PATH, failing(500), failing(502), RUN)
    run = await gateway.run("scr_1")
    assert (run.id, run.devbox_id, run.state, run.score) == ("scr_1", "dbx_1", "running", None)
    assert endpoint.calls[RUN_PATH] == 3


async def test_retry_after_is_honoured_and_nothing_retries_in_between(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on(RUN_PATH, failing(429, retry_after="0.8"), RUN)
    began = anyio.current_time()
    await gateway.run("scr_1")
    assert anyio.current_time() - began >= 0.8
    assert endpoint.calls[RUN_PATH] == 2


async def test_with_no_time_left_the_endpoints_own_words_are_raised(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on(RUN_PATH, failing(503))
    with anyio.fail_after(LAST_CALL), pytest.raises(Unavailable, match=r"reading run scr_1: no \(HTTP 503\)"):
        await gateway.run("scr_1")


async def test_a_dead_endpoint_is_not_hammered(endpoint: Misbehaving) -> None:
    """Every connection is closed at once."""
    connections = 0

    async def hang_up(stream: SocketStream) -> None:
        nonlocal connections
        connections += 1
        await stream.aclose()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, hang_up)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with Gateway.open(f"http://127.0.0.1:{port}", "secret", rate=None) as gateway:
            with anyio.fail_after(0.86), pytest.raises(Unavailable, match="reading run scr_1"):
                await gateway.run("scr_1")
        tasks.cancel_scope.cancel()
    assert 1 < connections < 10


@pytest.mark.parametrize("page", [HTMLResponse("<h1>Sorry</h1>"), Response("<oops", media_type="application/json")])
async def test_a_page_in_place_of_json_is_an_endpoint_in_trouble(
    gateway: Gateway, endpoint: Misbehaving, page: Response
) -> None:
    endpoint.on(RUN_PATH, page, page, RUN)
    assert (await gateway.run("scr_1")).id == "scr_1"
    endpoint.on(RUN_PATH, page)
    with anyio.fail_after(LAST_CALL), pytest.raises(Unavailable, match="not JSON"):
        await gateway.run("scr_1")


async def test_a_list_that_is_cut_short_is_asked_for_again(gateway: Gateway, endpoint: Misbehaving) -> None:
    cut = Response('{"benchmarks": [{"id"', media_type="application/json")
    endpoint.on("/benchmarks", cut, {"benchmarks": [{"id": "b", "name": "b"}], "has_more": False})
    endpoint.on("/benchmarks/list_public", {"benchmarks": [], "has_more": False})
    assert [benchmark.id for benchmark in await gateway.benchmarks()] == ["b"]


async def test_an_address_that_is_no_endpoint_is_named_when_the_time_is_over(
    gateway: Gateway, endpoint: Misbehaving
) -> None:
    endpoint.on("/benchmarks", HTMLResponse("<h1>Welcome</h1>"))
    with anyio.fail_after(LAST_CALL), pytest.raises(Unavailable, match="listing the benchmarks"):
        await gateway.benchmarks()


Call = Callable[[Gateway], Coroutine[Any, Any, Any]]
CALLS: dict[str, Call] = {
    RUN_PATH: lambda gateway: gateway.run("scr_1"),
    f"{RUN_PATH}/score": lambda gateway: gateway.score("scr_1", key="k"),
    DEVBOX_PATH: lambda gateway: gateway.devbox("dbx_1"),
    WAIT: lambda gateway: gateway.wait_running("dbx_1"),
    f"{DEVBOX_PATH}/execute_async": lambda gateway: gateway.execute("dbx_1", "true", key="k"),
    f"{EXECUTION_PATH}/wait_for_status": lambda gateway: gateway.wait_completed("dbx_1", "exec_1"),
    f"{DEVBOX_PATH}/logs": lambda gateway: gateway.devbox_log("dbx_1"),
    "/scenarios/scn_1": lambda gateway: gateway.scenario("scn_1"),
    "/benchmark_runs/bmr_1": lambda gateway: gateway.benchmark_run("bmr_1"),
    "/benchmarks": lambda gateway: gateway.benchmarks(),
    "/benchmarks/bmd_1/definitions": lambda gateway: gateway.summaries(BENCHMARK),
    "/benchmark_runs": lambda gateway: gateway.list_benchmark_runs(),
    "/scenarios/runs": lambda gateway: gateway.list_runs(),
    "/devboxes": lambda gateway: gateway.list_devboxes(),
    "/secrets": lambda gateway: gateway.secret_names(),
    "/sweep": lambda gateway: gateway.features(),
    f"{RUN_PATH}/complete": lambda gateway: gateway.complete("scr_1"),
    f"{RUN_PATH}/cancel": lambda gateway: gateway.cancel("scr_1"),
    "/benchmark_runs/bmr_1/complete": lambda gateway: gateway.complete_benchmark_run("bmr_1"),
    "/benchmark_runs/bmr_1/cancel": lambda gateway: gateway.cancel_benchmark_run("bmr_1"),
    f"{DEVBOX_PATH}/shutdown": lambda gateway: gateway.shutdown("dbx_1"),
    f"{EXECUTION_PATH}/kill": lambda gateway: gateway.kill("dbx_1", "exec_1"),
}
#: The others say nothing but that all is well: for them an object is an answer.
RECEIPTS: dict[str, Call] = {
    f"{DEVBOX_PATH}/upload_file": lambda gateway: gateway.write_file("dbx_1", "/x", b"x"),
    f"{DEVBOX_PATH}/download_file": lambda gateway: whole(gateway.read_file("dbx_1", "/x"), "/x", 1 << 20),
}
STRANGE = [
    *(HTMLResponse("<h1>Welcome to the hotel</h1>"), Response(status_code=204), JSONResponse(None), JSONResponse([])),
    *(HTMLResponse("<h1>Nothing here</h1>", status) for status in (302, 401, 403, 404, 409)),
    JSONResponse({}, 404),
]


async def is_made_again(call: Call, gateway: Gateway, endpoint: Misbehaving, path: str) -> None:
    """Returns when it is, and raises what the call raises before."""
    endpoint.calls.clear()

    async def ask() -> None:
        try:
            await call(gateway)
        except Unavailable:  # a call that is canceled in its worker thread has no time for another try
            if endpoint.calls[path] < 2:
                raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await until(lambda: endpoint.calls[path] >= 2, "it is asked once")
        tasks.cancel_scope.cancel()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between two tries."""
    monkeypatch.setattr("orchestrator.endpoint.calls.FIRST_PAUSE_S", 0.0)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("path", [*CALLS, *RECEIPTS])
async def test_an_answer_of_another_server_is_a_network_fault_and_is_retried(
    gateway: Gateway, endpoint: Misbehaving, path: str
) -> None:
    for answer in STRANGE:
        endpoint.on(path, answer)
        await is_made_again({**CALLS, **RECEIPTS}[path], gateway, endpoint, path)


async def test_a_redirection_is_not_followed(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on("/login", {**RUN, "state": "completed"})
    endpoint.on(RUN_PATH, Response(status_code=302, headers={"location": f"{endpoint.url}/v1/login"}), RUN)
    assert (await gateway.run("scr_1")).state == "running"
    assert endpoint.calls["/login"] == 0


async def test_a_request_that_cannot_be_sent_is_refused_at_once(gateway: Gateway, endpoint: Misbehaving) -> None:
    """Half of a surrogate pair is a word of ours that UTF-8 cannot express; the endpoint is not asked."""
    with anyio.fail_after(5), pytest.raises(Refused, match="surrogates not allowed"):
        await gateway.execute("dbx_1", "echo \ud83d", key="k")
    with anyio.fail_after(5), pytest.raises(Refused, match="surrogates not allowed"):
        await gateway.write_file("dbx_1", "/\ud83d", b"x")
    assert not endpoint.requests


async def test_a_thing_that_was_not_asked_for_is_no_answer(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on(f"{RUN_PATH}/complete", {**RUN, "id": "scr_2"}, {**RUN, "state": "completed"})
    await gateway.complete("scr_1")
    assert endpoint.calls[f"{RUN_PATH}/complete"] == 2


@pytest.mark.parametrize("status", [401, 403])
async def test_a_word_against_our_key_is_believed_when_it_comes_a_third_time_in_a_row(
    gateway: Gateway, endpoint: Misbehaving, status: int
) -> None:
    refusal = JSONResponse({"message": "not with this key"}, status)
    endpoint.on(RUN_PATH, refusal, refusal, RUN, refusal, refusal, RUN)
    for _ in range(2):
        assert (await gateway.run("scr_1")).id == "scr_1"
    endpoint.on(RUN_PATH, refusal)
    with anyio.fail_after(10), pytest.raises(Unauthorized, match="not with this key"):
        await gateway.run("scr_1")
    assert endpoint.calls[RUN_PATH] == 9


async def test_requests_that_were_refused_together_were_refused_once(gateway: Gateway, endpoint: Misbehaving) -> None:
    """A proxy that refuses for an instant refuses all that is on its way."""
    together, arrived = 8, anyio.Event()

    async def refuse(_: Request) -> Response:
        if endpoint.calls[RUN_PATH] >= together:
            arrived.set()
        await arrived.wait()
        return JSONResponse({"message": "not with this key"}, 403)

    endpoint.on(RUN_PATH, *[refuse] * together, RUN)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(together):
                tasks.start_soon(gateway.run, "scr_1")
    assert endpoint.calls[RUN_PATH] == 2 * together


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("path", CALLS)
async def test_an_answer_of_the_wrong_shape_is_nobodys_and_the_call_is_made_again(
    gateway: Gateway, endpoint: Misbehaving, path: str
) -> None:
    """Never a mistake of ours, and never taken for an answer."""
    answers: list[object] = [5, "text", {}, {"id": None}, {"benchmarks": [{}]}, {"logs": 7}]
    for answer in answers:
        endpoint.on(path, JSONResponse(answer))
        await is_made_again(CALLS[path], gateway, endpoint, path)


async def test_a_field_missing_from_a_view_is_named(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on(RUN_PATH, {**RUN, "devbox_id": None})
    with (
        anyio.fail_after(LAST_CALL),
        pytest.raises(Unavailable, match=r"reading run scr_1: .* it lacks a run's devbox"),
    ):
        await gateway.run("scr_1")


async def test_three_hundred_waits_are_held_at_once(gateway: Gateway, endpoint: Misbehaving) -> None:
    everybody_waits, waiting = anyio.Event(), 0

    async def hold(request: Request) -> Response:
        nonlocal waiting
        waiting += 1
        if waiting == 300:
            everybody_waits.set()
        await everybody_waits.wait()
        return JSONResponse(DEVBOX)

    endpoint.on(WAIT, hold)
    endpoint.on(DEVBOX_PATH, DEVBOX)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(300):
                tasks.start_soon(gateway.wait_running, "dbx_1")
            await everybody_waits.wait()
            assert (await gateway.devbox("dbx_1")).status == "running"


async def test_a_wait_continues_through_expiry_faults_and_unfinished_answers(
    gateway: Gateway, endpoint: Misbehaving
) -> None:
    endpoint.on(WAIT, failing(408), failing(503), {**DEVBOX, "status": "provisioning"}, DEVBOX)
    assert (await gateway.wait_running("dbx_1")).status == "running"
    running = {**EXECUTION, "status": "running", "exit_status": None}
    endpoint.on(f"{EXECUTION_PATH}/wait_for_status", running, EXECUTION)
    execution = await gateway.wait_completed("dbx_1", "exec_1")
    assert (execution.is_completed, execution.exit_status) == (True, 0)


async def test_a_devbox_that_will_never_run_says_why(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on(WAIT, {**DEVBOX, "status": "failure", "failure_reason": "out_of_disk"})
    with pytest.raises(DevboxFailed, match="dbx_1 never ran: out_of_disk"):
        await gateway.wait_running("dbx_1")


@pytest.mark.parametrize("status", [400, 404, 409])
async def test_a_refusal_by_a_dead_devbox_is_a_lost_devbox(
    gateway: Gateway, endpoint: Misbehaving, status: int
) -> None:
    endpoint.on(f"{DEVBOX_PATH}/execute_async", failing(status))
    endpoint.on(DEVBOX_PATH, {**DEVBOX, "status": "shutdown"})
    with pytest.raises(DevboxLost, match="dbx_1 is gone: shutdown"):
        await gateway.execute("dbx_1", "true", key="k")
    endpoint.on(DEVBOX_PATH, DEVBOX)
    with pytest.raises((Missing, Conflicted), match="running a command in devbox dbx_1"):
        await gateway.execute("dbx_1", "true", key="k")


async def test_an_agent_killed_with_its_devbox_is_a_lost_devbox(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on(f"{EXECUTION_PATH}/wait_for_status", {**EXECUTION, "exit_status": 137})
    endpoint.on(DEVBOX_PATH, {**DEVBOX, "status": "failure"})
    with pytest.raises(DevboxLost):
        await gateway.wait_completed("dbx_1", "exec_1")
    endpoint.on(DEVBOX_PATH, DEVBOX)
    assert (await gateway.wait_completed("dbx_1", "exec_1")).exit_status == 137


async def test_ending_a_run_that_is_over_is_no_failure(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on(f"{RUN_PATH}/cancel", failing(400))
    endpoint.on(RUN_PATH, {**RUN, "state": "completed"})
    await gateway.cancel("scr_1")
    endpoint.on(RUN_PATH, RUN)
    with pytest.raises(Conflicted):
        await gateway.cancel("scr_1")


async def test_a_call_with_a_key_carries_it_in_every_try(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on(f"{RUN_PATH}/score", failing(500), {**RUN, "state": "scoring"})
    await gateway.score("scr_1", key="the-key")
    assert [request.headers["x-request-id"] for request in endpoint.requests] == ["the-key", "the-key"]
    assert {request.headers["authorization"] for request in endpoint.requests} == {"Bearer secret"}


async def test_definitions_are_read_page_by_page_and_come_in_the_benchmarks_order(
    gateway: Gateway, endpoint: Misbehaving
) -> None:
    def view(name: str) -> dict[str, object]:
        metadata = {"digest": "d", "agent_timeout_sec": "90" if name == "a" else "never"}
        return {"id": name, "name": name, "metadata": metadata, "input_context": {}, "scoring_contract": {}}

    endpoint.on("/benchmarks", {"benchmarks": [{"id": "b", "name": "b", "scenarioIds": ["c", "a"]}], "has_more": False})
    endpoint.on("/benchmarks/list_public", {"benchmarks": [], "has_more": False})
    endpoint.on(
        "/benchmarks/b/definitions",
        {"scenarios": [view("a"), view("b")], "has_more": True},
        failing(500),
        {"scenarios": [view("c")], "has_more": False},
    )
    [benchmark] = await gateway.benchmarks()
    summaries = await gateway.summaries(benchmark)
    assert [summary.id for summary in summaries] == ["c", "a", "b"]
    assert [summary.agent_timeout for summary in summaries] == [None, 90, None]
    cursors = [r.query_params.get("starting_after") for r in endpoint.requests if "definitions" in r.url.path]
    assert cursors == [None, "b", "b"]


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_a_proxy_in_the_environment_does_not_catch_loopback(
    endpoint: Misbehaving, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    endpoint.on(RUN_PATH, RUN)
    with anyio.fail_after(5):
        async with Gateway.open(endpoint.url, "secret", rate=None) as gateway:
            assert (await gateway.run("scr_1")).id == "scr_1"


class Output:
    """A command's output behind a connection that drops after some bytes, again and again."""

    def __init__(self, text: str, *, drops_after: int, says: str = "end", piece: int = 3) -> None:
        self.text = text
        self.drops_after = drops_after
        self.says = says
        self.piece = piece
        self.asked: list[int] = []

    async def __call__(self, request: Request) -> Response:
        offset = int(request.query_params["offset"])
        self.asked.append(offset)
        return StreamingResponse(self._chunks(offset), media_type="text/event-stream")

    async def _chunks(self, offset: int) -> AsyncIterator[bytes]:
        data, begun_at = self.text.encode(), offset
        yield b": ka\n\n"
        while offset < len(data):
            if offset - begun_at >= self.drops_after:
                yield b'data: {"output": "half an ev'
                raise ConnectionError("the cable was pulled")
            piece = data[offset:].decode()[: self.piece]
            behind = offset + len(piece.encode())
            said = {"end": {"offset": behind}, "start": {"offset": offset}, "nothing": {}}[self.says]
            yield b"data: " + orjson.dumps({"output": piece} | said) + b"\n\n"
            offset = behind


@pytest.mark.parametrize("says", ["end", "start", "nothing"])
async def test_a_broken_stream_continues_with_nothing_doubled_or_lost(
    gateway: Gateway, endpoint: Misbehaving, says: str
) -> None:
    """Also from endpoints whose offset is the one before a piece, or that say none."""
    output = Output("größer als vorher — 漢字 und mehr\n" * 4, drops_after=60, says=says)
    endpoint.on(STREAM, output)
    with anyio.fail_after(30):
        pieces = [piece async for piece in gateway.output("dbx_1", "exec_1")]
    assert "".join(text for text, _ in pieces) == output.text
    assert pieces[-1][1] == len(output.text.encode())
    assert len(output.asked) > 2
    assert output.asked == sorted(set(output.asked))


async def test_a_page_in_place_of_a_stream_is_not_the_end_of_it(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on(STREAM, HTMLResponse("<h1>Welcome</h1>"), Response(status_code=204), Output("text", drops_after=100))
    assert "".join([text async for text, _ in gateway.output("dbx_1", "exec_1")]) == "text"


async def test_a_stream_can_be_taken_up_at_an_offset(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on(STREAM, Output("0123456789", drops_after=100))
    assert [piece async for piece in gateway.output("dbx_1", "exec_1", 7)] == [("789", 10)]


async def test_a_stream_that_always_breaks_at_once_is_not_hammered(gateway: Gateway, endpoint: Misbehaving) -> None:
    output = Output("text", drops_after=0)
    endpoint.on(STREAM, output)
    with anyio.move_on_after(1.5):
        async for _ in gateway.output("dbx_1", "exec_1"):
            pass
    assert 1 < len(output.asked) < 8


async def test_a_stream_of_a_devbox_that_is_gone_raises(gateway: Gateway, endpoint: Misbehaving) -> None:
    with pytest.raises(WorldError, match="reading the output of exec_1"):
        async for _ in gateway.output("dbx_1", "exec_1"):
            pass


async def test_a_start_that_is_refused_for_now_is_not_asked_for_again_here(
    gateway: Gateway, endpoint: Misbehaving
) -> None:
    """A waiting caller should hold neither a worker nor a deadline."""
    answer = JSONResponse({"message": "slow down"}, 429, {"retry-after": "90"})
    endpoint.on("/scenarios/start_run", answer, RUN)
    with anyio.fail_after(5), pytest.raises(Throttled) as caught:
        await gateway.start_run(
            "scn_1", benchmark_run_id=None, name="n", metadata={}, keep_alive=60, needs=Needs(), key="k"
        )
    assert caught.value.retry_after == 90


async def test_runs_and_devboxes_are_listed_over_all_their_pages(gateway: Gateway, endpoint: Misbehaving) -> None:
    more = RUN | {"id": "scr_2", "metadata": {"sweep": "s"}, "benchmark_run_id": "bmr_1"}
    endpoint.on("/scenarios/runs", {"runs": [RUN], "has_more": True}, {"runs": [more], "has_more": False})
    runs = await gateway.list_runs(benchmark_run="bmr_1")
    assert [(run.id, run.benchmark_run_id) for run in runs] == [("scr_1", None), ("scr_2", "bmr_1")]
    assert runs[1].metadata == {"sweep": "s"}
    endpoint.on("/devboxes", {"devboxes": [{"id": "dbx_1", "status": "running"}], "has_more": False})
    assert [devbox.id for devbox in await gateway.list_devboxes()] == ["dbx_1"]
    endpoint.on("/benchmark_runs", {"runs": [{"id": "bmr_1", "state": "running", "name": "n"}], "has_more": False})
    assert [run.name for run in await gateway.list_benchmark_runs(state="running")] == ["n"]


@pytest.mark.parametrize("status", [400, 404])
async def test_a_devbox_that_is_gone_counts_as_shut_down(gateway: Gateway, endpoint: Misbehaving, status: int) -> None:
    endpoint.on(f"{DEVBOX_PATH}/shutdown", JSONResponse({"message": "gone"}, status))
    await gateway.shutdown("dbx_1")


@pytest.mark.parametrize("verb", ["complete", "cancel"])
async def test_a_benchmark_run_that_is_over_counts_as_ended(gateway: Gateway, endpoint: Misbehaving, verb: str) -> None:
    endpoint.on(f"/benchmark_runs/bmr_1/{verb}", JSONResponse({"message": "it is over"}, 400))
    endpoint.on("/benchmark_runs/bmr_1", {"id": "bmr_1", "state": "completed"}, {"id": "bmr_1", "state": "running"})
    end = gateway.complete_benchmark_run if verb == "complete" else gateway.cancel_benchmark_run
    await end("bmr_1")
    with pytest.raises(Conflicted):
        await end("bmr_1")


async def test_the_names_of_secrets_are_all_there_is_of_them(gateway: Gateway, endpoint: Misbehaving) -> None:
    secrets = [{"id": f"sec_{name}", "name": name, "create_time_ms": 1, "update_time_ms": 1} for name in ("A", "B")]
    endpoint.on("/secrets", {"secrets": secrets, "has_more": False, "total_count": 2})
    assert await gateway.secret_names() == {"A", "B"}


@pytest.mark.parametrize("status", [403, 404, 405])
async def test_an_endpoint_that_keeps_no_secrets_has_none(gateway: Gateway, endpoint: Misbehaving, status: int) -> None:
    endpoint.on("/secrets", JSONResponse({"message": "no"}, status_code=status))
    assert await gateway.secret_names() == frozenset()
