"""Network policies as published: made, found, changed, deleted, and kept by the devboxes that have them."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import httpx
import pytest
from runloop_api_client import APIStatusError, AsyncRunloop, BadRequestError, NotFoundError

from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.bwrap import bwrap_provider, public_network

pytestmark = pytest.mark.anyio
Running = Callable[[AsyncRunloop, str], Awaitable[str]]
Serve = Callable[..., AbstractAsyncContextManager[AsyncRunloop]]


async def devbox_with(client: AsyncRunloop, running: Running, policy: str) -> str:
    devbox = await client.devboxes.create(launch_parameters={"network_policy_id": policy})
    assert await running(client, devbox.id) == "running"
    return devbox.id


async def said_in(client: AsyncRunloop, devbox: str, command: str) -> str:
    done = await client.devboxes.execute(devbox, command=command)
    return f"{done.stdout}{done.stderr}"


async def counts_of(client: AsyncRunloop, devbox: str) -> tuple[Any, Any]:
    extra = (await client.devboxes.retrieve(devbox)).model_extra or {}
    return extra.get("reached"), extra.get("refused")


async def test_a_policy_is_made_found_changed_and_deleted(client: AsyncRunloop) -> None:
    policies = client.network_policies
    made = await policies.create(name="one", allowed_hostnames=["api.model.test", "*.npm.test"], description="d")
    assert made.egress.allowed_hostnames == ["api.model.test", "*.npm.test"]
    assert (made.egress.allow_all, made.egress.allow_mcp_gateway, made.egress.allowed_cidrs) == (False, False, [])
    other = await policies.create(name="two", allow_all=True)
    assert await policies.retrieve(made.id) == made
    assert [each.id async for each in policies.list()] == [other.id, made.id]
    assert [each.id async for each in policies.list(name="on")] == [made.id]
    assert [each.id async for each in policies.list(id=other.id)] == [other.id]
    changed = await policies.update(made.id, allowed_hostnames=[])
    assert (changed.name, changed.description, changed.egress.allowed_hostnames) == ("one", "d", [])
    assert (await policies.update(made.id, name="three")).egress == changed.egress
    assert (await policies.delete(made.id)).id == made.id
    with pytest.raises(NotFoundError, match="no network policy with id"):
        await policies.retrieve(made.id)


async def test_a_name_is_given_once(client: AsyncRunloop) -> None:
    first = await client.network_policies.create(name="one", idempotency_key="k")
    assert (await client.network_policies.create(name="one", idempotency_key="k")).id == first.id
    other = await client.network_policies.create(name="two")
    with pytest.raises(BadRequestError, match="a network policy named 'one' already"):
        await client.network_policies.create(name="one")
    with pytest.raises(BadRequestError, match="a network policy named 'one' already"):
        await client.network_policies.update(other.id, name="one")
    with pytest.raises(BadRequestError, match="name: a network policy needs one"):
        await client.network_policies.create(name="")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"allow_mcp_gateway": True}, "allow_mcp_gateway: not supported"),
        ({"allow_devbox_to_devbox": True}, "allow_devbox_to_devbox: not supported"),
        ({"allowed_cidrs": [{"cidr": "10.0.0.0/8"}]}, "allowed_cidrs: not supported"),
        ({"allowed_hostnames": ["https://model.test/"]}, "is not a host: write name"),
        ({"allowed_hostnames": ["*"]}, "is not a host"),
        ({"allowed_hostnames": ["model.test:0"]}, "a port is a number"),
    ],
)
async def test_rules_that_nobody_here_could_keep_are_refused_by_name(
    client: AsyncRunloop, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(APIStatusError, match=said) as refused:
        await client.network_policies.create(name="one", **asked)
    assert refused.value.status_code in {400, 405}


async def test_a_devbox_keeps_its_policy_and_what_it_reached_is_counted(
    client: AsyncRunloop, running: Running, greeting: int
) -> None:
    here = f"127.0.0.1:{greeting}"
    policy = await client.network_policies.create(name="one", allowed_hostnames=[here])
    devbox = await devbox_with(client, running, policy.id)
    with pytest.raises(BadRequestError, match=f"in use by devbox {devbox}"):
        await client.network_policies.delete(policy.id)
    await client.network_policies.update(policy.id, allowed_hostnames=[])
    fetch = f"for n in 1 2; do curl -sS http://{here}/; done; curl -sS http://evil.test/"
    said = await said_in(client, devbox, fetch)
    assert said.startswith("hellohello")
    assert "may not reach evil.test" in said
    assert await counts_of(client, devbox) == ({here: 2}, {"evil.test": 1})
    await client.devboxes.shutdown(devbox)
    assert await counts_of(client, devbox) == ({here: 2}, {"evil.test": 1}), "nothing of it is lost with the devbox"
    log = (await client.devboxes.logs.list(devbox)).logs
    told = [(each.level, each.message) for each in log if each.message and each.message.startswith("network:")]
    assert told == [("info", f"network: reached {here}"), ("warning", "network: refused evil.test")]
    assert (await client.network_policies.delete(policy.id)).id == policy.id


async def test_a_policy_of_nothing_closes_and_one_of_everything_opens_this_machine_where_it_is_lent(
    serve: Serve, running: Running, greeting: int, sandboxes: None
) -> None:
    fetch = f"env | grep -i proxy; curl -sS --noproxy '*' http://127.0.0.1:{greeting}/"
    async with serve(Isolation.LOCAL, lends_network=True) as client:
        closed = await client.network_policies.create(name="closed")
        opened = await client.network_policies.create(name="open", allow_all=True)
        for policy, network, expected in ((closed, "none", "Failed to connect"), (opened, "host", "hello")):
            devbox = await devbox_with(client, running, policy.id)
            assert expected in await said_in(client, devbox, fetch)
            assert await counts_of(client, devbox) == (None, None)
            assert dict(await client.devboxes.retrieve(devbox))["network"] == network
    async with serve(Isolation.LOCAL) as client:
        devbox = await devbox_with(client, running, opened.id)
        assert "Failed to connect" in await said_in(client, devbox, fetch)
        assert dict(await client.devboxes.retrieve(devbox))["network"] in {"public", "proxy"}


async def test_where_boxes_have_no_internet_of_their_own_the_proxy_serves_and_that_is_said(
    serve: Serve, running: Running, greeting: int, sandboxes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (public_network, bwrap_provider):
        monkeypatch.setattr(module, "PROGRAM", "slirp4nobody")
    async with serve(Isolation.LOCAL) as client:
        facts = (await client.get("/v1/sweep", cast_to=httpx.Response)).json()
        told = "Devboxes reach the internet by a proxy, for HTTP and HTTPS alone: slirp4nobody is not installed here."
        assert facts["internet_notices"] == [told]
        policy = await client.network_policies.create(name="open", allow_all=True)
        devbox = await devbox_with(client, running, policy.id)
        assert dict(await client.devboxes.retrieve(devbox))["network"] == "proxy"
        fetch = f"curl -sS --noproxy '' http://127.0.0.1:{greeting}/"
        assert "It may reach: every public host" in await said_in(client, devbox, fetch)


async def test_a_devbox_with_an_unknown_policy_is_not_created(client: AsyncRunloop) -> None:
    with pytest.raises(BadRequestError, match=r"launch_parameters.network_policy_id: there is no network policy"):
        await client.devboxes.create(launch_parameters={"network_policy_id": "npo_none"})
    assert not (await client.devboxes.list()).devboxes


async def test_the_setup_of_a_devbox_has_its_way_out(client: AsyncRunloop, running: Running, greeting: int) -> None:
    policy = await client.network_policies.create(name="one", allowed_hostnames=[f"localhost:{greeting}"])
    fetch = f"curl -sSf http://localhost:{greeting}/ >found"
    devbox = await client.devboxes.create(
        launch_parameters={"network_policy_id": policy.id, "launch_commands": [fetch]}
    )
    assert await running(client, devbox.id) == "running"
    assert await said_in(client, devbox.id, "cat found") == "hello"


async def test_without_walls_only_the_open_policy_is_taken(serve: Serve, running: Running) -> None:
    async with serve(Isolation.NONE) as client:
        some: dict[str, Any] = {"allowed_hostnames": ["model.test"]}
        for asked in ({}, some):
            with pytest.raises(APIStatusError, match="devboxes without isolation cannot be kept from the network"):
                await client.network_policies.create(name="one", **asked)
        opened = await client.network_policies.create(name="open", allow_all=True)
        assert await devbox_with(client, running, opened.id)


async def test_a_policy_from_a_service_with_walls_is_refused_by_one_without(serve: Serve, client: AsyncRunloop) -> None:
    policy = await client.network_policies.create(name="one", allowed_hostnames=["model.test"])
    async with serve(Isolation.NONE) as other:
        with pytest.raises(
            BadRequestError, match=r"network_policy_id: devboxes without isolation .* Start the service"
        ):
            await other.devboxes.create(launch_parameters={"network_policy_id": policy.id})


async def test_concurrent_makers_of_one_policy_make_it_once(client: AsyncRunloop) -> None:
    made: list[str] = []

    async def make() -> None:
        try:
            made.append((await client.network_policies.create(name="one")).id)
        except BadRequestError:
            made.append("")

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(make)
    assert sorted(map(bool, made)) == [False] * 7 + [True]
