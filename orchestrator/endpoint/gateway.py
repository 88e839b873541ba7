"""The endpoint behind the published client: makes calls, parses replies into our records.

The client is told to retry nothing, and an answer counts only if it has the shape of that call's answer: what a proxy,
a portal or a balancer says in the endpoint's place is trouble on the way, and the call is made again.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import httpx
from httpx import codes
from httpx_aiohttp import AiohttpTransport
from orjson import dumps
from runloop_api_client import APIStatusError, AsyncAPIResponse, AsyncRunloop, DefaultAioHttpClient, omit
from runloop_api_client.types import BenchmarkRunView, DevboxView, ScenarioRunView
from runloop_api_client.types.devbox_async_execution_detail_view import DevboxAsyncExecutionDetailView
from runloop_api_client.types.shared_params.run_profile import RunProfile

from orchestrator.core.errors import (
    AgentSetupFailed,
    Conflicted,
    DevboxFailed,
    DevboxLost,
    Missing,
    Refused,
    Throttled,
    Unavailable,
)
from orchestrator.core.records import (
    DEVBOX_ALIVE,
    DEVBOX_BOOTING,
    DEVBOX_DEAD,
    Benchmark,
    BenchmarkRun,
    Devbox,
    Execution,
    Needs,
    Scenario,
    ScenarioRun,
    ScenarioSummary,
    Settlement,
)
from orchestrator.endpoint import parsing
from orchestrator.endpoint.bounds import Bounded
from orchestrator.endpoint.doubt import Doubt
from orchestrator.endpoint.errors import translated
from orchestrator.endpoint.network_policies import Policies
from orchestrator.endpoint.protocols import SETTLEMENTS
from orchestrator.endpoint.throttle import Throttle
from orchestrator.endpoint.waiting import FIRST_PAUSE, HOLD, LONGEST_PAUSE, hold, patiently, poll

T = TypeVar("T")
V = TypeVar("V")

CONNECTIONS: Final = 4096
PAGE: Final = 5000
#: Definitions carry whole scripts: fewer to a page.
DEFINITIONS: Final = 200
#: Characters of globs that go with a request; with more, everything is read.
MAX_CHOICE: Final = 8192
#: Seconds added to a long-poll's hold before the client gives up on it.
_SLACK: Final = 10.0
_TRANSFER_TIMEOUT: Final = 600.0
#: Seconds in which an endpoint that can do more than the published protocol must say so.
_GREETING: Final = 10.0


class Gateway:
    """Implements `runloop.contract.Endpoint`. Use `async with Gateway.open(url, token, rate=…) as endpoint`."""

    def __init__(self, client: AsyncRunloop, url: str) -> None:
        self._client = client
        self._url = url
        self._policies = Policies(client)
        self._facts: Mapping[str, Any] | None = None
        self._answered_at = anyio.current_time()
        self._asking = anyio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, token: str, *, rate: float | None, on_push_back: Callable[[], None] = lambda: None
    ) -> AsyncIterator["Gateway"]:
        """Build the client inside the running loop, on the transport that holds thousands of waits.

        `on_push_back` is called whenever the endpoint asks for less.
        """
        inner = AiohttpTransport(limits=httpx.Limits(max_connections=CONNECTIONS))
        transport = Throttle(Doubt(Bounded(inner)), rate, on_push_back)
        http = DefaultAioHttpClient(transport=transport, trust_env=False)
        async with AsyncRunloop(bearer_token=token, base_url=url, max_retries=0, http_client=http) as client:
            yield cls(client, url)

    @property
    def url(self) -> str:
        return self._url

    @property
    def token(self) -> str:
        return self._client.bearer_token

    @property
    def answered_at(self) -> float:
        return self._answered_at

    async def ping(self) -> None:
        with suppress(Refused):
            await self._ask("looking for the endpoint", lambda: self._client.devboxes.list(limit=1), parsing.items)

    def move(self, url: str, token: str) -> None:
        """Ask there from now on; what is tried again is tried there."""
        self._url = self._client.base_url = url
        self._client.bearer_token = token

    async def features(self) -> frozenset[str]:
        return parsing.features(await self._own_facts())

    async def notices(self) -> Sequence[str]:
        return parsing.notices(await self._own_facts())

    async def _own_facts(self) -> Mapping[str, Any]:
        """What a service of ours tells about itself; nothing, for another.

        Asked once: who replaces a service of ours while we live was started as it was.
        """

        def call() -> Awaitable[dict[str, Any]]:
            return self._client.get("/v1/sweep", cast_to=dict[str, Any])

        async with self._asking:
            if self._facts is None:
                self._facts = await self._ask_facts(call)
        return self._facts

    async def _ask_facts(self, call: Callable[[], Awaitable[dict[str, Any]]]) -> Mapping[str, Any]:
        try:
            with anyio.fail_after(_GREETING):
                return await self._ask("asking what the endpoint can do", call, parsing.facts)
        except Missing:
            return {}
        except Unavailable as error:  # not every endpoint has words of its own for what it does not know
            if error.status != codes.NOT_FOUND:
                raise
            return {}
        except TimeoutError:
            raise Unavailable(f"{self._url} did not say in {_GREETING:g} s what it can do") from None

    async def at_work(self, sweep: str, client: str) -> list[str]:
        try:
            return await self._ask(
                "saying who is at work", partial(self._say, "heartbeat", client, sweep), parsing.at_work
            )
        except Missing:
            return []

    async def leave(self, client: str) -> None:
        await self._ask("saying who leaves", partial(self._say, "goodbye", client), parsing.receipt)

    async def _say(self, verb: str, client: str, sweep: str = "") -> dict[str, Any]:
        body = {"client": client, "sweep": sweep}
        return await self._client.post(f"/v1/sweep/{verb}", body=body, cast_to=dict[str, Any])

    async def secret_names(self) -> frozenset[str]:
        try:
            return await self._ask(
                "listing the secrets", lambda: self._client.secrets.list(limit=PAGE), parsing.secret_names
            )
        except Refused:  # it keeps none, or not for us
            return frozenset()

    async def benchmarks(self) -> list[Benchmark]:
        listers = (self._client.benchmarks.list, self._client.benchmarks.list_public)
        found = [await self._all("listing the benchmarks", lister, parsing.benchmark) for lister in listers]
        return list({benchmark.id: benchmark for page in found for benchmark in page}.values())

    async def summaries(
        self,
        benchmark: Benchmark,
        at_most: int | None = None,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> list[ScenarioSummary]:
        choice = {name: dumps(globs).decode() for name, globs in (("include", include), ("exclude", exclude)) if globs}
        if sum(map(len, choice.values())) > MAX_CHOICE:
            choice = {}
        summaries: dict[str, ScenarioSummary] = {}
        cursor: str | None = None
        while True:
            page, has_more = await self._definitions(benchmark, cursor, choice)
            summaries |= {summary.id: summary for summary in page}
            if not page or not has_more or (at_most is not None and len(summaries) >= at_most):
                break
            cursor = page[-1].id
        listed = [summaries.pop(identity) for identity in benchmark.scenario_ids if identity in summaries]
        return [*listed, *summaries.values()][:at_most]

    async def scenario(self, scenario_id: str) -> Scenario:
        return await self._ask(
            f"reading scenario {scenario_id}", lambda: self._client.scenarios.retrieve(scenario_id), parsing.scenario
        )

    async def start_benchmark_run(
        self, benchmark_id: str, *, name: str, metadata: Mapping[str, str], key: str
    ) -> BenchmarkRun:
        return await self._ask(
            f"starting a run of benchmark {benchmark_id}",
            lambda: self._client.benchmarks.start_run(
                benchmark_id=benchmark_id, run_name=name, metadata=dict(metadata), idempotency_key=key
            ),
            parsing.benchmark_run,
            ask=_once,
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

    async def check(self, needs: Needs) -> None:
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
    ) -> ScenarioRun:
        profile = await self._profile(keep_alive, needs)
        return await self._ask(
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
            ask=_once,
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
            f"noting how the devbox of run {run_id} is",
            partial(self._tell, run_id, "agent_begins", {}),
            parsing.receipt,
        )
        return True

    async def agent_ended(
        self, run_id: str, *, scoring: str, devbox: str | None = None, execution: str | None = None
    ) -> Settlement | None:
        if SETTLEMENTS not in await self.features():
            return None
        body = {"scoring": scoring, "devbox": devbox, "execution": execution}
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
        await self._end(run_id, "completing", lambda: self._client.scenarios.runs.complete(run_id))

    async def cancel(self, run_id: str) -> None:
        await self._end(run_id, "canceling", lambda: self._client.scenarios.runs.cancel(run_id))

    async def wait_running(self, devbox_id: str) -> Devbox:
        devbox = await hold(lambda: self._wait_status(devbox_id))
        if devbox.status == "running":
            return devbox
        reason = devbox.failure or devbox.status
        if devbox.failed_install is not None:  # so it is in every devbox: which one it was says nothing
            raise AgentSetupFailed(reason)
        raise DevboxFailed(f"devbox {devbox_id} never ran: {reason}")

    async def devbox(self, devbox_id: str) -> Devbox:
        return await self._ask(
            f"reading devbox {devbox_id}", lambda: self._client.devboxes.retrieve(devbox_id), parsing.devbox
        )

    async def list_devboxes(self) -> list[Devbox]:
        found = []
        for status in DEVBOX_ALIVE:
            lister = partial(self._client.devboxes.list, status=status)
            found += await self._all(f"listing the devboxes that are {status}", lister, parsing.devbox)
        return list({devbox.id: devbox for devbox in found}.values())

    async def shutdown(self, devbox_id: str) -> None:
        with suppress(Conflicted, Missing):
            await self._ask(
                f"shutting down devbox {devbox_id}",
                lambda: self._client.devboxes.shutdown(devbox_id),
                parsing.of(devbox_id, parsing.devbox),
            )

    async def execute(self, devbox_id: str, command: str, *, key: str) -> Execution:
        return await self._in_devbox(
            devbox_id,
            "running a command",
            lambda: self._client.devboxes.execute_async(devbox_id, command=command, idempotency_key=key),
            parsing.execution,
        )

    async def wait_completed(self, devbox_id: str, execution_id: str) -> Execution:
        execution = await hold(lambda: self._wait_execution(devbox_id, execution_id))
        if execution.exit_status is None or execution.exit_status > 128:
            await self._check_alive(devbox_id)
        return execution

    async def output(self, devbox_id: str, execution_id: str, offset: int = 0) -> AsyncGenerator[tuple[str, int], None]:
        what = f"reading the output of {execution_id}"

        async def connect() -> Any:
            return await self._client.devboxes.executions.stream_stdout_updates(
                execution_id, devbox_id=devbox_id, offset=str(offset)
            )

        pause = FIRST_PAUSE
        while True:
            stream = await patiently(what, connect)
            begun_at = offset
            try:
                with translated(what), parsing.shaped(what):
                    async with stream:
                        parsing.check_stream(stream.response.headers.get("content-type", ""))
                        async for chunk in stream:
                            self._answered_at = anyio.current_time()
                            offset = parsing.offset_behind(chunk, offset)
                            yield chunk.output, offset
            except Unavailable:
                pause = FIRST_PAUSE if offset > begun_at else min(2 * pause, LONGEST_PAUSE)
                await anyio.sleep(pause)
            else:
                return

    async def kill(self, devbox_id: str, execution_id: str) -> None:
        await self._in_devbox(
            devbox_id,
            f"killing {execution_id}",
            lambda: self._client.devboxes.executions.kill(execution_id, devbox_id=devbox_id, kill_process_group=True),
            parsing.of(execution_id, parsing.execution),
        )

    async def read_file(self, devbox_id: str, path: str) -> AsyncGenerator[bytes, None]:
        what = f"reading {path}"
        download = self._client.devboxes.with_streaming_response.download_file
        had, pause = 0, FIRST_PAUSE
        while True:
            async with AsyncExitStack() as opened:

                def connect(opened: AsyncExitStack = opened) -> Awaitable[AsyncAPIResponse[Any]]:
                    return opened.enter_async_context(download(devbox_id, path=path, timeout=_TRANSFER_TIMEOUT))

                answer = await self._in_devbox(devbox_id, what, connect, _as_it_is)
                begun_at, at = had, 0
                try:
                    with translated(what), parsing.shaped(what):
                        parsing.check_file(answer.status_code, answer.headers.get("content-type", ""))
                        async for piece in answer.iter_bytes():
                            self._answered_at = anyio.current_time()
                            at += len(piece)
                            if at > had:  # what came before an answer broke off is not given twice
                                new, had = piece[had - at :], at
                                yield new
                except Unavailable:
                    pause = FIRST_PAUSE if had > begun_at else min(2 * pause, LONGEST_PAUSE)
                else:
                    return
            await anyio.sleep(pause)

    async def write_file(self, devbox_id: str, path: str, data: bytes) -> None:
        await self._in_devbox(
            devbox_id,
            f"writing {path}",
            lambda: self._client.devboxes.upload_file(devbox_id, path=path, file=data, timeout=_TRANSFER_TIMEOUT),
            parsing.receipt,
        )

    async def devbox_log(self, devbox_id: str) -> str:
        async def read() -> list[str]:
            # Not as the client's records, which it would make of ten thousand lines in the loop's thread.
            answer = await self._client.devboxes.logs.with_raw_response.list(devbox_id)
            return await anyio.to_thread.run_sync(parsing.log_lines, await answer.read())

        return await self._ask(f"reading the log of {devbox_id}", read, "".join)

    async def _profile(self, keep_alive: int, needs: Needs) -> RunProfile:
        """The run profile for what a devbox needs."""
        profile: RunProfile = {"launch_parameters": {"keep_alive_time_seconds": keep_alive}}
        policy = await self._policies.identity(needs)
        if policy is not None:
            profile["launch_parameters"] = {"keep_alive_time_seconds": keep_alive, "network_policy_id": policy}
        if needs.secrets:
            profile["secrets"] = dict(needs.secrets)
        if needs.install is not None and "installs" in await self.features():
            asked = {name: value for name, value in asdict(needs.install).items() if value}
            mount: Any = {"type": "install_mount", **asked}  # the client's types know none of ours
            profile["mounts"] = [mount]
        return profile

    async def _definitions(
        self, benchmark: Benchmark, cursor: str | None, choice: Mapping[str, str]
    ) -> tuple[list[ScenarioSummary], bool]:
        """One page, and whether there are more. A service of ours reads only what is chosen; others do not know."""
        return await self._ask(
            f"reading the definitions of benchmark {benchmark.name}",
            lambda: self._client.benchmarks.definitions(
                benchmark.id, limit=DEFINITIONS, starting_after=cursor or omit, extra_query=choice
            ),
            lambda page: ([parsing.summary(view) for view in page.scenarios], bool(page.has_more)),
        )

    async def _end(self, run_id: str, doing: str, call: Callable[[], Awaitable[ScenarioRunView]]) -> None:
        try:
            await self._ask(f"{doing} run {run_id}", call, parsing.of(run_id, parsing.run))
        except Conflicted:
            if (await self.run(run_id)).state in {"running", "scoring", "scored"}:
                raise

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

    async def _wait_status(self, devbox_id: str) -> Devbox | None:
        body = {"statuses": ["running", "failure", "shutdown", "suspended"], "timeout_seconds": HOLD}
        path = f"/v1/devboxes/{devbox_id}/wait_for_status"
        devbox = await self._ask(
            f"waiting for devbox {devbox_id}",
            lambda: self._long_poll(path, body, DevboxView),
            parsing.perhaps(parsing.devbox),
        )
        return None if devbox is None or devbox.status in DEVBOX_BOOTING else devbox

    async def _wait_execution(self, devbox_id: str, execution_id: str) -> Execution | None:
        body = {"statuses": ["completed"], "timeout_seconds": HOLD}
        path = f"/v1/devboxes/{devbox_id}/executions/{execution_id}/wait_for_status"
        execution = await self._in_devbox(
            devbox_id,
            f"waiting for {execution_id}",
            lambda: self._long_poll(path, body, DevboxAsyncExecutionDetailView),
            parsing.perhaps(parsing.execution),
        )
        return None if execution is None or not execution.is_completed else execution

    async def _long_poll(self, path: str, body: Mapping[str, Any], cast_to: type[T]) -> T | None:
        """What the endpoint answers, None for "not yet"."""
        try:
            view = await self._client.post(
                path, body=body, cast_to=cast_to, options={"timeout": httpx.Timeout(HOLD + _SLACK, connect=10)}
            )
            return parsing.said(view)
        except APIStatusError as error:
            if error.response.status_code == codes.REQUEST_TIMEOUT:
                return None
            raise

    async def _in_devbox(
        self, devbox_id: str, doing: str, call: Callable[[], Awaitable[V]], read: Callable[[V], T]
    ) -> T:
        """Call something that needs the devbox alive. Raises DevboxLost when a refusal comes of its death."""
        try:
            return await self._ask(f"{doing} in devbox {devbox_id}", call, read)
        except (Conflicted, Missing):
            await self._check_alive(devbox_id)
            raise

    async def _check_alive(self, devbox_id: str) -> None:
        try:
            devbox = await self.devbox(devbox_id)
        except Missing:
            raise DevboxLost(f"devbox {devbox_id} is unknown to the endpoint now") from None
        if devbox.status in DEVBOX_DEAD:
            raise DevboxLost(f"devbox {devbox_id} is gone: {devbox.failure or devbox.status}")

    async def _all(self, what: str, lister: Callable[..., Awaitable[Any]], read: Callable[[V], T]) -> list[T]:
        """Every item of a list, from its first page again where one fails; the caller tells doubles by their ids."""

        async def walk() -> list[T]:
            page, found = await lister(limit=PAGE, include_total_count=False), list[T]()
            while True:
                found += map(read, parsing.items(page))
                if not page.has_next_page():
                    return found
                page = await page.get_next_page()

        return await self._ask(what, walk, list[T])

    async def _ask(
        self,
        what: str,
        call: Callable[[], Awaitable[V]],
        read: Callable[[V], T],
        *,
        ask: Callable[[str, Callable[[], Awaitable[T]]], Awaitable[T]] = patiently,
    ) -> T:
        """Call and read the answer as a record of ours, again until there is one unless told otherwise."""

        async def ask_once() -> T:
            try:
                with parsing.shaped(what), translated(what):
                    view = await call()
                    if isinstance(view, str):  # what the client makes of an answer that is not JSON
                        raise TypeError(f"it is not JSON, but {view[:100]!r}")
                    answer = read(view)
            except (Refused, Throttled):
                self._answered_at = anyio.current_time()
                raise
            self._answered_at = anyio.current_time()
            return answer

        return await ask(what, ask_once)


def _as_it_is(answer: T) -> T:
    return answer


async def _once(what: str, call: Callable[[], Awaitable[V]]) -> V:
    """Call once. Raises the fault."""
    with translated(what):
        return await call()
