"""Makes records of ours of the endpoint's answers.

The client does not validate: missing fields are None, wrong values pass through. An answer without the shape of its
call's answer is not the endpoint's: a proxy, a portal or a balancer gave it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Any, TypeVar

import msgspec
import orjson
from httpx import codes
from pydantic import BaseModel
from runloop_api_client import types
from runloop_api_client.types.devbox_async_execution_detail_view import DevboxAsyncExecutionDetailView
from runloop_api_client.types.devboxes.execution_update_chunk import ExecutionUpdateChunk

from orchestrator.core import records
from orchestrator.core.errors import Unavailable
from orchestrator.core.protocol import HOME, AdditionalContext

T = TypeVar("T")
V = TypeVar("V")


@contextmanager
def shaped(what: str) -> Iterator[None]:
    """Raise Unavailable if a view inside has the wrong shape: the client does not look. `what` names the call."""
    try:
        yield
    except (JSONDecodeError, UnicodeDecodeError):
        raise  # `errors` has the words
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unavailable(f"{what}: the endpoint's answer is not what it should be: {error}") from error


def perhaps(read: Callable[[V], T]) -> Callable[[V | None], T | None]:
    """Make a reader like `read` that returns None for None."""
    return lambda view: None if view is None else read(view)


def said(view: T | None) -> T:
    """Return the view. Raises ValueError if there is none."""
    if view is None:
        raise ValueError("it says nothing")
    return view


def of(identity: str, read: Callable[[V], T]) -> Callable[[V], T]:
    """Make a reader like `read` that raises ValueError for a record with another id than `identity`."""

    def read_its(view: V) -> T:
        record = read(view)
        if getattr(record, "id", None) != identity:
            raise ValueError(f"it is not about {identity}")
        return record

    return read_its


def receipt(view: object) -> None:
    """Check the answer of a call that returns nothing: any JSON object. Raises TypeError for another one."""
    if not isinstance(view, Mapping):
        raise TypeError(f"an object was expected, not {view!r:.100}")


def items(page: BaseModel) -> list[Any]:
    """The list on a page, whose name differs with the kind of the page. Raises TypeError if it is no list."""
    (listed,) = (getattr(page, name) for name in type(page).model_fields if name not in {"has_more", "total_count"})
    if not isinstance(listed, list):
        raise TypeError("it has no list")
    return listed


def check_file(status: int, kind: str) -> None:
    """Raise ValueError if an answer of this status and content type is no file: HTML and JSON are none."""
    if status != codes.OK or kind.startswith(("text/html", "application/json")):
        raise ValueError(f"it is no file (HTTP {status}, {kind or 'of no type'})")


def check_stream(kind: str) -> None:
    """Raise ValueError if an answer of this content type is no event stream: read as one, it would end at once."""
    if not kind.startswith("text/event-stream"):
        raise ValueError(f"it is no stream of events, but {kind or 'of no type'}")


def offset_behind(chunk: ExecutionUpdateChunk, offset: int) -> int:
    """The offset behind a piece of output that begins at `offset`. Some endpoints send it, others that before it."""
    if chunk.offset is not None and chunk.offset > offset:
        return chunk.offset
    return offset + len(chunk.output.encode("utf-8", "surrogatepass"))


def log_lines(answer: bytes) -> list[str]:
    """The entries of a devbox's log, a line each, of the raw `answer`. May take long: for a worker thread."""
    entries = orjson.loads(answer)["logs"]
    lines = ((each["source"], each["level"], each.get("message") or each.get("cmd") or "") for each in entries)
    return [f"{source} {level} {words}\n" for source, level, words in lines]


def policy(view: types.NetworkPolicyView) -> types.NetworkPolicyView:
    """Check a network policy. Raises what `shaped` takes for a wrong shape."""
    _required(view.id, "a policy's id")
    if not isinstance(view.egress.allow_all, bool):
        raise TypeError("it does not say what the policy allows")
    sorted(view.egress.allowed_hostnames)
    return view


def _required(value: T | None, what: str) -> T:
    if value is None or value == "":
        raise ValueError(f"it lacks {what}")
    return value


def benchmark(view: types.BenchmarkView) -> records.Benchmark:
    return records.Benchmark(
        id=_required(view.id, "a benchmark's id"),
        name=view.name or view.id,
        scenario_ids=tuple(view.scenario_ids or ()),
    )


