"""Network policies in the gateway, on endpoints that have them and on those that do not."""

from dataclasses import dataclass, field
from typing import Any

import anyio
import orjson
import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from orchestrator.core.errors import UsageError
from orchestrator.core.records import Needs
from orchestrator.endpoint.gateway import Gateway

from .conftest import Misbehaving, Profile

pytestmark = pytest.mark.anyio

HOSTS = Needs(hosts=("b.test", "a.test:8080", "b.test"))
PATH = "/network-policies"


@dataclass
class Shelf:
    """The policies of an endpoint; when it `is_raced`, somebody else makes each just before us."""

    policies: list[dict[str, Any]] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)
    is_raced: bool = False

    async def answer(self, request: Request) -> Response:
        if request.method == "GET":
            named = [each for each in self.policies if request.query_params["name"] in each["name"]]
            return JSONResponse({"network_policies": named, "has_more": False})
        body = orjson.loads(await request.body())
        self.made.append(body)
        egress = {"allow_all": body["allow_all"], "allowed_hostnames": body["allowed_hostnames"]}
        policy = {"id": f"npo_{len(self.policies)}", "name": body["name"], "egress": egress}
        self.policies.append(policy)
        return JSONResponse({"message": "taken"}, status_code=400) if self.is_raced else JSONResponse(policy)


@pytest.fixture
def shelf(endpoint: Misbehaving) -> Shelf:
    shelf = Shelf()
    endpoint.on(PATH, shelf.answer)
    return shelf


@pytest.fixture
def launched(profile: Profile) -> Profile:
    """The launch parameters among it."""

    async def launched(needs: Needs) -> Any:
        return (await profile(needs))["launchParameters"]

    return launched


async def test_a_run_that_needs_nothing_has_no_policy(launched: Profile, endpoint: Misbehaving) -> None:
    assert await launched(Needs()) == {"keep_alive_time_seconds": 60}
    assert not endpoint.calls[PATH]


async def test_a_policy_is_made_once_for_each_kind_of_need(gateway: Gateway, launched: Profile, shelf: Shelf) -> None:
    async with anyio.create_task_group() as tasks:
        for needs in (HOSTS, Needs(hosts=("a.test:8080", "b.test")), Needs(is_closed=True), Needs(is_open=True)):
            tasks.start_soon(gateway.check, needs)
    made = [(each["allow_all"], tuple(each["allowed_hostnames"])) for each in shelf.made]
    assert sorted(made) == [(False, ()), (False, ("a.test:8080", "b.test")), (True, ())]
    assert all(each["name"].startswith("sweep-") for each in shelf.made)
    assert (await launched(HOSTS))["network_policy_id"].startswith("npo_")
    assert len({(await launched(each))["network_policy_id"] for each in (HOSTS, Needs(is_closed=True))}) == 2
    assert len(shelf.made) == 3


async def test_an_existing_policy_is_used(
    gateway: Gateway, endpoint: Misbehaving, shelf: Shelf, launched: Profile
) -> None:
    await gateway.check(HOSTS)
    async with Gateway.open(endpoint.url, "secret", rate=None) as other:
        await other.check(HOSTS)
    assert len(shelf.made) == 1
    assert (await launched(HOSTS))["network_policy_id"] == "npo_0"


async def test_the_loser_of_a_race_takes_the_winners_policy(launched: Profile, shelf: Shelf) -> None:
    shelf.is_raced = True
    assert (await launched(HOSTS))["network_policy_id"] == "npo_0"


async def test_a_changed_policy_is_not_used(gateway: Gateway, endpoint: Misbehaving, shelf: Shelf) -> None:
    await gateway.check(HOSTS)
    shelf.policies[0]["egress"]["allow_all"] = True
    async with Gateway.open(endpoint.url, "secret", rate=None) as other:
        with pytest.raises(UsageError, match=r"npo_0 .* was changed by somebody; delete it"):
            await other.check(HOSTS)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_portal_in_between_is_not_the_endpoint(
    gateway: Gateway, endpoint: Misbehaving, shelf: Shelf, launched: Profile, method: str
) -> None:
    portals = [HTMLResponse("<h1>Welcome to the hotel</h1>"), JSONResponse({}), JSONResponse({"network_policies": 5})]

    async def answer(request: Request) -> Response:
        return portals.pop() if portals and request.method == method else await shelf.answer(request)

    endpoint.on(PATH, answer)
    with anyio.fail_after(20):
        await gateway.check(HOSTS)
        assert (await launched(HOSTS))["network_policy_id"] == "npo_0"
    assert not portals


@pytest.mark.parametrize("status", [404, 405])
async def test_an_endpoint_without_policies_is_asked_once_and_hosts_are_left_to_it(
    gateway: Gateway, endpoint: Misbehaving, launched: Profile, status: int
) -> None:
    endpoint.on(PATH, JSONResponse({"message": "there are none"}, status_code=status))
    await gateway.check(HOSTS)
    assert await launched(HOSTS) == {"keep_alive_time_seconds": 60}
    for needs, asked in ((Needs(is_closed=True), "none"), (Needs(is_open=True), "host")):
        with pytest.raises(UsageError, match=f"--network {asked} cannot be had of this endpoint: .*there are none"):
            await gateway.check(needs)
    assert endpoint.calls[PATH] == 1


async def test_a_service_of_ours_that_does_not_lend_its_network_is_not_asked_for_it(
    gateway: Gateway, endpoint: Misbehaving, shelf: Shelf
) -> None:
    endpoint.on("/sweep", {"service": "sweep", "features": ["installs"]})
    with pytest.raises(UsageError, match=r"--network host cannot be had of .*`sweep serve --network host`"):
        await gateway.check(Needs(is_open=True))
    await gateway.check(Needs(is_closed=True))
    assert [each["allow_all"] for each in shelf.made] == [False]


async def test_hosts_that_an_endpoint_refuses_by_name_are_the_users_to_mend(
    gateway: Gateway, endpoint: Misbehaving
) -> None:
    async def refuse(request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"network_policies": [], "has_more": False})
        return JSONResponse({"message": "a.test:8080 has a port"}, status_code=400)

    endpoint.on(PATH, refuse)
    with pytest.raises(UsageError, match=r"refuses the network that devboxes need: .*a.test:8080 has a port"):
        await gateway.check(HOSTS)


async def test_a_devbox_says_what_it_reached(gateway: Gateway, endpoint: Misbehaving) -> None:
    counts = {"reached": {"a.test": 2}, "refused": {"b.test": 1}}
    endpoint.on("/devboxes/dbx_1", {"id": "dbx_1", "status": "running", **counts}, {"id": "dbx_1", "status": "running"})
    counted = await gateway.devbox("dbx_1")
    assert (counted.reached, counted.refused) == ({"a.test": 2}, {"b.test": 1})
    uncounted = await gateway.devbox("dbx_1")
    assert (uncounted.reached, uncounted.refused) == (None, None)
