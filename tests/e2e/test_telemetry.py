"""OpenTelemetry of whole sweeps, as a receiver on this machine has it."""

import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest

from tests.receivers import attributes_of
from tests.receivers import collector as collector  # noqa: PLC0414 - a fixture
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from .conftest import Desk

#: Solves its scenario, in a second, and reports what it has used.
SPENDER: Final = """
run = '''
sleep 1
touch /app/done
echo '{"in": 1200, "out": 34, "cost": 0.25}'
'''
version = "2.1"
model = { default = "acme/small" }

[usage]
from = "output"
format = "jsonl"
input_tokens = "$[*].in"
output_tokens = "$[*].out"
cost_usd = "$[*].cost"
"""
STAGES: Final = ["start", "boot", "prepare", "invoke_agent ./spender.toml", "gather", "score", "release"]


def test_a_sweep_that_was_killed_and_resumed_is_one_trace_in_which_every_span_comes_once(
    served: "Desk", collector: Any
) -> None:
    (served.folder / "spender.toml").write_text(SPENDER)
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    words = ("run", "six", "--agent", "./spender.toml", "--limit", "2", "--devboxes", "1", "--name", "it")
    running = served.start(*words, environment=environment)
    wait_until(lambda: len(served.journal("runs/it", "execution.started")) == 2, running, seconds=60)
    wait_until(lambda: sum(span.name == "prepare" for span in collector.spans) == 2, running, seconds=10)
    running.kill()
    served.sweep("resume", "it", environment=environment)

    spans = collector.spans
    manifest = served.manifest("runs/it")
    assert {span.trace_id for span in spans} == {UUID(manifest["sweep"]).bytes}
    assert len({span.span_id for span in spans}) == len(spans)
    names = [span.name for span in spans]
    assert names.count("sweep it") == 1, "that of the process that was killed never ended"
    assert {name: names.count(name) for name in names} == {
        **dict.fromkeys([*STAGES, "attempt 1"], 2),
        **dict.fromkeys(["trial ant", "trial bee", "sweep it"], 1),
    }
    ids = {span.span_id: span for span in spans}
    (root,) = (span for span in spans if span.name == "sweep it")
    for span in spans:
        kind = span.name.split()[0]
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        if span is root:
            assert not span.parent_span_id
        elif kind != "trial":
            assert ids[span.parent_span_id].name.split()[0] == ("trial" if kind == "attempt" else "attempt")
            assert ids[span.parent_span_id].start_time_unix_nano <= span.start_time_unix_nano
    of_ant, of_bee = (ids[span.parent_span_id] for span in spans if span.name.startswith("attempt"))
    roots = {span.name: span.parent_span_id for span in (of_ant, of_bee)}
    assert roots["trial bee"] == root.span_id
    assert roots["trial ant"] not in ids, "it ended in the process that was killed"

    trial = attributes_of(of_bee)
    wanted = {
        "sweep.scenario.name": "bee",
        "sweep.arm": "spender",
        "sweep.outcome": "scored",
        "sweep.score": 1.0,
        "gen_ai.agent.name": "./spender.toml",
        "gen_ai.agent.version": "2.1",
        "gen_ai.request.model": "acme/small",
        "gen_ai.usage.input_tokens": 1200,
        "gen_ai.usage.output_tokens": 34,
        "sweep.cost_usd": 0.25,
    }
    assert trial | wanted == trial
    (evaluation,) = of_bee.events
    assert evaluation.name == "gen_ai.evaluation.result"
    assert attributes_of(evaluation)["gen_ai.evaluation.score.value"] == 1.0
    solve = attributes_of(next(span for span in spans if span.name.startswith("invoke_agent")))
    assert solve["gen_ai.operation.name"] == "invoke_agent"
    assert solve["gen_ai.usage.output_tokens"] == 34
    assert attributes_of(root)["sweep.process"] == 2
    assert collector.resources[-1]["service.name"] == "sweep"
    assert collector.resources[-1]["sweep.id"] == manifest["sweep"]

    latest = {metric.name: metric for metric in collector.metrics}
    finished = latest["sweep.trials_finished"].gauge.data_points
    values = {tuple(attributes_of(point).values()): point.as_int or point.as_double for point in finished}
    assert values == {("spender", "scored"): 2, ("spender", "failed"): 0}
    assert latest["sweep.push_backs"].sum.is_monotonic
    assert [point.as_double for point in latest["sweep.cost_usd"].sum.data_points] == [0.5]


def test_failures_are_spans_with_an_error(served: "Desk", collector: Any) -> None:
    (served.folder / "bad.toml").write_text('install = "echo no such package; exit 1"\nrun = "true"\n')
    environment = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces"}
    words = ("run", "six", "--agent", "./bad.toml", "--limit", "1", "--attempts", "2", "--name", "bad")
    served.sweep(*words, status=1, environment=environment)
    failed = {span.name: attributes_of(span)["error.type"] for span in collector.spans if span.status.code == 2}
    names = ("boot", "attempt 1", "attempt 2", "trial ant")
    assert failed == dict.fromkeys(names, "AgentSetupFailed")
    assert sum(span.name == "release" and span.status.code == 0 for span in collector.spans) == 2
    assert collector.metrics == []


def test_a_receiver_that_is_not_there_is_told_once_and_holds_nobody_up(served: "Desk") -> None:
    ended = served.sweep(
        *("run", "six", "--agent", "oracle", "--limit", "1", "--name", "it"),
        environment={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"},
    )
    assert (ended.out + ended.err).count("OpenTelemetry: ") == 1
    (last,) = served.journal("runs/it", "sweep.ended")
    assert time.time() - last["at"] < 30, "the last spans have five seconds"
    grpc = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    ended = served.sweep("resume", "it", "--trials", "2", environment=grpc)
    assert "OpenTelemetry: grpc is not spoken here, only http/protobuf. Nothing is sent." in ended.out
