"""Names and texts of others, when they are printed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.printable import coloured, json_line, printable, printable_lines

#: Controls, escapes of both kinds, what turns letters round or hides, line ends of all kinds, half a surrogate pair.
HOSTILE = "\x00\x07\x08\x1b[2J\x1b]0;title\x07\x7f\x9b31m\u202e\u2066\u200b\ufeff\r\n\x0b\x0c\x85\u2028\udc80"
ANY = st.text(st.characters() | st.sampled_from(HOSTILE) | st.characters(categories=["Cs"]))


@given(ANY)
def test_texts_of_others_are_one_line_without_anything_a_terminal_obeys(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text).encode().decode() == printable(text)


@pytest.mark.parametrize("text", ["plain [red] words — größer 漢字", "a  b", "", "C:\\x1b"])
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_control_characters_are_shown_as_python_escapes() -> None:
    assert printable("a\x1b[31m\n\t\u202e\udc80") == r"a\x1b[31m\n\t\u202e\udc80"


@given(ANY)
def test_no_line_of_a_message_passes_for_anothers(text: str) -> None:
    first, *others = printable_lines(text)
    assert first.isprintable()
    assert all(line.startswith("  ") and line.isprintable() for line in others)


@given(ANY)
def test_a_log_keeps_lines_tabs_and_colours_and_nothing_else_that_is_obeyed(text: str) -> None:
    kept = coloured(f"\x1b[1;31mred\x1b[0m\t{text}\r\n")
    assert kept.startswith("\x1b[1;31mred\x1b[0m\t")
    assert kept.endswith("\n")
    bare = kept.replace("\x1b[1;31m", "").replace("\x1b[0m", "").replace("\t", "").replace("\n", "")
    assert "\x1b[2J" not in kept
    assert bare.replace("\x1b[", "").isprintable()


def test_escapes_that_are_not_colours_are_removed() -> None:
    for escape in (
        "\x1b[2J",
        "\x1b[6n",
        "\x1b]0;t\x07",
        "\x1b[?25l",
        "\x1bc",
        "\x9b31m",
        "\x1b[31",
        "\r",
        "\x1b[>4m",
    ):
        assert "\x1b" not in coloured(escape)
        assert "\r" not in coloured(escape)
        assert "\x9b" not in coloured(escape)


@given(ANY)
def test_json_that_is_printed_is_safe_and_means_the_same(text: str) -> None:
    line = json_line({"name": text})
    assert line.removesuffix("\n").isprintable()
    assert json.loads(line) == {"name": text}
