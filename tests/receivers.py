"""Receivers on this machine of what a sweep tells."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

#: A secret in an address.
KEY: Final = "T0K3N-in-the-address"


class Hook(BaseHTTPRequestHandler):
    """Keeps what is posted."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.posts.append((self.path, body))  # type: ignore[attr-defined]
        self.send_response(500 if "refuse" in self.path else 200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        del format, arguments


@pytest.fixture
def hook() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """An address of an HTTP server here, and what it got."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        server.posts = []  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"json://127.0.0.1:{server.server_address[1]}/{KEY}", server.posts  # type: ignore[attr-defined]
        server.shutdown()


class Collector(BaseHTTPRequestHandler):
    """Keeps the traces and metrics that are sent by OTLP, decoded."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path.endswith("/v1/traces"):
            of_traces = ExportTraceServiceRequest.FromString(body)
            for sent in of_traces.resource_spans:
                self.server.resources.append(attributes_of(sent.resource))  # type: ignore[attr-defined]
                self.server.spans += [span for scope in sent.scope_spans for span in scope.spans]  # type: ignore[attr-defined]
        else:
            of_metrics = ExportMetricsServiceRequest.FromString(body)
            self.server.metrics += [  # type: ignore[attr-defined]
                metric
                for each in of_metrics.resource_metrics
                for scope in each.scope_metrics
                for metric in scope.metrics
            ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        del format, arguments


def attributes_of(thing: Any) -> dict[str, Any]:
    """The attributes of a span, a resource or a data point."""
    found = {}
    for each in thing.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


@pytest.fixture
def collector() -> Iterator[Any]:
    """A receiver of OTLP over HTTP: its `url`, and the `spans`, `metrics` and `resources` that it got."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        got: Any = server
        got.spans, got.metrics, got.resources = [], [], []
        got.url = f"http://127.0.0.1:{server.server_address[1]}"
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield got
        server.shutdown()
