"""Reward files as their writers meant them, or an error that quotes what they wrote."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.service.scoring import rewards
from orchestrator.service.scoring.rewards import BadReward, read_rewards, score_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"1", 1.0),
        (b"0\n", 0.0),
        (b"  0.5 \r\n\n", 0.5),
        (b"1e-1", 0.1),
        (b".75", 0.75),
        (b"+1.", 1.0),
        (b"-3", -3.0),
        ("\u0661".encode(), 1.0),  # a digit is a digit
    ],
)
def test_a_text_is_what_float_takes(text: bytes, value: float) -> None:
    assert read_rewards(None, text) == {"reward": value}


@pytest.mark.parametrize(
    ("document", "found"),
    [
        (b'{"reward": 1}', {"reward": 1.0}),
        (b' {"a": 0.25, "b": -2e3}\n', {"a": 0.25, "b": -2000.0}),
        (b"0.5\n", {"reward": 0.5}),
        (b'{"reward": true, "b": false}', {"reward": 1.0, "b": 0.0}),
        (b'{"reward": 0, "reward": 1}', {"reward": 1.0}),
        (b'{"": 1}', {"": 1.0}),
        (b'{"caf\\u00e9\\n": 1}', {"caf\u00e9\n": 1.0}),
    ],
)
def test_json_is_an_object_of_named_numbers_or_one_number(document: bytes, found: dict[str, float]) -> None:
    assert read_rewards(document, b"0") == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "reward.txt is empty"),
        (b" \n", "reward.txt is not a number: ' \\n'"),
        (b"1\n0", "is not a number: '1\\n0'"),
        (b"1 of 2", "is not a number"),
        (b"1,0", "is not a number"),
        (b"0x1", "is not a number"),
        (b"True", "is not a number"),
        (b"1\0", "is not a number: '1\\x00'"),
        (b"\xef\xbb\xbf1", "is not a number: '\\xef\\xbb\\xbf1'"),
        (b"\xff", "is not a number"),
        (b"nan", "is no finite number: 'nan'"),
        (b"-Infinity", "is no finite number"),
        (b"1e999", "is no finite number"),
        (b"\x1b[2J" * 1000, "is not a number: '\\x1b[2J"),
        (b"0" * (1 << 21), "has more than 1,048,576 bytes"),
    ],
)
def test_a_text_that_is_nearly_a_number_is_an_error_that_quotes_it(text: bytes, why: str) -> None:
    with pytest.raises(BadReward) as raised:
        read_rewards(None, text)
    assert why in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "reward.json is empty"),
        (b'{"reward": 1', "is not JSON"),
        (b'{"reward": 1} 0', "is not JSON (Extra data"),
        (b'{"reward": 1,}', "is not JSON"),
        (b"{'reward': 1}", "is not JSON"),
        (b'\xef\xbb\xbf{"reward": 1}', "is not JSON"),
        (b'{"reward": "\xff"}', "is not UTF-8"),
        (b'{"reward": "1"}', ": 'reward' is no number: '{\"reward\": \"1\"}'"),
        (b'{"reward": null}', "is no number"),
        (b'{"reward": [1]}', "is no number"),
        (b'{"reward": {"reward": 1}}', "is no number"),
        (b'{"reward": 1, "note": "fine"}', ": 'note' is no number"),
        (b"[1]", "is no number: '[1]'"),
        (b'"1"', "is no number"),
        (b"null", "is no number"),
        (b'{"reward": NaN}', "is no finite number"),
        (b'{"a": 1, "b": Infinity}', ": 'b' is no finite number"),
        (b'{"reward": 1e999}', "is no finite number"),
        (b'{"reward": 1' + b"0" * 400 + b"}", "is no finite number"),
        (b'{"reward": 1' + b"0" * 5000 + b"}", "is not JSON (Exceeds the limit"),
        (b"[" * 100_000, "nests too deep: '[[["),
        (b"{}", "names no reward: '{}'"),
        (b'{"reward": 1}' + b" " * (1 << 20), "has more than 1,048,576 bytes"),
    ],
)
def test_json_that_is_nearly_rewards_is_an_error_that_quotes_it(document: bytes, why: str) -> None:
    with pytest.raises(BadReward) as raised:
        read_rewards(document, b"1")
    assert why in str(raised.value)
    assert str(raised.value).isprintable()


def test_no_file_at_all_is_an_error() -> None:
    with pytest.raises(BadReward, match="wrote neither"):
        read_rewards(None, None)


def test_the_score_of_record_is_the_one_named_so_or_the_only_one() -> None:
    assert score_of({"reward": 0.5, "speed": 12.0}) == 0.5
    assert score_of({"accuracy": 0.25}) == 0.25
    assert math.copysign(1, score_of({"reward": -0.0})) == 1
    with pytest.raises(BadReward, match="none of 2 rewards is named \"reward\", so there is no score: 'a', 'b'"):
        score_of({"a": 1.0, "b": 1.0})
    for number in (-0.1, 1.5, 100.0):
        with pytest.raises(BadReward, match="and a score is from 0 to 1"):
            score_of({"reward": number})


@given(st.binary(max_size=50), st.none() | st.binary(max_size=50))
def test_any_reward_file_gives_numbers_or_a_printable_error(text: bytes, document: bytes | None) -> None:
    said, found = "", dict[str, float]()
    try:
        found = dict(read_rewards(document, text))
    except BadReward as error:
        said = str(error)
    assert said.isprintable()
    assert bool(said) != bool(found)
    assert all(map(math.isfinite, found.values()))


def test_the_file_is_a_program_of_its_own_for_boxes_that_have_a_python(tmp_path: Path) -> None:
    source = Path(rewards.__file__).read_bytes()
    (tmp_path / "reward.txt").write_text("0")
    (tmp_path / "reward.json").write_text('{"reward": 0.5, "a\\nscore=1": 3}')
    run = (sys.executable, "-I", "-", str(tmp_path))
    done = subprocess.run(run, input=source, capture_output=True, check=True)
    first, last = done.stdout.decode().splitlines()
    assert json.loads(first.removeprefix("rewards=")) == {"reward": 0.5, "a\nscore=1": 3.0}
    assert last == "score=0.5"
    (tmp_path / "reward.json").write_text("[1]")
    done = subprocess.run(run, input=source, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"reward.json is no number: '[1]'" in done.stderr
