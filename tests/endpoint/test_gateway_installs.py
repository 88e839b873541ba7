"""Installs in the gateway: it leaves them to an endpoint that can do them, and to no other."""

import anyio
import pytest
from starlette.responses import JSONResponse

from orchestrator.core.errors import AgentSetupFailed, Refused
from orchestrator.core.records import Install, Needs
from orchestrator.endpoint.gateway import Gateway

from .conftest import Misbehaving, Profile

pytestmark = pytest.mark.anyio

NEEDS = Needs(install=Install(key="k1", script="npm install", prefix="/home/user/.agent", environment={"A": "b"}))


async def test_installs_are_left_to_an_endpoint_that_can_do_them(
    gateway: Gateway, endpoint: Misbehaving, profile: Profile
) -> None:
    endpoint.on("/sweep", {"service": "sweep", "features": ["installs", "more"]})
    assert await gateway.features() == {"installs", "more"}
    assert (await profile(NEEDS))["mounts"] == [
        {
            "type": "install_mount",
            "key": "k1",
            "script": "npm install",
            "prefix": "/home/user/.agent",
            "environment": {"A": "b"},
        }
    ]


async def test_hosts_that_an_install_needs_are_named(gateway: Gateway, endpoint: Misbehaving, profile: Profile) -> None:
    endpoint.on("/sweep", {"service": "sweep", "features": ["installs"]})
    install = Install(key="k1", script="curl", prefix="/home/user/.agent", hosts=("a.test",))
    (mount,) = (await profile(Needs(install=install)))["mounts"]
    assert list(mount["hosts"]) == ["a.test"]


async def test_installs_are_not_left_to_a_foreign_endpoint(gateway: Gateway, profile: Profile) -> None:
    """It has no such page."""
    assert "mounts" not in await profile(NEEDS)
    assert await gateway.features() == frozenset()


async def test_features_are_asked_for_once_by_all_callers(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on("/sweep", JSONResponse({}, status_code=503), {"features": []})
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(gateway.features)
    gateway.move(endpoint.url, "another token")
    await gateway.features()
    assert endpoint.calls["/sweep"] == 2


async def test_a_refusal_is_no_answer(gateway: Gateway, endpoint: Misbehaving) -> None:
    refusal = JSONResponse({"message": "no"}, status_code=403)
    endpoint.on("/sweep", refusal, refusal, refusal, {"features": ["installs"]})
    with pytest.raises(Refused):
        await gateway.features()
    assert await gateway.features() == {"installs"}


async def test_a_devbox_says_what_is_installed(gateway: Gateway, endpoint: Misbehaving) -> None:
    endpoint.on("/devboxes/dbx_1", {"id": "dbx_1", "status": "running", "installed": ["k1"]})
    assert (await gateway.devbox("dbx_1")).installed == {"k1"}


async def test_an_install_that_failed_is_the_agents_failure(gateway: Gateway, endpoint: Misbehaving) -> None:
    failed = {"id": "dbx_1", "status": "failure", "failure_message": "no such package", "failed_install": "k1"}
    endpoint.on("/devboxes/dbx_1/wait_for_status", failed)
    with pytest.raises(AgentSetupFailed, match=r"^no such package$"):
        await gateway.wait_running("dbx_1")


async def test_notices_come_from_a_service_of_ours_and_from_no_other(gateway: Gateway, endpoint: Misbehaving) -> None:
    assert list(await gateway.notices(is_online=True)) == []
    facts = {"service": "sweep", "features": [], "notices": ["Mind the gap.", 3], "internet_notices": ["By a proxy."]}
    endpoint.on("/sweep", facts)
    async with Gateway.open(endpoint.url, "token", rate=None) as another:
        assert list(await another.notices(is_online=False)) == ["Mind the gap."]
        assert list(await another.notices(is_online=True)) == ["Mind the gap.", "By a proxy."]
        assert await another.features() == frozenset()
    assert endpoint.calls["/sweep"] == 2
