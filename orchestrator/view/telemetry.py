"""OpenTelemetry: a sweep as a trace, with a span for each process, trial, attempt and stage, and its metrics.

They are made from the journal by a follower, not by the engine: what happened is sent once it is durable, and nothing
waits for a receiver. The ids of spans are made from what they are, so that a resumed sweep goes on in its trace: the
sweep's id is the trace's, a stage that ends after a resume finds its attempt, and no span is sent twice.

Where to is decided by the standard variables, OTEL_EXPORTER_OTLP_ENDPOINT and its like; without one nothing is sent.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from orchestrator import __version__
from orchestrator.core import events
from orchestrator.core.records import TrialKey
from orchestrator.core.stages import Stage
from orchestrator.rundir.journal import now
from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.view.metrics import Metric, metrics_of

if TYPE_CHECKING:
    from opentelemetry.metrics import Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

#: Each turns something on.
ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
METRICS: Final = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"
#: Protocols that we speak.
PROTOCOLS: Final = frozenset({"", "http/protobuf"})
#: The time between two looks at the journal, and between two sums of it.
LOOK_S: Final = 1.0
MEASURE_S: Final = 10.0
MISSING: Final = (
    "OpenTelemetry is asked for by {}, and is not installed: pip install 'sweep-orchestrator[otel]'. Nothing is sent."
)
OTHER_PROTOCOL: Final = "OpenTelemetry: {} is not spoken here, only http/protobuf. Nothing is sent."
#: The attributes of GenAI for what agents report, by our names.
_USAGE: Final = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cost_usd": "sweep.cost_usd",
    "turns": "sweep.turns",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the environment asks for: traces, metrics, or neither, for the reason in `problem` if there is one."""

    traces: bool = False
    metrics: bool = False
    problem: str = ""

    def __bool__(self) -> bool:
        return self.traces or self.metrics


def wanted(environ: Mapping[str, str]) -> Wanted:
    """Read what is asked for. Imports nothing of OpenTelemetry where that is nothing."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Wanted()
    traces = (environ.get(TRACES) or environ.get(ENDPOINT)) and environ.get("OTEL_TRACES_EXPORTER") != "none"
    metrics = (environ.get(METRICS) or environ.get(ENDPOINT)) and environ.get("OTEL_METRICS_EXPORTER") != "none"
    if not traces and not metrics:
        return Wanted()
    for name in ("", "TRACES_", "METRICS_"):
        protocol = environ.get(f"OTEL_EXPORTER_OTLP_{name}PROTOCOL", "")
        if protocol not in PROTOCOLS:
            return Wanted(problem=OTHER_PROTOCOL.format(protocol))
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk.trace  # noqa: F401
    except ModuleNotFoundError:
        return Wanted(problem=MISSING.format(next(name for name in (ENDPOINT, TRACES, METRICS) if environ.get(name))))
    except Exception as error:  # noqa: BLE001 - it reads variables when it is imported, and some values it refuses
        return Wanted(problem=f"OpenTelemetry cannot be set up, and nothing is sent: {error}.")
    return Wanted(traces=bool(traces), metrics=bool(metrics))


@dataclass(slots=True)
class _OpenAttempt:
    """An attempt whose span is not sent yet; times by the journal's clock."""

    began: float
    attributes: dict[str, Any] = field(default_factory=dict)
    stage: Stage | None = None
    since: float = 0.0
    #: True until this process does something with an attempt that an earlier one began.
    is_taken_up: bool = False
    failure: Mapping[str, Any] | None = None
    #: The result of its trial, if it has one, and the time of that.
    result: Mapping[str, Any] | None = None
    ended: float | None = None


