"""The finished picture and its numbers."""

from io import StringIO
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from orchestrator.core.events import Event, TrialReopened
from orchestrator.core.ledger import fold
from orchestrator.core.plan import Plan
from orchestrator.core.printable import json_line
from orchestrator.core.records import Flag, path_part
from orchestrator.view.interval import interval
from orchestrator.view.report import ArmSummary, Report, amount, as_record, as_table, duration, number, report, span

from .conftest import failed, make_plan, scored

FOLDER = Path("runs/night")


def told(plan: Plan, *events: Event) -> Report:
    return report(fold(events), plan, FOLDER)


def summary(plan: Plan, *events: Event) -> ArmSummary:
    [only] = told(plan, *events).arms
    return only


def drawn(whole: Report, width: int = 200, *, is_terminal: bool = False) -> list[str]:
    out = StringIO()
    Console(file=out, width=width, emoji=False, soft_wrap=not is_terminal).print(as_table(whole))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_failed_trial_lowers_the_floor_and_not_the_mean() -> None:
    only = summary(make_plan("x", "y", "z", "w"), scored("s0/a/1", 1.0), scored("s1/a/1", 0.5), failed("s2/a/1"))
    assert (only.planned, only.scored, only.failed) == (4, 2, 1)
    assert (only.mean, only.floor) == (0.75, 0.5)


def test_nothing_finished_gives_no_numbers() -> None:
    only = summary(make_plan("x"))
    assert (only.scored, only.failed, only.mean, only.low, only.high, only.floor) == (0, 0, None, None, None, None)


def test_flags_and_agent_time_are_counted_an_arm() -> None:
    plan = make_plan("x", "y", arms=("a", "b"), trials=2)
    events = [scored("s0/a/1", 1.0, flags=["agent_crashed", "gather_incomplete"]), scored("s0/a/2", 0.0, seconds=30)]
    one, other = told(plan, *events, scored("s1/b/1", 0.25)).arms
    assert (one.arm, one.planned, one.scored, one.flagged, one.agent_seconds) == ("a", 4, 2, 1, 90.0)
    assert (other.arm, other.scored, other.flagged, other.mean) == ("b", 1, 0, 0.25)


def test_the_interval_is_over_scenarios_and_over_trials_where_there_is_one_scenario() -> None:
    trials = [scored(f"s{scenario}/a/{n}", n % 2) for scenario in range(2) for n in range(1, 5)]
    two = summary(make_plan("x", "y", trials=4), *trials)
    assert (two.low, two.high) == interval([[1, 0, 1, 0]] * 2)
    one = summary(make_plan("x", trials=4), *trials)
    assert (one.low, one.high) == interval([[1], [0], [1], [0]])
    begun = summary(make_plan("x", "y", trials=4), *trials[:4])
    assert (begun.low, begun.high) == interval([[1, 0, 1, 0]])


def test_cost_and_tokens_are_those_that_agents_report() -> None:
    plan = make_plan("x", "y", arms=("a", "b"))
    usage = {"cost_usd": 0.5, "input_tokens": 1000, "output_tokens": 234, "cached_tokens": 900}
    whole = told(plan, scored("s0/a/1", 1.0, usage=usage), scored("s1/a/1", 1.0, usage=usage), scored("s0/b/1", 0.0))
    assert [(arm.cost, arm.tokens) for arm in whole.arms] == [(1.0, 2468), (None, None)]
    head, one, other, *_ = drawn(whole)
    assert head.endswith("  cost  tokens  agent time  median trial   p90  longest")
    assert one.split()[-6:] == ["$1.00", "2.5k", "2:00", "1:00", "1:00", "1:00"]
    assert other.split()[-6:] == ["-", "-", *["1:00"] * 4]


def test_a_cost_of_nothing_is_told_from_one_that_is_not_reported() -> None:
    free, silent = scored("s0/a/1", 1.0, usage={"cost_usd": 0}), scored("s0/b/1", 0.0)
    whole = told(make_plan("x", arms=("a", "b")), free, silent)
    assert [arm.cost for arm in whole.arms] == [0.0, None]
    assert [line.split()[-5] for line in drawn(whole)[1:3]] == ["$0.00", "-"]


