"""The table of stages: each has its limit, and what follows it."""

from orchestrator.core.config import Timeouts
from orchestrator.core.records import ScenarioSummary
from orchestrator.core.stages import MOVES, Stage
from orchestrator.engine.stage_table import STAGES


def test_each_stage_has_a_limit_and_the_agents_own_comes_first() -> None:
    timeouts = Timeouts(start=10, boot=20)
    scenario = ScenarioSummary(id="scn_1", name="one", agent_timeout=100, scorer_timeout=50)
    limits = {stage: STAGES[stage].limit(timeouts, scenario) for stage in Stage}
    assert limits[Stage.BOOT] == 20
    assert limits[Stage.SOLVE] == 120
    assert limits[Stage.SCORE] == 60


def test_the_table_has_every_stage_and_makes_legal_moves_only() -> None:
    assert list(STAGES) == list(Stage)
    assert [stage for stage, entry in STAGES.items() if entry.next and entry.next not in MOVES[stage]] == []
    for stage, entry in STAGES.items():
        resumed = {entry.on_resume(where) for where in ("devbox", "host")} - {None}
        assert resumed <= MOVES[stage]
