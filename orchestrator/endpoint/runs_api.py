"""The gateway's part for runs: `protocols.Runs` behind the published client, and the network policies for it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import anyio
import structlog
from orjson import dumps
from runloop_api_client import AsyncRunloop, omit
from runloop_api_client.types import BenchmarkRunView, NetworkPolicyView, ScenarioRunView

from orchestrator.core.errors import Conflicted, Refused, Unauthorized, UsageError
from orchestrator.core.protocol import RUN_ALIVE
from orchestrator.core.records import BenchmarkRun, Needs, ScenarioRun, Settlement
from orchestrator.endpoint import parsing
from orchestrator.endpoint.calls import Ask, Calls, poll
from orchestrator.endpoint.protocols import HOST_NETWORK, NO_VARIABLES, SETTLEMENTS

if TYPE_CHECKING:
    from runloop_api_client.types.shared_params.run_profile import RunProfile

PAGE_POLICIES: Final = 1000
_FIX: Final = "Leave out --network: then devboxes have what the endpoint and their scenarios give them."


class RunsApi(Calls):
    """Implements `protocols.Runs`, and `Endpoint.check`, which asks what a run could have."""

    def __init__(self, client: AsyncRunloop, url: str) -> None:
        super().__init__(client, url)
        self._policies = Policies(client, self._ask)

    async def start_benchmark_run(
        self, benchmark_id: str, *, name: str, metadata: Mapping[str, str], key: str
    ) -> BenchmarkRun:
        return await self._ask_once(
            f"starting a run of benchmark {benchmark_id}",
            lambda: self._client.benchmarks.start_run(
                benchmark_id=benchmark_id, run_name=name, metadata=dict(metadata), idempotency_key=key
            ),
            parsing.benchmark_run,
        )

    async def benchmark_run(self, run_id: str) -> BenchmarkRun:
        return await self._ask(
            f"reading benchmark run {run_id}",
            lambda: self._client.benchmark_runs.retrieve(run_id),
            parsing.benchmark_run,
        )

    async def list_benchmark_runs(
        self, *, benchmark: str | None = None, state: str | None = None
    ) -> list[BenchmarkRun]:
        lister = partial(self._client.benchmark_runs.list, benchmark_id=benchmark or omit, state=state or omit)
        return await self._all("listing the benchmark runs", lister, parsing.benchmark_run)

    async def complete_benchmark_run(self, run_id: str) -> None:
        await self._end_benchmark_run(run_id, "completing", self._client.benchmark_runs.complete)

    async def cancel_benchmark_run(self, run_id: str) -> None:
        await self._end_benchmark_run(run_id, "canceling", self._client.benchmark_runs.cancel)

    async def _end_benchmark_run(
        self, run_id: str, doing: str, call: Callable[[str], Awaitable[BenchmarkRunView]]
    ) -> None:
        try:
            await self._ask(
                f"{doing} benchmark run {run_id}", lambda: call(run_id), parsing.of(run_id, parsing.benchmark_run)
            )
        except Conflicted:
            if (await self.benchmark_run(run_id)).state == "running":
                raise

    async def check(self, needs: Needs) -> None:
        features = await self.features() if needs.is_open else frozenset()
        if features and HOST_NETWORK not in features:
            raise UsageError(
                f"--network host cannot be had of {self._url}: it does not lend its machine's network. Start it with "
                "`sweep serve --network host`, or leave the option out."
            )
        await self._policies.check(needs)

    async def start_run(
        self,
        scenario_id: str,
        *,
        benchmark_run_id: str | None,
        name: str,
        metadata: Mapping[str, str],
        keep_alive: int,
        needs: Needs,
        key: str,
        variables: Mapping[str, str] = NO_VARIABLES,
    ) -> ScenarioRun:
        profile: RunProfile = {"launch_parameters": {"keep_alive_time_seconds": keep_alive}}
        policy = await self._policies.identity(needs)
        if policy is not None:
            profile["launch_parameters"] = {"keep_alive_time_seconds": keep_alive, "network_policy_id": policy}
        if needs.secrets:
            profile["secrets"] = dict(needs.secrets)
        if variables:
            profile["env_vars"] = dict(variables)
        if needs.install is not None and "installs" in await self.features():
            asked = {name: value for name, value in asdict(needs.install).items() if value}
            mount: Any = {"type": "install_mount", **asked}  # the client's types know none of ours
            profile["mounts"] = [mount]

        return await self._ask_once(
            f"starting a run of scenario {scenario_id}",
            lambda: self._client.scenarios.start_run(
                scenario_id=scenario_id,
                benchmark_run_id=benchmark_run_id or omit,
                run_name=name,
                metadata=dict(metadata),
                run_profile=profile,
                idempotency_key=key,
            ),
            parsing.run,
        )

    async def run(self, run_id: str) -> ScenarioRun:
        return await self._ask(
            f"reading run {run_id}", lambda: self._client.scenarios.runs.retrieve(run_id), parsing.run
        )

    async def list_runs(
        self, *, benchmark_run: str | None = None, scenario: str | None = None, state: str | None = None
    ) -> list[ScenarioRun]:
        lister = partial(
            self._client.scenarios.runs.list,
            benchmark_run_id=benchmark_run or omit,
            scenario_id=scenario or omit,
            state=state or omit,
        )
        return await self._all("listing the scenario runs", lister, parsing.run)

    async def agent_begins(self, run_id: str) -> bool:
        if SETTLEMENTS not in await self.features():
            return False
        await self._ask(
            f"making the devbox of run {run_id} ready for its agent",
            partial(self._tell, run_id, "agent_begins", {}),
            parsing.receipt,
        )
        return True

    async def agent_ended(
        self,
        run_id: str,
        *,
        scoring: str,
        devbox: str | None = None,
        execution: str | None = None,
        kept: str | None = None,
    ) -> Settlement | None:
        if SETTLEMENTS not in await self.features():
            return None
        body = {"scoring": scoring, "devbox": devbox, "execution": execution}
        body |= {} if kept is None else {"kept": kept}
        return await self._ask(
            f"settling what the agent of run {run_id} left",
            partial(self._tell, run_id, "agent_ended", body),
            parsing.settlement,
        )

    async def _tell(self, run_id: str, verb: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._client.post(f"/v1/sweep/runs/{run_id}/{verb}", body=body, cast_to=dict[str, Any])

    async def score(self, run_id: str, *, key: str) -> ScenarioRun:
        return await self._ask(
            f"scoring run {run_id}", lambda: self._client.scenarios.runs.score(run_id, idempotency_key=key), parsing.run
        )

    async def wait_scored(self, run_id: str) -> ScenarioRun:
        return await poll(lambda: self.run(run_id), lambda run: run.state != "scoring")

    async def complete(self, run_id: str) -> None:
        await self._end(run_id, "completing", self._client.scenarios.runs.complete)

    async def cancel(self, run_id: str) -> None:
        await self._end(run_id, "canceling", self._client.scenarios.runs.cancel)

    async def _end(self, run_id: str, doing: str, call: Callable[[str], Awaitable[ScenarioRunView]]) -> None:
        try:
            await self._ask(f"{doing} run {run_id}", lambda: call(run_id), parsing.of(run_id, parsing.run))
        except Conflicted:
            if (await self.run(run_id)).state in RUN_ALIVE:
                raise


class Policies:
    """Network policies of one endpoint: found by name or made, once for each kind of need.

    The name is a hash of the content. So sweeps with the same needs share one, and the loser of a race to make it finds
    the other's.
    """

    def __init__(self, client: AsyncRunloop, ask: Ask) -> None:
        self._client = client
        self._ask = ask
        self._asking = anyio.Lock()
        self._ids: dict[str, str] = {}
        #: The reason of an endpoint that has no policies, once it gave it.
        self._refusal = ""

    async def check(self, needs: Needs) -> None:
        """Raise UsageError if devboxes cannot have this network. For `hosts` alone an endpoint needs no policies."""
        try:
            identity = await self.identity(needs)
        except (Conflicted, Unauthorized) as error:
            raise UsageError(f"The endpoint refuses the network that devboxes need: {error.message}") from None
        if identity is None and needs.is_closed:
            raise UsageError(f"--network none cannot be had of this endpoint: {self._refusal} {_FIX}")
        if identity is None and needs.is_open:
            raise UsageError(f"--network host cannot be had of this endpoint: {self._refusal} {_FIX}")

    async def identity(self, needs: Needs) -> str | None:
        """The id of the policy for these needs; None if they ask for none, or the endpoint has none to give."""
        if not (needs.hosts or needs.is_closed or needs.is_open):
            return None
        hosts = [] if needs.is_closed or needs.is_open else sorted(set(needs.hosts))
        name = f"sweep-{sha256(dumps([needs.is_open, hosts])).hexdigest()[:16]}"
        async with self._asking:
            if name in self._ids or self._refusal:
                return self._ids.get(name)
            try:
                policy = await self._find(name) or await self._make(name, hosts, is_open=needs.is_open)
            except (Conflicted, Unauthorized):
                raise
            except Refused as error:
                self._refusal = error.message
                if hosts:  # else the user asked for this network, and `check` refuses the sweep
                    structlog.get_logger().warning("network.as_it_is", hosts=hosts, error=error.message)
                return None
            egress = policy.egress
            if egress.allow_all != needs.is_open or sorted(egress.allowed_hostnames) != hosts:
                raise Conflicted(f"network policy {policy.id} ({name}) was changed by somebody; delete it.")
            self._ids[name] = policy.id
            return policy.id

    async def _find(self, name: str) -> NetworkPolicyView | None:
        async def walk() -> list[NetworkPolicyView]:
            page = await self._client.network_policies.list(name=name, limit=PAGE_POLICIES, include_total_count=False)
            found = list[NetworkPolicyView]()
            while True:
                found += (policy for policy in parsing.items(page) if policy.name == name)
                if found or not page.has_next_page():
                    return found
                page = await page.get_next_page()

        found = await self._ask("looking for a network policy", walk, lambda found: [*map(parsing.policy, found)])
        return next(iter(found), None)

    async def _make(self, name: str, hosts: list[str], *, is_open: bool) -> NetworkPolicyView:
        def make() -> Awaitable[NetworkPolicyView]:
            return self._client.network_policies.create(name=name, allow_all=is_open, allowed_hostnames=hosts)

        try:
            return await self._ask("making a network policy", make, parsing.policy)
        except Conflicted:
            found = await self._find(name)
            if found is None:
                raise
            return found
