"""Chaos files: what they may say, and how their mistakes are told."""

from pathlib import Path

import pytest

from orchestrator.core.errors import UsageError
from orchestrator.testing.chaos.rules import FAULTS, read_rules


def told(place: Path, text: str) -> list[str]:
    """The complaints about a file, without its path."""
    file = place / "chaos.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_rules(file)
    words = refused.value.message.split("; --chaos ")
    return [each.removeprefix("--chaos ").removeprefix(str(file)).removeprefix(", ") for each in words]


def test_a_file_says_which_faults_happen_where_and_how_often(tmp_path: Path) -> None:
    file = tmp_path / "chaos.toml"
    file.write_text(
        'seed = 7\n[[rules]]\nfault = 429\nroute = "POST /v1/scenarios/*"\nprobability = 0.25\nretry_after = 1.5\n'
        '[[rules]]\nfault = "late"\ntimes = 3\n'
    )
    rules = read_rules(file)
    first, second = rules.rules
    assert (rules.seed, first.fault, first.route, first.probability) == (7, "429", "POST /v1/scenarios/*", 0.25)
    assert (first.number, first.times) == (1.5, None)
    assert (second.fault, second.route, second.probability, second.times) == ("late", "*", 1.0, 3)
    assert second.number == FAULTS["late"].default


def test_an_empty_file_has_no_rules(tmp_path: Path) -> None:
    (tmp_path / "chaos.toml").touch()
    assert read_rules(tmp_path / "chaos.toml").rules == ()


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("sed = 3\n", ["line 1: sed: unknown key; did you mean seed?"]),
        ('# a\nseed = "x"\n', ["line 2: seed: Input should be a valid integer"]),
        ("rules = 3\n", ["line 1: rules: Input should be a valid list"]),
        ('[rules]\nfault = "drop"\n', ["line 1: rules: Input should be a valid list"]),
        ('[[rules]]\nfault = "drp"\n', ["line 2: rules.1.fault: unknown fault 'drp'; did you mean drop?"]),
        ("[[rules]]\ntimes = 1\n", ["line 1: rules.1.fault: Field required"]),
        (
            '[[rules]]\nfault = "drop"\n\n[[ rules ]]  # the second\nfault = "hang"\ntimes = 0\nprobability = 1.5\n',
            [
                "line 7: rules.2.probability: Input should be less than or equal to 1",
                "line 6: rules.2.times: Input should be greater than 0",
            ],
        ),
        (
            '[[rules]]\nfault = "429"\nseconds = 2\n',
            ["line 3: rules.1.seconds: 429 does not take it, but retry_after"],
        ),
        ('[[rules]]\nfault = "drop"\nseconds = 2\n', ["line 3: rules.1.seconds: drop does not take it"]),
        (
            '[[rules]]\nfault = "boot-fails"\nroute = "POST /x"\n',
            ["line 3: rules.1.route: boot-fails does not happen to a request"],
        ),
        (
            '[[rules]]\nfault = "drop"\nroute = "start_run"\n',
            ["line 3: rules.1.route: expected GET or POST and a path, such as 'POST /v1/scenarios/*', got 'start_run'"],
        ),
        ('rules = [{fault = "drop", time = 2}]', ["rules.1.time: unknown key; did you mean times?"]),
        ("rules = [3]", ["rules.1: Input should be a valid dictionary or instance of FaultRule"]),
    ],
)
def test_a_mistake_is_reported_by_line_and_key(tmp_path: Path, text: str, complaints: list[str]) -> None:
    assert [each.removeprefix(": ") for each in told(tmp_path, text)] == complaints


def test_an_invalid_or_missing_chaos_file_is_refused(tmp_path: Path) -> None:
    assert "not valid TOML" in told(tmp_path, "seed = \n")[0]
    assert "line 1" in told(tmp_path, "seed = \n")[0]
    with pytest.raises(UsageError, match=r"nowhere\.toml: cannot be read: No such file"):
        read_rules(tmp_path / "nowhere.toml")
