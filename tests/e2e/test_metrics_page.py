"""`/metrics` of `sweep view`, asked for as Prometheus does."""

from typing import TYPE_CHECKING, Final

import httpx
import pytest

from orchestrator.view.metrics import CONTENT_TYPE
from tests.view.test_metrics import samples

if TYPE_CHECKING:
    from .conftest import Desk

pytestmark = pytest.mark.slow

TOKEN: Final = "a-token-that-stays-the-same"


def test_prometheus_reads_the_sweeps_of_a_folder_with_the_token(served: "Desk") -> None:
    served.sweep("run", "six", "--agent", "oracle", "--limit", "2", "--name", "night")
    (served.folder / "runs/broken").mkdir()
    (served.folder / "runs/broken/manifest.json").write_text("{}")
    assert "SWEEP_VIEW_TOKEN has 5 characters" in served.refused("view", environment={"SWEEP_VIEW_TOKEN": "short"})
    viewing = served.start("view", "--port", "0", environment={"SWEEP_VIEW_TOKEN": TOKEN})
    viewing.wait_for(f"?token={TOKEN}")
    url = viewing.out.partition("?token")[0] + "metrics"
    with httpx.Client(trust_env=False) as http:
        assert http.get(url, headers={"authorization": "Bearer another"}).status_code == 403
        answer = http.get(url, headers={"authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, CONTENT_TYPE)
    found = {(family, *labels.values()): value for family, labels, value in samples(answer.text)}
    assert found["sweep_state", "night", "finished"] == 1
    assert found["sweep_trials_finished", "night", "oracle", "scored"] == 2
    viewing.process.terminate()
    viewing.end(15)
