"""Installs as clients of the service meet them, on the whole service without a socket."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.core.protocol import Isolation
from orchestrator.service.assembly import SOUND, Seams, Service
from orchestrator.testing.strict_compat import strict

from .conftest import PREFIX, SCRIPT

pytestmark = pytest.mark.anyio

Open = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def served(sandboxes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Open:
    """A client of a service with a state of its own, and the cache of this test."""
    monkeypatch.setenv("SWEEP_CACHE", str(tmp_path / "cache"))

    @asynccontextmanager
    async def served(
        name: str = "one", isolation: Isolation = Isolation.LOCAL, seams: Seams = SOUND
    ) -> AsyncIterator[httpx.AsyncClient]:
        state = tmp_path / name
        state.mkdir()
        async with Service.open(
            state=state,
            benchmarks=[],
            isolation=isolation,
            token="t",
            seams=seams,
        ) as service:
            transport = httpx.ASGITransport(app=service.app)
            headers = {"authorization": "Bearer t"}
            async with httpx.AsyncClient(
                transport=transport, base_url="http://service", headers=headers, timeout=60
            ) as http:
                yield http

    return served


def mount(script: str = SCRIPT, **changes: Any) -> dict[str, Any]:
    return {"type": "install_mount", "key": "k1", "script": script, "prefix": PREFIX, "environment": {}, **changes}


async def start(http: httpx.AsyncClient, **install: Any) -> httpx.Response:
    """Start a run of a scenario with this install."""
    scorer = {"type": "bash_script_scorer", "bash_script": "cat ~/.agent/id && echo score=1.0"}
    scenario = await http.post(
        "/v1/scenarios",
        json={
            "name": "a scenario",
            "input_context": {"problem_statement": "Do it."},
            "scoring_contract": {"scoring_function_parameters": [{"name": "it", "weight": 1.0, "scorer": scorer}]},
        },
    )
    profile = {"mounts": [mount(**install)]}
    return await http.post(
        "/v1/scenarios/start_run", json={"scenario_id": scenario.json()["id"], "runProfile": profile}
    )


async def booted(http: httpx.AsyncClient, answer: httpx.Response) -> Any:
    """Its devbox, running or ended."""
    assert answer.status_code == 200, answer.text
    path = f"/v1/devboxes/{answer.json().get('devbox_id') or answer.json()['id']}"
    body = {"statuses": ["running", "failure", "shutdown"], "timeout_seconds": 30}
    return (await http.post(f"{path}/wait_for_status", json=body)).json()


async def said(http: httpx.AsyncClient, devbox: Any, command: str) -> str:
    path = f"/v1/devboxes/{devbox['id']}"
    answer = await http.post(f"{path}/execute_sync", json={"command": command})
    return str(answer.json()["stdout"])


async def test_a_run_has_its_install_and_says_so(served: Open) -> None:
    async with served() as http:
        assert (await http.get("/v1/sweep")).json()["features"] == ["installs", "preparations", "settlements"]
        devbox = await booted(http, await start(http))
        assert (devbox["status"], devbox["installed"]) == ("running", ["k1"])
        log = (await http.get(f"/v1/devboxes/{devbox['id']}/logs")).json()["logs"]
        assert [entry["message"] for entry in log] == [
            f"What belongs at {PREFIX} is being installed, once for all devboxes that need it.",
            f"What belongs at {PREFIX} is there.",
        ]
        first = await said(http, devbox, "cat ~/.agent/id")
    async with served("two") as http:
        devbox = await booted(http, await http.post("/v1/devboxes", json={"mounts": [mount()]}))
        assert await said(http, devbox, "cat ~/.agent/id") == first != ""


async def test_a_devbox_whose_install_fails_says_what_failed(served: Open) -> None:
    async with served() as http:
        devbox = await booted(http, await start(http, script="echo no such package; exit 7"))
        assert (devbox["status"], devbox["failed_install"]) == ("failure", "k1")
        assert devbox["failure_message"] == ("The install step failed: its script ended with status 7\nno such package")
        assert "installed" not in devbox


async def test_a_foreign_endpoint_shows_nothing_of_it(served: Open) -> None:
    async with served(seams=strict(Seams())) as http:
        assert (await http.get("/v1/sweep")).status_code == 404
        for script in (SCRIPT, "exit 1"):
            devbox = await booted(http, await start(http, script=script, key=script))
            assert not {"installed", "failed_install"} & devbox.keys()


async def test_devboxes_without_walls_refuse_it_by_name(served: Open) -> None:
    async with served(isolation=Isolation.NONE) as http:
        assert "installs" not in (await http.get("/v1/sweep")).json()["features"]
        answer = await start(http)
        assert answer.status_code == 400
        assert "'install_mount' is not supported by devboxes of isolation 'none'" in answer.json()["message"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": ""}, "runProfile.mounts.0.key"),
        ({"key": "k" * 201}, "at most 200"),
        ({"script": None}, "runProfile.mounts.0.script"),
        ({"prefix": "/usr/local"}, "a folder below /home/user, got '/usr/local'"),
        ({"prefix": "/home/user/../../etc"}, "a folder below /home/user"),
        ({"prefix": "/home/user"}, "a folder below /home/user"),
        ({"environment": {"A=": "b"}}, "runProfile.mounts.0.environment"),
        ({"environment": ["A"]}, "runProfile.mounts.0.environment"),
        ({"hosts": "a.test"}, "runProfile.mounts.0.hosts: expected a list of hosts"),
        ({"hosts": ["https://a.test"]}, "runProfile.mounts.0.hosts: 'https://a.test' is not a host"),
        ({"type": "object_mount"}, "'object_mount' is not supported"),
    ],
)
async def test_mistakes_are_named(served: Open, changes: dict[str, Any], words: str) -> None:
    async with served() as http:
        answer = await start(http, **changes)
        assert answer.status_code == 400
        assert words in answer.json()["message"]
