"""What OpenTelemetry says of itself."""

import logging

from orchestrator.view.telemetry import first_of_each_level


def test_a_warning_that_something_is_tried_again_does_not_use_up_the_line_of_the_error() -> None:
    said: list[str] = []
    exporter = logging.getLogger("opentelemetry.exporter")
    with first_of_each_level(said.append):
        for _ in range(2):
            exporter.warning("retrying in %.1f s", 1.0)
            exporter.error("it cannot be sent")
    exporter.error("nobody listens")
    assert said == ["retrying in 1.0 s", "it cannot be sent"]
