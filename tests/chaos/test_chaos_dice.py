"""Decisions about faults: by chance, and the same in every rehearsal."""

from collections.abc import Iterable

import structlog

from orchestrator.testing.chaos.rules import Dice, FaultRule, Rules


def dice(*rules: FaultRule, seed: int = 7) -> Dice:
    return Dice(Rules(seed=seed, rules=rules))


def rule(fault: str = "drop", **more: object) -> FaultRule:
    return FaultRule.model_validate({"fault": fault, **more})


def struck(given: Dice, kinds: Iterable[str], request: str = "GET /v1/x") -> list[bool]:
    return [given.throw(kind, {"drop"}, request=request) is not None for kind in kinds]


def test_the_same_seed_decides_the_same_and_another_one_does_not() -> None:
    kinds = ["start"] * 200
    half = rule(probability=0.5)
    first = struck(dice(half), kinds)
    assert struck(dice(half), kinds) == first
    assert struck(dice(half, seed=8), kinds) != first
    assert 70 < sum(first) < 130


def test_dice_of_one_kind_of_event_do_not_depend_on_other_kinds() -> None:
    """The n-th happening of a kind is decided alike, however many of another kind come between."""
    half = rule(probability=0.5)
    alone = struck(dice(half), ["start"] * 50)
    mixed = struck(dice(half), ["start", "poll", "poll"] * 50)
    assert mixed[::3] == alone


def test_rules_decide_apart_and_the_first_that_strikes_wins() -> None:
    """Each as it would alone in its place in the file."""
    late, drop, never = (rule("late", probability=0.5), rule(probability=0.5), rule("hang", probability=0.0))
    both, only_late, only_drop = dice(late, drop), dice(late), dice(never, drop)
    for _ in range(50):
        found = both.throw("k", {"late", "drop"})
        first, second = only_late.throw("k", {"late"}), only_drop.throw("k", {"drop"})
        assert found == (first or second)


def test_a_rule_strikes_so_many_times_at_most_over_all_kinds() -> None:
    assert sum(struck(dice(rule(times=3)), ["a", "b"] * 10)) == 3


def test_a_rule_strikes_where_its_route_says() -> None:
    given = dice(rule(route="POST /v1/scenarios/*"))
    assert struck(given, ["k"], "POST /v1/scenarios/start_run") == [True]
    assert struck(given, ["k"], "GET /v1/scenarios/start_run") == [False]
    assert struck(given, ["k"], "POST /v1/benchmarks/start_run") == [False]


def test_every_injected_fault_is_in_the_log() -> None:
    with structlog.testing.capture_logs() as logs:
        dice(rule()).throw("k", {"drop"}, route="GET /v1/x")
    assert logs == [
        {"event": "chaos.injected", "log_level": "warning", "fault": "drop", "rule": 1, "route": "GET /v1/x"}
    ]