def test_solved_trials_and_times_are_told_both_ways_and_chances_of_several_trials_where_there_are_some() -> None:
    scores = {"s0": (1.0, 1.0, 0.5), "s1": (0.0, 1.0, 0.0)}
    events = [
        scored(f"{scenario}/a/{n}", score, seconds=100 * n)
        for scenario, found in scores.items()
        for n, score in enumerate(found, 1)
    ]
    plan = make_plan("x", "y", "z", arms=("a",), trials=3)
    whole = told(plan, *events, failed("s2/a/1"), failed("s2/a/2", kind="StageTimeout"), failed("s2/a/3"))
    [only] = whole.arms
    assert (only.solved, only.solved_rate, only.solved_floor) == (3, 0.5, 3 / 9)
    assert only.pass_at == pytest.approx({1: 0.5, 2: (1 + 2 / 3) / 2, 3: 1.0})
    assert only.pass_hat == pytest.approx({1: 0.5, 2: (1 / 3 + 0) / 2, 3: 0.0})
    assert only.pass_at_floor == pytest.approx({1: 1 / 3, 2: (1 + 2 / 3) / 3, 3: 2 / 3})
    assert only.pass_hat_floor == pytest.approx({1: 1 / 3, 2: 1 / 9, 3: 0.0})
    assert only.failures == {"DevboxLost": 2, "StageTimeout": 1}
    assert only.longest_seconds == 300
    assert drawn(whole)[0].endswith("longest  solved  pass@2  pass@3  pass^2  pass^3")
    assert drawn(whole)[1].endswith("0.500   0.833   1.000   0.167   0.000")
    lines = drawn(whole, 80, is_terminal=True)
    assert [line.split()[0] for line in lines[1:7]] == ["arm", "a", "agent", "arm", "a", "Failed:"]
    assert max(map(len, lines)) <= 80
    assert told(make_plan("x"), scored("s0/a/1", 1.0)).arms[0].pass_at == {}


def test_trials_outside_the_plan_do_not_count() -> None:
    assert summary(make_plan("x"), scored("s0/a/1", 1.0), scored("s9/a/1", 0.0), scored("s0/a/2", 0.0)).mean == 1.0


def test_json_has_the_same_numbers() -> None:
    usage = {"cost_usd": 0.5, "input_tokens": 7}
    whole = told(make_plan("x", "y"), scored("s0/a/1", 0.5, flags=["no_patch"], usage=usage), failed("s1/a/1"))
    low, high = interval([[0.5]])
    assert orjson.loads(json_line(as_record(whole))) == {
        "folder": "runs/night",
        "arms": [{
            "arm": "a", "planned": 2, "scored": 1, "failed": 1, "flagged": 1,
            "mean": 0.5, "low": low, "high": high, "floor": 0.25,
            "solved": 0, "solved_rate": 0.0, "solved_floor": 0.0,
            "pass_at": {}, "pass_hat": {}, "pass_at_floor": {}, "pass_hat_floor": {},
            "failures": {"DevboxLost": 1}, "cost": 0.5, "tokens": 7,
            "agent_seconds": 60.0, "median_seconds": 30.0, "p90_seconds": 54.0, "longest_seconds": 60.0,
        }],
        "failures": [{
            "kind": "DevboxLost", "count": 1, "arms": {"a": 1}, "words": "it is gone", "command": "sweep logs night y",
        }],
        "flags": [{
            "kind": "no_patch", "count": 1, "arms": {"a": 1},
            "words": "there is no `patch.diff`: `LEFT-OUT.txt` says why",
            "command": "sweep logs night x --file LEFT-OUT.txt",
        }],
    }  # fmt: skip


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_says_arms_by_their_names_and_where_the_files_are(width: int) -> None:
    arms = ("[red]x", "[/bold]", ":bug:")
    text = "\n".join(drawn(told(make_plan("x", arms=arms)), width))
    assert [arm for arm in arms if arm not in text] == []
    assert "runs/night/results.jsonl" in text


def test_there_are_no_findings_when_nothing_went_wrong() -> None:
    lines = drawn(told(make_plan("x"), scored("s0/a/1", 1.0)))
    assert [line.split()[0] for line in lines] == ["arm", "a", "Results:", "Logs:"]
    assert lines[0].endswith("if failed were 0  agent time  median trial   p90  longest")


