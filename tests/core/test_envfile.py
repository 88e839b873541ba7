"""A file of variables says what it says, to the letter, and never shows it."""

import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.commands.envfile import read_variables
from orchestrator.core.errors import UsageError


def read(folder: Path, text: str) -> dict[str, str]:
    (folder / "env").write_text(text)
    return read_variables(folder / "env")


def test_a_file_of_all_that_people_write(tmp_path: Path) -> None:
    text = """
# Keys for tonight.
KEY=sk-a#b=c$HOME\\n
export OTHER = spaced out
  QUOTED="  it's  "\r
SINGLE='a"b'
EMPTY=
"""
    assert read(tmp_path, text) == {
        "KEY": "sk-a#b=c$HOME\\n",
        "OTHER": "spaced out",
        "QUOTED": "  it's  ",
        "SINGLE": 'a"b',
        "EMPTY": "",
    }


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=sk-abc # my key", "sk-abc"),
        ("A=sk-abc\t# my key", "sk-abc"),
        ("A=sk-abc#1 # my key", "sk-abc#1"),
        ("A=#1-abc", "#1-abc"),
        ("A= # still to come", ""),
        ("A='sk-abc' # it's mine", "sk-abc"),
        ('A = "sk # abc" # called "mine"', "sk # abc"),
        ("export\tA=sk-abc\r", "sk-abc"),
        ("\ufeffA=sk-abc", "sk-abc"),
        ("\ufeffexport A='sk-abc'\r", "sk-abc"),
    ],
)
def test_comments_marks_and_line_ends_are_no_part_of_a_value(tmp_path: Path, line: str, value: str) -> None:
    (tmp_path / "env").write_bytes(f"{line}\n".encode())
    assert read_variables(tmp_path / "env") == {"A": value}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A=1\nhunter2", "line 2: expected KEY=VALUE"),
        ("A B=hunter2", "line 1: expected KEY=VALUE"),
        ("=hunter2", "line 1: expected KEY=VALUE"),
        ("\nA='hunter2", "line 2: A begins with a quote"),
        ('A="', "line 1: A begins with a quote"),
        ('A="hunter"2', "line 1: A begins with a quote"),
        ("A=1\nA=hunter2", "line 2: A is there twice"),
        ("A=hunter\0two", "line 1: A has a NUL byte"),
    ],
)
def test_a_wrong_line_is_named_and_its_value_is_not(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert says in caught.value.message
    assert "hunter" not in caught.value.message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--env-file .*gone: cannot be read: No such file"):
        read_variables(tmp_path / "gone")
    (tmp_path / "latin").write_bytes(b"A=\xe9")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_variables(tmp_path / "latin")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), min_size=1))
def test_any_value_in_quotes_is_itself(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    folder = tmp_path_factory.mktemp("env")
    assume(not re.search(r"'\s+#", value))  # which ends the value, and begins a comment
    (folder / "env").write_bytes(f"A='{value}'\n".encode())
    assert read_variables(folder / "env") == {"A": value}
