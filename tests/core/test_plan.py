"""The trials of a sweep, and their order."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import UsageError
from orchestrator.core.events import TrialFinished
from orchestrator.core.ledger import Ledger, fold
from orchestrator.core.plan import Plan, select, unmatched
from orchestrator.core.records import RoomEstimate, ScenarioSummary, TrialKey


def scenarios(*names: str) -> tuple[ScenarioSummary, ...]:
    return tuple(ScenarioSummary(id=f"scn_{number}", name=name) for number, name in enumerate(names))


def plan(*names: str, arms: tuple[str, ...] = ("a", "b"), trials: int = 2) -> Plan:
    return Plan(benchmark="b", scenarios=scenarios(*names), arms=arms, trials=trials)


def names(chosen: tuple[ScenarioSummary, ...]) -> list[str]:
    return [scenario.name for scenario in chosen]


def chosen(
    *of: str, include: list[str] | None = None, exclude: list[str] | None = None, limit: int | None = None
) -> list[str]:
    return names(select(scenarios(*of), include=include or [], exclude=exclude or [], limit=limit))


def test_arms_go_side_by_side_through_the_scenarios_as_listed_and_trials_come_round_by_round() -> None:
    assert [str(key) for key in plan("x", "y")] == [
        "scn_0/a/1", "scn_0/b/1", "scn_1/a/1", "scn_1/b/1", "scn_0/a/2", "scn_0/b/2", "scn_1/a/2", "scn_1/b/2",
    ]  # fmt: skip


@given(st.integers(0, 5), st.integers(1, 3), st.integers(1, 4))
def test_a_plan_has_as_many_trials_as_it_says_each_once_and_no_others(count: int, arms: int, trials: int) -> None:
    subject = plan(*"vwxyz"[:count], arms=tuple("abc"[:arms]), trials=trials)
    keys = list(subject)
    assert len(keys) == len(subject) == len(set(keys))
    assert all(key in subject for key in keys)
    strangers = [TrialKey("scn_9", "a", 1), TrialKey("scn_0", "z", 1), TrialKey("scn_0", "a", trials + 1)]
    assert not any(key in subject for key in strangers)


def test_with_too_little_room_all_trials_of_one_environment_come_together() -> None:
    scenarios = tuple(
        ScenarioSummary(id=f"scn_{n}", name=f"{n}", environment=environment) for n, environment in enumerate("aba")
    )
    plan = Plan(benchmark="b", scenarios=scenarios, arms=("x",), trials=2, is_by_environment=True)
    assert [(key.scenario, key.number) for key in plan] == [
        ("scn_0", 1),
        ("scn_2", 1),
        ("scn_0", 2),
        ("scn_2", 2),
        ("scn_1", 1),
        ("scn_1", 2),
    ]


def test_images_are_short_of_room_when_all_of_them_would_take_more_than_there_is() -> None:
    assert not RoomEstimate().is_short
    assert not RoomEstimate(images=4, wanted=10, room=10).is_short
    assert RoomEstimate(images=4, wanted=11, room=10).is_short
    assert RoomEstimate(images=4, unknown=2, wanted=6, room=10).is_short
    assert RoomEstimate(images=4, unknown=4, wanted=0, room=10).is_short


def test_finished_trials_are_not_pending_and_pending_ones_are_found_one_at_a_time() -> None:
    subject = plan("x", trials=10**9)
    ledger = fold([TrialFinished(trial="scn_0/a/1", attempt=1, result={"outcome": "failed"})])
    assert [str(key) for key in islice(subject.pending(ledger), 2)] == ["scn_0/b/1", "scn_0/a/2"]
    assert next(subject.pending(Ledger())) == TrialKey("scn_0", "a", 1)


def test_without_globs_everything_is_chosen_in_order() -> None:
    assert chosen("c", "a", "b") == ["c", "a", "b"]


def test_globs_match_names_and_ids() -> None:
    assert chosen("web-1", "web-2", "db-1", include=["web-*"]) == ["web-1", "web-2"]
    assert chosen("web-1", "web-2", "db-1", include=["scn_2", "web-1"]) == ["web-1", "db-1"]
    assert chosen("web-1", "web-2", "db-1", exclude=["scn_1", "db-?"]) == ["web-1"]


def test_exclusion_wins_and_the_limit_counts_what_is_left() -> None:
    assert chosen("a1", "a2", "a3", "b1", include=["a*"], exclude=["a1"], limit=1) == ["a2"]


def test_case_counts() -> None:
    with pytest.raises(UsageError):
        chosen("Alpha", include=["alpha"])


def test_a_name_with_brackets_can_be_named() -> None:
    assert chosen("sum[1]", "sum1", include=["sum[1]"]) == ["sum[1]", "sum1"]


def test_an_include_glob_that_matches_nothing_is_a_mistake_and_near_names_are_offered() -> None:
    subject = scenarios("billing-month-end", "cache")
    words = r"--include 'billing-month-ends' matches no scenario\. Did you mean billing-month-end\?"
    with pytest.raises(UsageError, match=words):
        select(subject, include=["billing-month-ends"], exclude=[], limit=None)
    with pytest.raises(UsageError, match=r"--only 'zzz'.*lists them"):
        select(subject, include=["zzz"], exclude=[], limit=None, option="--only")


def test_an_exclude_glob_that_matches_nothing_is_reported_and_no_mistake() -> None:
    subject = scenarios("billing-month-end", "cache")
    assert len(select(subject, include=[], exclude=["zzz"], limit=None)) == 2
    assert unmatched(subject, ["zzz", "cache"], "--exclude") == [
        "--exclude 'zzz' matches no scenario. `sweep benchmarks show` lists them."
    ]


def test_an_empty_selection_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="No scenario is left"):
        chosen("a", "b", exclude=["*"])
    with pytest.raises(UsageError, match="No scenario is left"):
        chosen()
