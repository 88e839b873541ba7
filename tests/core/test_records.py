"""Records and ids."""

import re
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.commands.docs import page
from orchestrator.core.records import Flag, TrialKey, flags_table, path_part

IDS = st.text(min_size=1).filter(lambda text: "/" not in text)


@given(scenario=IDS, arm=st.text(), number=st.integers(min_value=1))
def test_a_trial_key_survives_its_text_whatever_the_arm_is_called(scenario: str, arm: str, number: int) -> None:
    key = TrialKey(scenario, arm, number)
    assert TrialKey.parse(str(key)) == key


@pytest.mark.parametrize("arm", ["a/b", "a/1", "/", "", "openai/gpt-5+x", "line\nbreak", "1/2/3"])
def test_slashes_in_an_arms_name_do_not_move_the_borders_of_a_key(arm: str) -> None:
    assert TrialKey.parse(f"scn_1/{arm}/7") == TrialKey("scn_1", arm, 7)


@given(st.text())
def test_a_path_part_is_one_short_part_that_every_file_system_takes(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", path_part(name))


@given(st.text(), st.text())
def test_different_names_give_different_path_parts_even_where_case_does_not_count(one: str, other: str) -> None:
    assert (path_part(one).casefold() == path_part(other).casefold()) == (one == other)


@pytest.mark.parametrize("name", ["..", ".", "", "/etc/passwd", "../../x", "con", "\ud800", "a\0b", "x" * 5000, "é"])
def test_a_hostile_name_stays_below_its_folder(name: str) -> None:
    part = path_part(name)
    assert part.startswith((".", "/", "-")) is False
    assert "/" not in part
    assert len(part) < 80
    assert part == normalize("NFC", part)


def test_the_manual_has_the_flags_as_the_code_has_them() -> None:
    assert flags_table() in page("flags", commands=None)


def test_the_table_of_flags_names_every_flag_with_its_meaning() -> None:
    rows = flags_table().splitlines()[2:]
    assert rows == [f"| `{flag}` | {flag.meaning} |" for flag in Flag]
    assert all(flag.meaning and "|" not in flag.meaning for flag in Flag)
