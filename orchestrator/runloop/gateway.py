"""The endpoint behind the published client: makes calls, parses replies into our records.

The client is told to retry nothing, and its replies are not trusted to have what they should: a view without an id is
a fault of the endpoint, named as such.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import httpx
from httpx_aiohttp import AiohttpTransport
from runloop_api_client import APIStatusError, AsyncRunloop, DefaultAioHttpClient, omit
from runloop_api_client.types import BenchmarkRunView, BenchmarkView, DevboxView, ScenarioRunView, ScenarioView
from runloop_api_client.types.devbox_async_execution_detail_view import DevboxAsyncExecutionDetailView
from runloop_api_client.types.scenario_definition_list_view import ScenarioDefinitionListView

from orchestrator.errors import Conflicted, DevboxFailed, DevboxLost, Missing, Refused, Unavailable
from orchestrator.model import (
    DEVBOX_DEAD,
    Benchmark,
    BenchmarkRun,
    Devbox,
    Execution,
    Scenario,
    ScenarioRun,
    ScenarioSummary,
    ScorerResult,
)
from orchestrator.runloop.faults import translated
from orchestrator.runloop.throttle import Throttle
from orchestrator.runloop.waiting import HOLD, hold, patiently, poll

T = TypeVar("T")

HOME: Final = "/home/user"
CONNECTIONS: Final = 4096
PAGE: Final = 5000
#: Definitions carry whole scripts: fewer to a page.
DEFINITIONS: Final = 200
#: Seconds added to a long-poll's hold before the client gives up on it.
_SLACK: Final = 10.0
_UPLOAD_TIMEOUT: Final = 600.0


class Gateway:
    """Implements `runloop.contract.Endpoint`. Use `async with Gateway.open(url, token, rate=…) as endpoint`."""

    def __init__(self, client: AsyncRunloop, url: str) -> None:
        self._client = client
        self._url = url

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, token: str, *, rate: float | None) -> AsyncIterator["Gateway"]:
        """Build the client inside the running loop, on the transport that holds thousands of waits."""
        transport = Throttle(AiohttpTransport(limits=httpx.Limits(max_connections=CONNECTIONS)), rate)
        http = DefaultAioHttpClient(transport=transport, trust_env=False)
        async with AsyncRunloop(bearer_token=token, base_url=url, max_retries=0, http_client=http) as client:
            yield cls(client, url)

    @property
    def url(self) -> str:
        return self._url

    async def benchmarks(self) -> list[Benchmark]:
        found: dict[str, Benchmark] = {}

        async def read() -> None:
            for lister in (self._client.benchmarks.list, self._client.benchmarks.list_public):
                async for view in lister(limit=PAGE, include_total_count=False):
                    found[view.id] = _benchmark(view)

        await patiently("listing the benchmarks", read)
        return list(found.values())

    async def summaries(self, benchmark: Benchmark) -> list[ScenarioSummary]:
        summaries: dict[str, ScenarioSummary] = {}
        cursor: str | None = None
        while True:
            page = await self._definitions(benchmark, cursor)
            views = page.scenarios or []
            summaries |= {view.id: _summary(view) for view in views}
            if not views or not page.has_more:
                break
            cursor = views[-1].id
        listed = [summaries.pop(identity) for identity in benchmark.scenario_ids if identity in summaries]
        return listed + list(summaries.values())

    async def scenario(self, scenario_id: str) -> Scenario:
        view = await patiently(f"reading scenario {scenario_id}", lambda: self._client.scenarios.retrieve(scenario_id))
        return Scenario(
            id=_required(view.id, "a scenario's id"),
            name=view.name or view.id,
            prompt=_required(view.input_context.problem_statement, f"the problem statement of {scenario_id}"),
            reference_output=view.reference_output,
            working_directory=view.environment.working_directory if view.environment else None,
        )

    async def start_benchmark_run(
        self, benchmark_id: str, *, name: str, metadata: Mapping[str, str], key: str
    ) -> BenchmarkRun:
        view = await patiently(
            f"starting a run of benchmark {benchmark_id}",
            lambda: self._client.benchmarks.start_run(
                benchmark_id=benchmark_id, run_name=name, metadata=dict(metadata), idempotency_key=key
            ),
        )
        return _benchmark_run(view)

    async def benchmark_run(self, run_id: str) -> BenchmarkRun:
        view = await patiently(f"reading benchmark run {run_id}", lambda: self._client.benchmark_runs.retrieve(run_id))
        return _benchmark_run(view)

    async def complete_benchmark_run(self, run_id: str) -> None:
        await patiently(f"completing benchmark run {run_id}", lambda: self._client.benchmark_runs.complete(run_id))

    async def start_run(
        self,
        scenario_id: str,
        *,
        benchmark_run_id: str | None,
        name: str,
        metadata: Mapping[str, str],
        keep_alive: int,
        key: str,
    ) -> ScenarioRun:
        view = await patiently(
            f"starting a run of scenario {scenario_id}",
            lambda: self._client.scenarios.start_run(
                scenario_id=scenario_id,
                benchmark_run_id=benchmark_run_id or omit,
                run_name=name,
                metadata=dict(metadata),
                run_profile={"launch_parameters": {"keep_alive_time_seconds": keep_alive}},
                idempotency_key=key,
            ),
        )
        return _run(view)

    async def run(self, run_id: str) -> ScenarioRun:
        view = await patiently(f"reading run {run_id}", lambda: self._client.scenarios.runs.retrieve(run_id))
        return _run(view)

    async def score(self, run_id: str, *, key: str) -> ScenarioRun:
        view = await patiently(
            f"scoring run {run_id}", lambda: self._client.scenarios.runs.score(run_id, idempotency_key=key)
        )
        return _run(view)

    async def wait_scored(self, run_id: str) -> ScenarioRun:
        return await poll(lambda: self.run(run_id), lambda run: run.state != "scoring")

    async def complete(self, run_id: str) -> None:
        await self._end(run_id, "completing", lambda: self._client.scenarios.runs.complete(run_id))

    async def cancel(self, run_id: str) -> None:
        await self._end(run_id, "canceling", lambda: self._client.scenarios.runs.cancel(run_id))

    async def wait_running(self, devbox_id: str) -> Devbox:
        view = await hold(lambda: self._wait_status(devbox_id))
        devbox = _devbox(view)
        if devbox.status != "running":
            raise DevboxFailed(f"devbox {devbox_id} never ran: {devbox.failure or devbox.status}")
        return devbox

    async def devbox(self, devbox_id: str) -> Devbox:
        view = await patiently(f"reading devbox {devbox_id}", lambda: self._client.devboxes.retrieve(devbox_id))
        return _devbox(view)

    async def execute(self, devbox_id: str, command: str, *, key: str) -> Execution:
        view = await self._in_devbox(
            devbox_id,
            "running a command",
            lambda: self._client.devboxes.execute_async(devbox_id, command=command, idempotency_key=key),
        )
        return _execution(view)

    async def wait_completed(self, devbox_id: str, execution_id: str) -> Execution:
        view = await hold(
            lambda: self._in_devbox(
                devbox_id, f"waiting for {execution_id}", lambda: self._wait_execution(devbox_id, execution_id)
            )
        )
        execution = _execution(view)
        if execution.exit_status is None or execution.exit_status > 128:
            await self._check_alive(devbox_id)
        return execution

    async def output(self, devbox_id: str, execution_id: str, offset: int = 0) -> AsyncGenerator[tuple[str, int], None]:
        what = f"reading the output of {execution_id}"

        async def connect() -> Any:
            return await self._client.devboxes.executions.stream_stdout_updates(
                execution_id, devbox_id=devbox_id, offset=str(offset)
            )

        while True:
            stream = await patiently(what, connect)
            try:
                with translated(what):
                    async for chunk in stream:
                        offset = chunk.offset if chunk.offset is not None else offset + len(chunk.output.encode())
                        yield chunk.output, offset
                    return
            except Unavailable:
                continue
            finally:
                await stream.close()

    async def kill(self, devbox_id: str, execution_id: str) -> None:
        await self._in_devbox(
            devbox_id,
            f"killing {execution_id}",
            lambda: self._client.devboxes.executions.kill(execution_id, devbox_id=devbox_id, kill_process_group=True),
        )

    async def read_file(self, devbox_id: str, path: str) -> bytes:
        async def read() -> bytes:
            answer = await self._client.devboxes.download_file(devbox_id, path=path, timeout=_UPLOAD_TIMEOUT)
            return await answer.read()

        return await self._in_devbox(devbox_id, f"reading {path}", read)

    async def write_file(self, devbox_id: str, path: str, data: bytes) -> None:
        await self._in_devbox(
            devbox_id,
            f"writing {path}",
            lambda: self._client.devboxes.upload_file(devbox_id, path=path, file=data, timeout=_UPLOAD_TIMEOUT),
        )

    async def devbox_log(self, devbox_id: str) -> str:
        view = await patiently(f"reading the log of {devbox_id}", lambda: self._client.devboxes.logs.list(devbox_id))
        return "".join(f"{entry.source} {entry.level} {entry.message or entry.cmd or ''}\n" for entry in view.logs)

    async def _definitions(self, benchmark: Benchmark, cursor: str | None) -> ScenarioDefinitionListView:
        return await patiently(
            f"reading the definitions of benchmark {benchmark.name}",
            lambda: self._client.benchmarks.definitions(benchmark.id, limit=DEFINITIONS, starting_after=cursor or omit),
        )

    async def _end(self, run_id: str, doing: str, call: Callable[[], Awaitable[object]]) -> None:
        try:
            await patiently(f"{doing} run {run_id}", call)
        except Conflicted:
            if (await self.run(run_id)).state in {"running", "scoring", "scored"}:
                raise

    async def _wait_status(self, devbox_id: str) -> DevboxView | None:
        body = {"statuses": ["running", "failure", "shutdown", "suspended"], "timeout_seconds": HOLD}
        return await self._long_poll(
            f"waiting for devbox {devbox_id}", f"/v1/devboxes/{devbox_id}/wait_for_status", body, DevboxView
        )

    async def _wait_execution(self, devbox_id: str, execution_id: str) -> DevboxAsyncExecutionDetailView | None:
        return await self._long_poll(
            f"waiting for {execution_id}",
            f"/v1/devboxes/{devbox_id}/executions/{execution_id}/wait_for_status",
            {"statuses": ["completed"], "timeout_seconds": HOLD},
            DevboxAsyncExecutionDetailView,
        )

    async def _long_poll(self, what: str, path: str, body: Mapping[str, Any], cast_to: type[T]) -> T | None:
        async def ask() -> T | None:
            try:
                return await self._client.post(
                    path, body=body, cast_to=cast_to, options={"timeout": httpx.Timeout(HOLD + _SLACK, connect=10)}
                )
            except APIStatusError as error:
                if error.response.status_code == httpx.codes.REQUEST_TIMEOUT:
                    return None
                raise

        return await patiently(what, ask)

    async def _in_devbox(self, devbox_id: str, doing: str, call: Callable[[], Awaitable[T]]) -> T:
        """Call something that needs the devbox alive. Raises DevboxLost when a refusal comes of its death."""
        try:
            return await patiently(f"{doing} in devbox {devbox_id}", call)
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


def _required(value: T | None, what: str) -> T:
    if value is None or value == "":
        raise Refused(f"the endpoint's answer lacks {what}")
    return value


def _benchmark(view: BenchmarkView) -> Benchmark:
    return Benchmark(
        id=_required(view.id, "a benchmark's id"),
        name=view.name or view.id,
        scenario_ids=tuple(view.scenario_ids or ()),
    )


def _summary(view: ScenarioView) -> ScenarioSummary:
    metadata = view.metadata or {}
    return ScenarioSummary(
        id=_required(view.id, "a scenario's id"),
        name=view.name or view.id,
        digest=metadata.get("digest", ""),
        agent_timeout=_seconds(metadata.get("agent_timeout_sec")),
        scorer_timeout=_seconds(view.scorer_timeout_sec),
    )


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if seconds > 0 else None


def _benchmark_run(view: BenchmarkRunView) -> BenchmarkRun:
    return BenchmarkRun(
        id=_required(view.id, "a benchmark run's id"),
        benchmark_id=view.benchmark_id or "",
        state=view.state,
        name=view.name or "",
    )


def _run(view: ScenarioRunView) -> ScenarioRun:
    result = view.scoring_contract_result
    scorers = [
        ScorerResult(name=each.scoring_function_name, score=each.score, state=each.state, output=each.output or "")
        for each in (result.scoring_function_results or [] if result else [])
    ]
    return ScenarioRun(
        id=_required(view.id, "a run's id"),
        scenario_id=view.scenario_id,
        devbox_id=_required(view.devbox_id, "a run's devbox"),
        state=view.state,
        score=result.score if result else None,
        scorers=tuple(scorers),
        metadata=view.metadata or {},
    )


def _devbox(view: DevboxView) -> Devbox:
    extra = view.model_extra or {}
    reason = extra.get("failure_message") or view.failure_reason or view.shutdown_reason or ""
    return Devbox(
        id=view.id,
        status=view.status,
        failure=str(reason),
        home=str(extra.get("home") or HOME),
        working_directory=extra.get("working_directory"),
    )


def _execution(view: DevboxAsyncExecutionDetailView) -> Execution:
    return Execution(
        id=_required(view.execution_id, "an execution's id"),
        devbox_id=view.devbox_id,
        is_completed=view.status == "completed",
        exit_status=view.exit_status,
        stdout=view.stdout or "",
        stderr=view.stderr or "",
    )
