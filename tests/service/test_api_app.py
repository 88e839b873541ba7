"""The application's answers without a result: to strangers, for unknown things, after faults."""

import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.core.protocol import Isolation
from orchestrator.service.assembly import Service
from orchestrator.service.errors import Unwritable, WaitExpired
from orchestrator.service.http.app import Activity, application
from orchestrator.service.sandbox.provider import BoxDied

pytestmark = pytest.mark.anyio

TOKEN = "secret"


@asynccontextmanager
async def service_client(state: Path, token: str | None = TOKEN) -> AsyncIterator[httpx.AsyncClient]:
    async with Service.open(state=state, benchmarks=[], isolation=Isolation.NONE, token=TOKEN) as service:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        transport = httpx.ASGITransport(app=service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as client:
            yield client


def error(answer: httpx.Response, status: int) -> str:
    """The message of a reply that is a failure in the agreed form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"message", "code"}
    assert body["code"] == status
    return str(body["message"])


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}])
async def test_without_the_token_there_is_no_answer(tmp_path: Path, header: dict[str, str]) -> None:
    async with service_client(tmp_path, token=None) as client:
        for path in ("/v1/benchmarks", "/v1/sweep", "/v1/nothing"):
            answer = await client.get(path, headers=header)
            error(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_service_proves_that_it_knows_the_token_before_it_is_sent(tmp_path: Path) -> None:
    async with service_client(tmp_path, token=None) as client:
        answer = (await client.get("/v1/sweep/proof", params={"nonce": "n1"})).json()
        assert answer["proof"] == hmac.new(TOKEN.encode(), b"n1", hashlib.sha256).hexdigest()
        error(await client.get("/v1/sweep/proof"), 400)
        facts = (await client.get("/v1/sweep", headers={"authorization": f"Bearer {TOKEN}"})).json()
        assert facts["service"] == "sweep"
        assert facts["instance"] == answer["instance"]
        assert facts["isolation"] == "none"
        assert "isolated" not in facts["capabilities"]


async def test_a_person_with_a_browser_is_told_what_this_is_and_a_client_sees_no_page(tmp_path: Path) -> None:
    browser = {"accept": "text/html,application/xhtml+xml"}
    async with service_client(tmp_path, token=None) as client:
        page = await client.get("/", headers=browser)
        assert page.status_code == 200
        assert "<code>sweep view</code>" in page.text
        assert "have runs here are listed" in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert "No sweep has runs here" in (await client.get("/", headers=browser, params={"token": TOKEN})).text
        error(await client.get("/"), 401)
        error(await client.post("/", headers=browser), 401)
    async with service_client(tmp_path) as client:
        benchmark = (await client.post("/v1/benchmarks", json={"name": "b"})).json()["id"]
        given = {"benchmark_id": benchmark, "metadata": {"sweep": "<id>", "arm": "a\x1b"}}
        assert (await client.post("/v1/benchmarks/start_run", json=given)).status_code == 200
        page = await client.get("/", headers=browser, params={"token": TOKEN})
        assert "<td>&lt;id&gt;</td><td>a\\x1b</td>" in page.text
        assert "GET /" in error(await client.get("/"), 404)


async def test_an_unknown_route_is_answered_with_what_this_service_is(tmp_path: Path) -> None:
    async with service_client(tmp_path) as client:
        message = error(await client.get("/v1/nothing"), 404)
        assert "GET /v1/nothing" in message
        assert "Runloop-compatible benchmark service; it serves benchmarks" in message
        answer = await client.delete("/v1/benchmarks/bmd_1")
        assert "DELETE /v1/benchmarks/bmd_1" in error(answer, 405)
        assert answer.headers["allow"]
        error(await client.get("/v1/benchmarks/"), 404)


async def test_unknown_ids_are_404_and_named(tmp_path: Path) -> None:
    async with service_client(tmp_path) as client:
        for path in (
            "benchmarks/bmd_0",
            "benchmarks/bmd_0/definitions",
            "benchmarks/bmd_0/runs",
            "benchmark_runs/bmr_0",
            "benchmarks/runs/bmr_0",
            "benchmark_runs/bmr_0/scenario_runs",
            "scenarios/scn_0",
            "scenarios/scn_0/runs",
            "scenarios/runs/scr_0",
            "scenarios/scorers/scs_0",
            "devboxes/dbx_0",
            "blueprints/bpt_0",
            "blueprints/bpt_0/logs",
            "objects/obj_0",
            "objects/obj_0/download",
        ):
            message = error(await client.get(f"/v1/{path}"), 404)
            assert "_0" in message
        for path in (
            "benchmarks/bmd_0",
            "benchmarks/bmd_0/scenarios",
            "benchmark_runs/bmr_0/complete",
            "benchmark_runs/bmr_0/cancel",
            "scenarios/scn_0",
            "scenarios/scn_0/archive",
            "scenarios/runs/scr_0/score",
            "scenarios/runs/scr_0/complete",
            "scenarios/runs/scr_0/cancel",
            "scenarios/runs/scr_0/download_logs",
            "scenarios/scorers/scs_0",
            "blueprints/bpt_0/delete",
            "objects/obj_0/complete",
            "objects/obj_0/delete",
        ):
            error(await client.post(f"/v1/{path}"), 404)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/benchmarks/start_run", b"{}", "benchmark_id"),
        ("/v1/scenarios/start_run", b'{"scenario_id": "scn_1", "runProfile": {"envVars": {"A": 1}}}', "envVars"),
        ("/v1/scenarios/start_run", b"{", "not JSON"),
        ("/v1/scenarios/start_run", b"[]", "body"),
        ("/v1/benchmarks", b"", "name"),
        ("/v1/scenarios", b'{"name": "x"}', "input_context"),
        ("/v1/scenarios/scorers", b'{"type": "x"}', "bash_script"),
        ("/v1/benchmarks", b'{"name": "b", "scenario_ids": "scn_1"}', "scenario_ids"),
    ],
)
async def test_a_wrong_body_is_400_and_names_the_key(tmp_path: Path, path: str, body: bytes, words: str) -> None:
    async with service_client(tmp_path) as client:
        assert words in error(await client.post(path, content=body), 400)


async def test_asking_to_end_is_refused_while_something_is_in_flight(tmp_path: Path) -> None:
    """Another client's sign of life, or a devbox that lives; then it is granted, and new requests are turned away."""
    async with service_client(tmp_path) as client:
        await client.post("/v1/sweep/heartbeat", json={"client": "mine"})
        await client.post("/v1/sweep/heartbeat", json={"client": "theirs"})
        assert "1 other clients" in error(await client.post("/v1/sweep/stop", json={"client": "mine"}), 409)
        await client.post("/v1/sweep/goodbye", json={"client": "theirs"})
        devbox = (await client.post("/v1/devboxes", json={})).json()["id"]
        assert "1 devboxes alive" in error(await client.post("/v1/sweep/stop", json={"client": "mine"}), 409)
        await client.post(f"/v1/devboxes/{devbox}/shutdown")
        assert (await client.post("/v1/sweep/stop", json={"client": "mine"})).json() == {}
        answer = await client.get("/v1/benchmarks")
        error(answer, 503)
        assert answer.headers["retry-after"]


async def raising(request: Request) -> Response:
    failures: dict[str, Exception] = {
        "unwritable": Unwritable("The disk is full."),
        "expired": WaitExpired("Not yet."),
        "died": BoxDied("It was killed."),
        "mistake": ZeroDivisionError("ours"),
    }
    raise failures[request.path_params["how"]]


@asynccontextmanager
async def failing_client() -> AsyncIterator[httpx.AsyncClient]:
    app = application(routes=[Route("/{how}", raising)], token=TOKEN, activity=Activity())
    headers = {"authorization": f"Bearer {TOKEN}"}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as client:
        yield client


async def test_a_disk_that_refuses_is_503_and_says_when_to_ask_again() -> None:
    async with failing_client() as client:
        answer = await client.get("/unwritable")
        assert error(answer, 503) == "The disk is full."
        assert float(answer.headers["retry-after"]) > 0


async def test_a_wait_that_expires_is_408_and_not_for_the_client_s_own_retries() -> None:
    async with failing_client() as client:
        answer = await client.get("/expired")
        assert error(answer, 408) == "Not yet."
        assert answer.headers["x-should-retry"] == "false"


async def test_a_devbox_that_died_under_a_request_is_400() -> None:
    async with failing_client() as client:
        assert error(await client.get("/died"), 400) == "It was killed."


async def test_a_mistake_of_ours_is_500_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    """Its traceback is in the log, not in the answer."""
    async with failing_client() as client:
        message = error(await client.get("/mistake"), 500)
    assert "ZeroDivisionError" in message
    assert "Traceback" not in message
    printed = capsys.readouterr()
    assert "request.crashed" in printed.out + printed.err


async def test_bodies_that_a_document_may_not_show_stay_here(tmp_path: Path) -> None:
    """Keys of ours never leave, in views and in lists."""

    def private(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [k for k in value if k.startswith("_")] + [k for v in value.values() for k in private(v)]
        return [key for item in value for key in private(item)] if isinstance(value, list) else []

    async with service_client(tmp_path) as client:
        benchmark = (await client.post("/v1/benchmarks", json={"name": "b"})).json()
        run = (await client.post("/v1/benchmarks/start_run", json={"benchmark_id": benchmark["id"]})).json()
        for path in (f"/v1/benchmark_runs/{run['id']}", "/v1/benchmark_runs", "/v1/benchmarks"):
            answer = await client.get(path)
            assert private(orjson.loads(answer.content)) == []