class SweepSpans:
    """Makes spans of the events that follow; what was before is known from the sweep's ledger.

    `ids` are those that the provider gives.
    """

    def __init__(self, sweep: RecordedSweep, provider: "TracerProvider", ids: "FixedIds") -> None:
        self._sweep = sweep
        self._ids = ids
        self._trace = ids.trace
        self._tracer = provider.get_tracer("sweep", __version__)
        ledger = sweep.ledger
        self._process = ledger.opened
        self._root = self._id("process", self._process)
        self._began = ledger.at
        self._notes: list[tuple[str, float, dict[str, Any]]] = []
        self._open: dict[tuple[TrialKey, int], _OpenAttempt] = {}
        for key, trial in ledger.trials.items():
            if ledger.under_way(key) is not None and (attempt := trial.attempt) is not None:
                found = _OpenAttempt(began=attempt.began or attempt.since, is_taken_up=True)
                if attempt.finished is not attempt.stage:
                    found.stage, found.since = attempt.stage, attempt.since
                self._open[key, attempt.number] = found

    def add(self, event: events.Event) -> None:
        """Take an event that the ledger has."""
        match event:
            case events.StageEntered():
                self._enter(event)
            case events.StageFinished():
                self._leave(event)
            case events.RunStarted():
                if (attempt := self._attempt(event)) is not None:
                    attempt.attributes |= {"sweep.scenario_run.id": event.run, "sweep.devbox.id": event.devbox}
            case events.AttemptEnded():
                if (attempt := self._attempt(event)) is not None:
                    self._break_off(event, attempt)
                    attempt.failure, attempt.ended = event.failure, event.at
            case events.TrialFinished():
                self._finish(event)
            case events.OrderGiven():
                self._notes.append(("order.given", event.at, {"sweep.order": event.words, "sweep.by": event.by}))
            case events.StrayFound():
                self._notes.append(("stray.found", event.at, {}))
            case _:
                pass

    def close(self) -> None:
        """Send what has ended and was not released, and the span of this process."""
        for (key, number), attempt in list(self._open.items()):
            if attempt.ended is not None:
                self._send_attempt(key, number, attempt.ended)
        ledger, plan = self._sweep.ledger, self._sweep.plan
        ended = ledger.ended or ""
        self._send(
            f"sweep {self._sweep.name}",
            identity=self._root,
            parent=None,
            began=self._began,
            ended=ledger.at,
            error="" if ended.startswith("finished") else ended or "it broke off",
            notes=self._notes,
            attributes={
                "sweep.id": self._sweep.manifest.sweep,
                "sweep.name": self._sweep.name,
                "sweep.benchmark": plan.benchmark,
                "sweep.process": self._process,
                "sweep.trials.planned": len(plan),
                "sweep.trials.finished": len(ledger.finished),
            },
        )

    def _attempt(self, event: events.AttemptEvent) -> _OpenAttempt | None:
        return self._open.get((TrialKey.parse(event.trial), event.attempt))

    def _enter(self, event: events.StageEntered) -> None:
        key = TrialKey.parse(event.trial), event.attempt
        attempt = self._open.setdefault(key, _OpenAttempt(began=event.at))
        if attempt.is_taken_up:  # what an earlier process began goes on
            attempt.is_taken_up = False
            if attempt.stage is event.stage:
                return
        if attempt.stage is not None:  # it is begun again
            self._send_stage(*key, attempt, event.at)
        attempt.stage, attempt.since = event.stage, event.at

    def _leave(self, event: events.StageFinished) -> None:
        attempt = self._attempt(event)
        if attempt is None or attempt.stage is not event.stage:
            return
        key = TrialKey.parse(event.trial)
        self._send_stage(key, event.attempt, attempt, event.at, facts=event.facts, waited=event.waited)
        if event.stage is Stage.RELEASE:
            self._send_attempt(key, event.attempt, event.at)

    def _break_off(self, event: events.AttemptEnded, attempt: _OpenAttempt) -> None:
        """Send the stage in which an attempt ended."""
        if attempt.stage is not None:
            key = TrialKey.parse(event.trial)
            self._send_stage(key, event.attempt, attempt, event.at, error=event.failure)

    def _finish(self, event: events.TrialFinished) -> None:
        key = TrialKey.parse(event.trial)
        attempt = self._open.get((key, event.attempt))
        if attempt is None:  # it was not tried
            self._send_trial(key, event.result, began=event.at, ended=event.at)
        else:
            attempt.result, attempt.ended = event.result, event.at

    def _send_stage(
        self,
        key: TrialKey,
        number: int,
        attempt: _OpenAttempt,
        ended: float,
        *,
        facts: Mapping[str, Any] | None = None,
        waited: float = 0.0,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        stage, attempt.stage = attempt.stage, None
        attributes: dict[str, Any] = {"sweep.stage": str(stage)} | ({"sweep.waited_s": waited} if waited else {})
        name = str(stage)
        if stage is Stage.SOLVE:
            attributes |= self._agent(key.arm) | {"gen_ai.operation.name": "invoke_agent"} | _usage(facts or {})
            name = f"invoke_agent {attributes['gen_ai.agent.name']}"
        self._send(
            name,
            identity=self._id(str(key), number, str(stage), attempt.since),
            parent=self._id(str(key), number),
            began=attempt.since,
            ended=ended,
            error=error["message"] if error else "",
            attributes=attributes | ({"error.type": error["class"]} if error else {}),
        )

    def _send_attempt(self, key: TrialKey, number: int, ended: float) -> None:
        attempt = self._open.pop((key, number))
        trial = self._sweep.ledger.trials[key]
        began = trial.began or attempt.began
        failure = attempt.failure
        self._send(
            f"attempt {number}",
            identity=self._id(str(key), number),
            parent=self._trial_id(key, began),
            began=attempt.began,
            ended=ended,
            error=failure["message"] if failure else "",
            attributes={"sweep.attempt": number, **attempt.attributes}
            | ({"error.type": failure["class"]} if failure else {}),
        )
        if attempt.result is not None:
            self._send_trial(key, attempt.result, began=began, ended=ended)

    def _send_trial(self, key: TrialKey, result: Mapping[str, Any], *, began: float, ended: float) -> None:
        failure, name = result.get("failure"), self._sweep.names.get(key.scenario, key.scenario)
        score = result.get("score")
        self._send(
            f"trial {name}",
            identity=self._trial_id(key, began),
            parent=self._root,
            began=began,
            ended=ended,
            error=failure["message"] if failure else "",
            notes=[
                (
                    "gen_ai.evaluation.result",
                    ended,
                    {
                        "gen_ai.evaluation.name": each["name"],
                        "gen_ai.evaluation.score.value": each["score"],
                    },
                )
                for each in result.get("scorers", ())
                if each.get("score") is not None
            ],
            attributes={
                "sweep.scenario.id": key.scenario,
                "sweep.scenario.name": name,
                "sweep.arm": key.arm,
                "sweep.trial": key.number,
                "sweep.outcome": str(result["outcome"]),
                "sweep.flags": list(result.get("flags", ())),
                **self._agent(key.arm),
                **_usage(result),
                **({"sweep.score": score} if score is not None else {}),
                **({"gen_ai.agent.version": result["version"]} if result.get("version") else {}),
                **({"error.type": failure["class"]} if failure else {}),
            },
        )

    def _agent(self, arm: str) -> dict[str, Any]:
        """The attributes of an arm's agent."""
        known = self._sweep.manifest.identity["arms"].get(arm, {})
        model = {"gen_ai.request.model": known["model"]} if known.get("model") else {}
        return {"gen_ai.agent.name": known.get("agent", arm), **model}

    def _trial_id(self, key: TrialKey, began: float) -> int:
        """A trial that is run again later is another span."""
        return self._id(str(key), f"{began:.3f}")

    def _id(self, *parts: object) -> int:
        """The id of a span: the same for what it is, in every process."""
        words = "\0".join(map(str, (self._trace, *parts)))
        return int.from_bytes(sha256(words.encode("utf-8", "surrogatepass")).digest()[:8]) or 1

    def _send(
        self,
        name: str,
        *,
        identity: int,
        parent: int | None,
        began: float,
        ended: float,
        attributes: Mapping[str, Any],
        error: str = "",
        notes: list[tuple[str, float, dict[str, Any]]] | None = None,
    ) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context

        context = Context()
        if parent is not None:
            above = trace.SpanContext(self._trace, parent, is_remote=True, trace_flags=trace.TraceFlags(1))
            context = trace.set_span_in_context(trace.NonRecordingSpan(above), context)
        self._ids.next = identity
        span = self._tracer.start_span(name, context, attributes=dict(attributes), start_time=_ns(began))
        for note, at, about in notes or ():
            span.add_event(note, about, timestamp=_ns(at))
        if error:
            span.set_status(trace.Status(trace.StatusCode.ERROR, error))
        span.end(_ns(max(began, ended)))


class FixedIds:
    """Gives the ids that are wanted next, in the shape of an `IdGenerator`; the sweep's own is that of its trace."""

    def __init__(self, sweep: str) -> None:
        self.trace = UUID(sweep).int
        self.next = 1

    def generate_span_id(self) -> int:
        return self.next

    def generate_trace_id(self) -> int:
        return self.trace

    def is_trace_id_random(self) -> bool:
        return False


def _ns(seconds: float) -> int:
    return round(seconds * 1000) * 10**6


def _usage(reported: Mapping[str, Any]) -> dict[str, Any]:
    usage = reported.get("usage")
    if not isinstance(usage, Mapping):  # an agent may report anything
        return {}
    return {name: usage[key] for key, name in _USAGE.items() if isinstance(usage.get(key), int | float)}


class Follower:
    """Follows a sweep in a thread that keeps no process from ending: `start`, and `stop`, which waits a short time.

    `push_backs` returns the answers so far by which the endpoint asked for less. `complain` is called, a few times at
    most, with the reason why something could not be sent.
    """

    def __init__(
        self,
        folder: Path,
        asked: Wanted,
        *,
        push_backs: Callable[[], int],
        complain: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._asked = asked
        self._push_backs = push_backs
        self._complain = complain
        self._latest: dict[str, Metric] = {}
        self._stopping, self._stopped = Flag(), Flag()
        self._thread = Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Send the rest, in so many seconds. Blocking."""
        self._stopping.set()
        self._stopped.wait(seconds)

    def _run(self) -> None:
        try:
            with first_of_each_level(self._complain):
                self._follow()
        except Exception as error:  # noqa: BLE001 - a mistake here must not end a sweep
            self._complain(f"{type(error).__name__}: {error}")
        finally:
            self._stopped.set()

    def _follow(self) -> None:
        sweep = RecordedSweep(self._folder)
        resource, ids = _resource(sweep), FixedIds(sweep.manifest.sweep)
        tracing = _tracing(resource, ids) if self._asked.traces else None
        spans = SweepSpans(sweep, tracing, ids) if tracing else None
        self._measure(sweep)
        metering = self._metering(resource) if self._asked.metrics else None
        is_last = False
        measured_at = time.monotonic()
        while not is_last:
            is_last = self._stopping.wait(LOOK_S)
            sweep.catch_up(spans.add if spans is not None else lambda _: None)
            if is_last or time.monotonic() - measured_at >= MEASURE_S:
                self._measure(sweep)
                measured_at = time.monotonic()
        if spans is not None and tracing is not None:
            spans.close()
            tracing.shutdown()
        if metering is not None:
            metering.shutdown()

    def _measure(self, sweep: RecordedSweep) -> None:
        pushed = Metric(
            name="push_backs",
            help="Answers of the endpoint by which it asked for less (429).",
            kind="counter",
            samples=[({}, self._push_backs())],
        )
        found = metrics_of(sweep.ledger, sweep.plan, now=now())
        self._latest = {metric.name: metric for metric in (*found, pushed)}

    def _metering(self, resource: "Resource") -> "MeterProvider":
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.metrics import Observation
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        provider = MeterProvider([reader], resource, shutdown_on_exit=False)
        meter = provider.get_meter("sweep", __version__)

        def observed(name: str) -> Callable[[object], "Iterator[Observation]"]:
            return lambda _: (Observation(value, labels) for labels, value in self._latest[name].samples)

        for metric in self._latest.values():
            create = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
            create(f"sweep.{metric.name}", [observed(metric.name)], metric.unit, metric.help)
        return provider


def _tracing(resource: "Resource", ids: FixedIds) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=cast("Any", ids))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _resource(sweep: RecordedSweep) -> "Resource":
    """What the environment says of this program, and what sweep it is."""
    from opentelemetry.sdk.resources import Resource

    about = {"sweep.id": sweep.manifest.sweep, "sweep.name": sweep.name}
    resource = Resource.create({"service.version": __version__, **about})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "sweep"}))
    return resource


@contextmanager
def first_of_each_level(complain: Callable[[str], None]) -> Iterator[None]:
    """Inside, the first warning and the first error of OpenTelemetry's own log are passed on, and none is printed.

    A warning may say only that something is tried again.
    """
    told = set[int]()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno not in told:
                told.add(record.levelno)
                complain(record.getMessage())

    logger, listener = logging.getLogger("opentelemetry"), Listener(logging.WARNING)
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