def test_the_most_frequent_failures_and_flags_are_shown_with_the_command_for_more() -> None:
    plan = make_plan("x", "it's", "z", arms=("mine", "other one"), trials=2)
    events = [
        failed("s0/mine/1", kind="StageTimeout", message="boot took\nlonger than 900 s"),
        failed("s1/other one/2", message="\x1b[31mgone " + "far " * 500),
        failed("s2/other one/1", message="gone too"),
        scored("s0/other one/1", 0.0, flags=["agent_crashed", "no_patch"]),
        scored("s1/mine/1", 0.0, flags=["agent_crashed"]),
        scored("s2/mine/1", 0.0, flags=["agent_crashed", "of_tomorrow"]),
    ]
    lines = drawn(told(plan, *events))
    lines = lines[lines.index("Failed:") :]
    assert lines[5].startswith("  1  DevboxLost: \\x1b[31mgone far far")
    assert [line for number, line in enumerate(lines) if number != 5] == [
        "Failed:",
        "  1  StageTimeout: boot took longer than 900 s",
        "     sweep logs night x --arm mine --trial 1",
        "  1  DevboxLost: gone too",
        "     sweep logs night z --arm 'other one' --trial 1",
        """     sweep logs night 'it'"'"'s' --arm 'other one' --trial 2""",
        "Flagged:",
        f"  3  agent_crashed (mine 2, other one 1): {Flag.AGENT_CRASHED.meaning}",
        "     sweep logs night x --arm 'other one' --trial 1",
        f"  1  no_patch: {Flag.NO_PATCH.meaning}",
        "     sweep logs night x --arm 'other one' --trial 1 --file LEFT-OUT.txt",
        "  1  of_tomorrow: of another version",
        "     sweep logs night z --arm mine --trial 1",
        "Results: runs/night/results.jsonl",
        "Logs:    runs/night/trials",
    ]


def test_a_message_is_shortened_and_no_terminal_obeys_it() -> None:
    whole = told(make_plan("x", trials=2), failed("s0/a/2", message="\x1b[31mgone " + "far " * 500))
    lines = drawn(whole)
    [line] = [line for line in lines if "DevboxLost" in line]
    assert line.startswith("  1  DevboxLost: \\x1b[31mgone far far")
    assert len(line) < 220
    assert lines[lines.index(line) + 1] == "     sweep logs night x --trial 2"


def test_only_the_most_frequent_failures_are_named() -> None:
    names = [f"s{number}" for number in range(16)]
    events = [failed(f"{name}/a/1", kind=f"K{min(number, 6)}") for number, name in enumerate(names)]
    lines = drawn(told(make_plan(*names), *events))
    told_of = [line for line in lines if ": it is gone" in line]
    assert told_of == ["  10  K6: it is gone", *(f"   1  K{number}: it is gone" for number in range(4))]
    assert "      and 2 others" in lines


def test_a_scenario_whose_name_cannot_be_typed_is_named_by_its_id_and_one_never_begun_has_no_log() -> None:
    for names in (("-x", "y"), ("\x1b[2J", "y"), ("x", "x")):
        [finding] = told(make_plan(*names), scored("s0/a/1", 0.0, flags=["agent_crashed"])).flags
        assert finding.command == "sweep logs night s0"
    [finding] = told(make_plan("x"), failed("s0/a/1", attempt=0)).failures
    assert finding.command is None


def test_failures_of_one_class_are_grouped_by_their_message_without_parts_of_the_trial() -> None:
    plan = make_plan("ant", "bee", "cow", "dog", "emu")
    events = [
        failed("s0/a/1", message="ant: devbox dbx_1a2b was gone after 12.5 s"),
        failed("s1/a/1", message="bee: devbox dbx_9z8y was gone after 3 s"),
        failed("s2/a/1", message="cow: /srv/state/boxes/dbx_7k/log: no room, exit status 1"),
        failed("s3/a/1", message="dog: /srv/state/boxes/dbx_8m/log: no room, exit status 1"),
        failed("s4/a/1", message="emu: /srv/state/boxes/dbx_9m/log: no room, exit status 2"),
    ]
    assert [each.count for each in told(plan, *events).failures] == [2, 2, 1]