def scenario(view: types.ScenarioView) -> records.Scenario:
    return records.Scenario(
        id=_required(view.id, "a scenario's id"),
        name=view.name or view.id,
        prompt=_required(view.input_context.problem_statement, f"the problem statement of {view.id}"),
        digest=(view.metadata or {}).get("digest", ""),
        reference_output=view.reference_output,
        working_directory=view.environment.working_directory if view.environment else None,
        artifacts=_artifacts(view.model_extra or {}),
        context=_context(view.input_context),
        steps=tuple(
            records.ScenarioStep(
                name=_required(each["name"], "a step's name"),
                prompt=_required(each["problem_statement"], f"the problem statement of {view.id}, {each['name']}"),
                reference_output=each["reference_output"],
                artifacts=_artifacts(each),
            )
            for each in _steps(view)
        ),
    )


def _artifacts(view: Mapping[str, Any]) -> tuple[records.Artifact, ...]:
    return tuple(
        records.Artifact(source=each["source"], exclude=tuple(each["exclude"])) for each in view.get("artifacts") or ()
    )


def _steps(view: types.ScenarioView) -> list[Mapping[str, Any]]:
    return (view.model_extra or {}).get("steps") or []


def summary(view: types.ScenarioView) -> records.ScenarioSummary:
    metadata = view.metadata or {}
    required = tuple(view.required_environment_variables or ())
    return records.ScenarioSummary(
        id=_required(view.id, "a scenario's id"),
        name=view.name or view.id,
        digest=metadata.get("digest", ""),
        agent_timeout=_seconds(metadata.get("agent_timeout_sec")),
        scorer_timeout=_seconds(view.scorer_timeout_sec),
        network=tuple(filter(None, metadata.get("reaches", "").split(","))),
        unsupported=metadata.get("unsupported", ""),
        notes=tuple(filter(None, metadata.get("notes", "").split("\n"))),
        environment=_blueprint_of(view),
        context=_context(view.input_context),
        steps=tuple(
            records.StepLimits(
                name=each["name"],
                agent_timeout=_seconds(each["agent_timeout_sec"]),
                scorer_timeout=_seconds(each["scorer_timeout_sec"]),
            )
            for each in _steps(view)
        ),
        verifier_environments=tuple(filter(None, metadata.get("verifier_blueprint_ids", "").split(","))),
        variables=(*required, *filter(None, metadata.get("optional_variables", "").split(","))),
        required=required,
    )


def _context(given: Any) -> AdditionalContext:
    """Read the additional context of a view, or of our own document; what is not in our form is not for us."""
    found = given.get("additional_context") if isinstance(given, Mapping) else given.additional_context
    try:
        return msgspec.convert(found or {}, AdditionalContext)
    except msgspec.ValidationError:
        return AdditionalContext()


def _blueprint_of(view: types.ScenarioView) -> str:
    environment = view.environment  # of our own document, it is one too
    blueprint = (
        environment.get("blueprint_id")
        if isinstance(environment, Mapping)
        else (environment.blueprint_id if environment else None)
    )
    return blueprint or ""


def preparations(view: Mapping[str, Any]) -> list[records.Preparation]:
    return [
        records.Preparation(
            environment=str(each["blueprint_id"]),
            state=str(each["state"]),
            message=str(each["message"]),
            seconds=float(each["seconds"]),
        )
        for each in view["preparations"]
    ]


def room(view: Mapping[str, Any]) -> records.RoomEstimate:
    return records.RoomEstimate(**{name: int(view[name]) for name in ("images", "here", "unknown", "wanted", "room")})


def summary_of(document: Mapping[str, Any]) -> records.ScenarioSummary:
    """Read the document that our service would send of a scenario."""
    return summary(types.ScenarioView.model_construct(**document))


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if seconds > 0 else None


def benchmark_run(view: types.BenchmarkRunView) -> records.BenchmarkRun:
    return records.BenchmarkRun(
        id=_required(view.id, "a benchmark run's id"),
        benchmark_id=view.benchmark_id or "",
        state=_required(view.state, "a benchmark run's state"),
        name=view.name or "",
        metadata=view.metadata or {},
    )


