"""Every setting of a sweep, and what is said of a wrong one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.config import SweepConfig, Timeouts, Typed, arm_name, load_file, resolve, seconds
from orchestrator.core.errors import UsageError
from orchestrator.core.records import ScenarioSummary, StepLimits


def config(**settings: Any) -> SweepConfig:
    return resolve({"benchmark": "b", "arms": [{"agent": "oracle"}]} | settings, source=Path("sweep.toml"))


def arms(*agents: dict[str, Any] | str) -> list[str]:
    return [arm.name for arm in config(arms=[{"agent": a} if isinstance(a, str) else a for a in agents]).arms]


def test_a_benchmark_and_an_agent_are_enough() -> None:
    made = config()
    assert (made.trials, made.devboxes, made.agents, made.attempts, made.on_agent_failure) == (1, 8, None, 3, "score")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trails": 3}, ["unknown key 'trails'", "did you mean 'trials'?"]),
        ({"qqq": 3}, ["unknown key 'qqq'"]),
        ({"timeouts": {"slove": 3}}, ["unknown key 'timeouts.slove'", "did you mean 'solve'?"]),
        ({"arms": [{"agent": "nop", "modle": "x"}]}, ["unknown key 'arms.0.modle'", "did you mean 'model'?"]),
        ({"trials": 0}, ["trials: ", "must be at least 1"]),
        ({"devboxes": "many"}, ["devboxes: ", "must be a whole number"]),
        ({"rate": float("inf")}, ["rate: ", "finite"]),
        ({"timeouts": {"boot": float("nan")}}, ["timeouts.boot: "]),
        ({"on_agent_failure": "shrug"}, ["on_agent_failure: ", "choose score or fail."]),
        ({"isolation": "docker"}, ["isolation: ", "choose local or none."]),
        ({"arms": []}, ["no agent: name one with --agent"]),
        ({"arms": [{"model": "x"}]}, ["arms.0.agent: ", "is required"]),
        ({"arms": "oracle"}, ["arms: ", "must be a list"]),
        ({"timeouts": 3}, ["timeouts: ", "must be a table"]),
        ({"skip_unsupported": "often"}, ["skip_unsupported: ", "must be true or false"]),
        ({"accept": "110%"}, ["accept: '110%' is not a share. Write for example 0.9 or 90%"]),
        ({"accept": 0}, ["accept: 0 is not a share. Write for example 0.9 or 90%"]),
        ({"rate": "20/h"}, ["rate: '20/h' is not a rate. Write for example 20/s or 300/min"]),
        ({"benchmark": None}, ["benchmark: ", "must be text"]),
        ({"timeouts": {"boot": "10 minutes"}}, ["timeouts.boot: '10 minutes' is not a duration", "10m or 8h"]),
        ({"timeouts": {"boot": "0s"}}, ["timeouts.boot: ", "greater than 0"]),
        ({"drain": "-1"}, ["drain: '-1' is not a duration"]),
        ({"unreachable": 0}, ["unreachable: ", "greater than 0"]),
        ({"deadline": "soon"}, ["deadline: 'soon' is not a deadline. Write 07:00, 8h or 2026-11-24T07:00"]),
        ({"deadline": 7}, ["deadline: 7 has no unit. Write 7h, 7m, 7s, or a time such as 07:00"]),
        ({"deadline": [7]}, ["deadline: ", "must be text"]),
        ({"max_cost": 0}, ["max_cost: ", "greater than 0"]),
        ({"max_devbox_hours": -1}, ["max_devbox_hours: "]),
        ({"max_failures": 0}, ["max_failures: "]),
        ({"same_failures": 0}, ["same_failures: ", "must be at least 1"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_place_and_what_was_expected(
    settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        config(**settings)
    assert caught.value.message.startswith("sweep.toml: ")
    assert [word for word in words if word not in caught.value.message] == []
    assert "\n" not in caught.value.message


def test_a_wrong_option_is_named_as_it_is_typed_and_a_right_one_wins_over_the_file() -> None:
    typed = {
        "lock": Typed(name="SWEEP_LOCK", value="x"),
        "include": Typed(name="--include", value=["a", 3]),
        "scoring": Typed(name="--scoring", value="there"),
        "timeouts.solve": Typed(name="--timeout-solve", value="x"),
        "max_cost": Typed(name="--max-cost", value="0"),
        "devboxes": Typed(name="--devboxes", value="3"),
    }
    settings = {"benchmark": "b", "arms": [{"agent": "oracle"}], "devboxes": 0, "timeouts": {"boot": 7}}
    with pytest.raises(UsageError) as caught:
        resolve(settings, source="sweep run", typed=typed)
    assert caught.value.message.removesuffix(".").split("; ") == [
        "SWEEP_LOCK=x: choose file or none",
        "--include 3: must be text",
        "--scoring there: choose declared, separate, shared or live",
        "--timeout-solve: 'x' is not a duration. Write for example 90, 90s, 10m or 8h",
        "--max-cost 0: must be greater than 0",
    ]
    made = resolve(settings, typed={"devboxes": typed["devboxes"], "timeouts.solve": Typed(name="", value="2m")})
    assert (made.devboxes, made.timeouts.boot, made.timeouts.solve) == (3, 7, 120)


def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(
        'benchmark = "b"\nname = """\ntrials = 0\n"""\ntrials = 0\n[timeouts]\nboot = 0\n'
        '[[arms]]\nagent = "oracle"\n[[arms]]\nmodel = "x"\n'
    )
    with pytest.raises(UsageError) as caught:
        resolve(load_file(path), source=path)
    assert caught.value.message.split("; ") == [
        f"{path}, line 10: arms.1.agent: is required",
        f"{path}, line 5: trials: must be at least 1",
        f"{path}, line 7: timeouts.boot: must be greater than 0.",
    ]


@pytest.mark.parametrize(("text", "rate"), [("20/s", 20), ("20", 20), ("300/min", 5), (0.5, 0.5)])
def test_a_rate_is_requests_a_second_or_names_its_time(text: str | float, rate: float) -> None:
    assert config(rate=text).rate == rate


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"trials.*;.*devboxes"):
        config(trials=0, devboxes=0)


@pytest.mark.parametrize(
    ("agent", "model", "name"),
    [
        ("oracle", None, "oracle"),
        ("claude-3.5", None, "claude-3.5"),
        ("./agents/mine.toml", None, "mine"),
        ("command:make all; ./x", None, "command"),
        ("team:run it --now", None, "team"),
        ("./solver.py:MyAgent", "gpt-5", "MyAgent+gpt-5"),
        ("package.module:Outer.Inner", None, "Outer.Inner"),
        ("oracle", "openai/gpt-5", "oracle+openai/gpt-5"),
    ],
)
def test_an_arm_is_named_for_its_agent_and_model(agent: str, model: str | None, name: str) -> None:
    assert arm_name(agent, model) == name


def test_a_given_name_wins_and_an_empty_one_is_none() -> None:
    assert arms({"agent": "oracle", "name": "mine"}, {"agent": "nop", "name": ""}) == ["mine", "nop"]


def test_different_arms_that_would_be_called_the_same_are_numbered() -> None:
    assert arms("command:a", "command:b", "command:c") == ["command", "command-2", "command-3"]
    assert arms({"agent": "nop", "settings": {"x": 1}}, {"agent": "nop", "settings": {"x": 2}}) == ["nop", "nop-2"]
    assert arms("command:a", {"agent": "x", "name": "command-2"}, "command:b") == ["command", "command-2", "command-3"]
    assert arms("command:a", {"agent": "x", "name": "command"}) == ["command-2", "command"]


@pytest.mark.parametrize("double", [{"agent": "nop"}, {"agent": "nop", "name": "x"}])
def test_the_same_arm_twice_is_a_mistake(double: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"two arms are called (nop|x): give each a name of its own"):
        config(arms=[double, double])


def test_a_devbox_lives_through_every_stage_that_needs_it_and_a_wait_as_long_as_the_agent() -> None:
    timeouts, scenario = Timeouts(), ScenarioSummary(id="scn_1", name="a")
    assert timeouts.keep_alive(scenario) == 900 + 900 + 2 * 3600 + 300 + 1800 + 300
    quick = replace(scenario, agent_timeout=100, scorer_timeout=50)
    assert timeouts.keep_alive(quick) == 900 + 900 + 200 + 300 + 50 + 300
    steps = (StepLimits(name="one", agent_timeout=100, scorer_timeout=50), StepLimits(name="two"))
    both = replace(quick, steps=steps)
    assert timeouts.keep_alive(both) == timeouts.keep_alive(quick) + timeouts.keep_alive(scenario) - 900 - 300


def test_the_users_time_limits_win_over_the_scenarios() -> None:
    timeouts = Timeouts(solve=7, score=8)
    assert (timeouts.solve_for(100), timeouts.score_for(100)) == (7, 8)
    assert (Timeouts().solve_for(100), Timeouts().score_for(100)) == (100, 100)


def test_a_plan_that_needs_a_devbox_for_more_than_two_days_is_refused_with_the_fix() -> None:
    scenario = ScenarioSummary(id="scn_1", name="a")
    assert Timeouts(solve=80_000).keep_alive(scenario) < 48 * 3600
    with pytest.raises(UsageError, match=r"add up to 51\.2 h .* 48 h\. Lower --timeout-solve"):
        Timeouts(solve=90_000).keep_alive(scenario)


def test_a_settings_file_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text('benchmark = "b"\n[[arms]]\nagent = "oracle"\n[arms.settings]\nsince = 2026-01-01\n')
    assert resolve(load_file(path)).arms[0].agent == "oracle"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"a = = 1", "not valid TOML.*line 1"), (b"\xff\xfe", "not valid TOML")],
)
def test_an_unreadable_settings_file_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "sweep.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        load_file(path)
    assert str(path) in caught.value.message


def test_a_folder_in_place_of_a_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load_file(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90s", 90), ("10m", 600), ("8h", 28800), ("1.5h", 5400), (" 2 M ", 120), (7, 7), (0.5, 0.5)],
)
def test_a_duration_is_seconds_or_names_its_unit(text: str | float, expected: float) -> None:
    assert seconds(text) == expected
    assert config(timeouts={"boot": text}, unreachable=text).timeouts.boot == expected


def test_a_drain_of_zero_is_allowed() -> None:
    assert config(drain="0").drain == 0
    assert config().drain is None


def test_a_settings_file_may_write_a_deadline_as_toml_does(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    for written, read in (("07:00:00", "07:00:00"), ("2026-11-24T07:00:00", "2026-11-24T07:00:00"), ('"8h"', "8h")):
        path.write_text(f'benchmark = "b"\ndeadline = {written}\n[[arms]]\nagent = "oracle"\n')
        assert resolve(load_file(path)).deadline == read