def test_one_message_is_the_example_for_a_class_with_many() -> None:
    names = [f"s{number}" for number in range(6)]
    events = [
        failed(f"{name}/a/1", kind="Unsupported", message=f"mistake {number // 2}", attempt=0)
        for number, name in enumerate(names)
    ]
    whole = told(make_plan(*names, "x", "y"), *events, *(failed(f"s{n}/a/1", kind="Unsupported") for n in (6, 7)))
    assert [each.count for each in whole.failures] == [2, 2, 2, 2], "JSON has all of them"
    lines = drawn(whole)
    assert lines[lines.index("Failed:") + 1 : -2] == [
        "  8  Unsupported, for example: mistake 0",
        "     sweep check PATH --static",
    ]


@pytest.mark.parametrize(
    ("flag", "command"),
    [
        ("system_changed", "sweep logs night x --file changes.txt"),
        ("secrets_masked", "sweep logs night x --file MASKED.txt"),
        ("gather_truncated", "sweep logs night x --file LEFT-OUT.txt"),
        ("no_patch", "sweep logs night x --file LEFT-OUT.txt"),
        ("gather_incomplete", "runs/night/sweep.log"),
        ("agent_timed_out", "sweep logs night x"),
    ],
)
def test_the_command_of_a_finding_shows_the_file_that_explains_its_flag(flag: str, command: str) -> None:
    [finding] = told(make_plan("x"), scored("s0/a/1", 0.0, flags=[flag])).flags
    assert finding.command == command


def test_the_log_of_a_failed_scorer_is_shown(tmp_path: Path) -> None:
    plan, events = make_plan("x"), [failed("s0/a/1", kind="ScoringFault")]
    folder = tmp_path / "trials" / path_part("x") / path_part("a") / "1/attempt-1/scorers"
    folder.mkdir(parents=True)
    for name, text in (("a.log", ""), ("tests-1.log", "torn")):
        (folder / name).write_text(text)
    [finding] = report(fold(events), plan, tmp_path).failures
    assert finding.command == f"sweep logs {tmp_path} x --file scorers/tests-1.log"


def test_text_too_wide_for_a_terminal_is_continued_below_its_first_word() -> None:
    whole = told(make_plan("x"), failed("s0/a/1", message="word " * 30))
    lines = drawn(whole, 60, is_terminal=True)
    first = next(number for number, line in enumerate(lines) if "DevboxLost" in line)
    assert lines[first].startswith("  1  DevboxLost: word")
    assert lines[first + 1].startswith("     word word")
    assert max(map(len, lines)) <= 60


def test_reopened_trials_are_not_reported() -> None:
    whole = told(make_plan("x"), failed("s0/a/1"), TrialReopened(trial="s0/a/1"))
    assert (whole.failures, whole.flags) == ([], [])


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_no_number_is_cut_however_narrow_the_terminal_and_however_long_the_names(width: int) -> None:
    arms = ("claude-code+claude-sonnet-4-5-20250929", "b")
    usage = {"cost_usd": 1234.5, "input_tokens": 123_400_000}
    events = [scored("s0/b/1", 0.5, usage=usage, seconds=36_000), failed("s1/b/1")]
    text = "\n".join(drawn(told(make_plan("x", "y", arms=arms), *events), width, is_terminal=True))
    cells = (
        "1/2",
        "0.500",
        "0.055 - 0.945",
        "0.250",
        "$1,234.50",
        "123.4M",
        "10:00:00",
        "9:00:00",
        "flagged",
        "tokens",
    )
    for cell in (*cells, "9:00:00", "solved", "0.000"):
        assert cell in text, text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.04, "0 s"), (0.05, "0.1 s"), (0.5, "0.5 s"), (0.94, "0.9 s"), (0.96, "1 s"), (42, "42 s"),
     (59.4, "59 s"), (59.6, "1:00"), (60, "1:00"), (425, "7:05"), (3599.7, "1:00:00"), (12011, "3:20:11"),
     (100 * 3600, "100:00:00")],
)  # fmt: skip
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_scores_are_for_people() -> None:
    assert (number(None), number(0), number(2 / 3)) == ("-", "0.000", "0.667")
    assert (span(None, None), span(0.87127, 1.0), span(0.50001, 0.50002)) == ("-", "0.871 - 1.000", "0.500 - 0.501")


def test_tokens_are_for_people() -> None:
    assert [amount(count) for count in (0, 999, 1000, 12_345, 1_250_000, 3 * 10**9)] == [
        "0", "999", "1.0k", "12.3k", "1.2M", "3.0G",
    ]  # fmt: skip