def run(view: types.ScenarioRunView) -> records.ScenarioRun:
    extra = view.model_extra or {}
    result = view.scoring_contract_result
    scorers = _scorers(result)
    return records.ScenarioRun(
        id=_required(view.id, "a run's id"),
        scenario_id=view.scenario_id,
        devbox_id=_required(view.devbox_id, "a run's devbox"),
        state=_required(view.state, "a run's state"),
        score=result.score if result else None,
        scorers=scorers,
        judgement=_judgement(extra.get("scoring")),
        rewards=extra.get("rewards") or _rewards(scorers),
        steps=tuple(map(_step_result, extra.get("steps") or ())),
        benchmark_run_id=view.benchmark_run_id,
        metadata=view.metadata or {},
    )


def _step_result(view: Mapping[str, Any]) -> records.StepResult:
    said = view.get("scoring_contract_result")
    result = types.ScoringContractResultView.model_construct(**said) if said else None
    scorers = _scorers(result)
    return records.StepResult(
        name=view["name"],
        score=result.score if result else None,
        scorers=scorers,
        judgement=_judgement(view.get("scoring")),
        rewards=_rewards(scorers),
    )


def _scorers(result: types.ScoringContractResultView | None) -> tuple[records.ScorerResult, ...]:
    return tuple(
        records.ScorerResult(
            name=each.scoring_function_name,
            score=each.score,
            state=each.state,
            output=each.output or "",
            rewards=(each.model_extra or {}).get("rewards") or {},
        )
        for each in (result.scoring_function_results or [] if result else [])
    )


def _rewards(scorers: Iterable[records.ScorerResult]) -> Mapping[str, float]:
    return {name: value for scorer in scorers for name, value in scorer.rewards.items()}


def _judgement(said: Mapping[str, Any] | None) -> records.Judgement | None:
    if not said:
        return None
    return records.Judgement(
        mode=str(said.get("mode") or ""),
        was_live=bool(said.get("was_live")),
        processes_left=said.get("processes_left") or {},
        system_changed=tuple(said.get("system_changed") or ()),
        broken=str(said.get("broken") or ""),
    )


def settlement(view: Mapping[str, Any]) -> records.Settlement | None:
    """The settlement; None if scorers run beside the agent's processes, in the devbox as it is."""
    if view["scratch"] is None:
        return None
    return records.Settlement(
        exit_status=view["exit_status"],
        scratch=str(view["scratch"]),
        evidence=str(view["evidence"]),
        prepared=str(view["prepared"]),
    )


def facts(view: Mapping[str, Any]) -> Mapping[str, Any]:
    """A service's facts about itself. Raises TypeError if they are none."""
    if not isinstance(view["features"], list):
        raise TypeError("its features are no list")
    return view


def features(view: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(map(str, view.get("features", ())))


def at_work(view: Mapping[str, Any]) -> list[str]:
    return list(map(str, view["at_work"]))


def notices(view: Mapping[str, Any], *, is_online: bool) -> list[str]:
    """Return the sentences of a service for all its users, and those for users of the internet if that `is_online`."""
    names = ("notices", "internet_notices") if is_online else ("notices",)
    return [text for name in names for text in view.get(name) or () if isinstance(text, str)]


def secret_names(view: types.SecretListView) -> frozenset[str]:
    return frozenset(secret.name for secret in view.secrets)


def devbox(view: types.DevboxView) -> records.Devbox:
    extra = view.model_extra or {}
    reason = extra.get("failure_message") or view.failure_reason or view.shutdown_reason or ""
    return records.Devbox(
        id=_required(view.id, "a devbox's id"),
        status=_required(view.status, "a devbox's status"),
        failure=str(reason),
        home=str(extra.get("home") or HOME),
        working_directory=extra.get("working_directory"),
        installed=frozenset(extra.get("installed") or ()),
        failed_install=extra.get("failed_install"),
        has_failed_environment=bool(extra.get("has_failed_environment")),
        reached=extra.get("reached"),
        refused=extra.get("refused"),
        preparing=str(extra.get("preparing") or ""),
        metadata=view.metadata or {},
    )


def execution(view: DevboxAsyncExecutionDetailView) -> records.Execution:
    return records.Execution(
        id=_required(view.execution_id, "an execution's id"),
        devbox_id=view.devbox_id,
        is_completed=view.status == "completed",
        exit_status=view.exit_status,
        stdout=view.stdout or "",
        stderr=view.stderr or "",
    )
