"""Logs and patches as markup, and the pieces in which they are read."""

import re
import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.view.web.markup import find, log_markup, patch_markup, read_piece
from orchestrator.view.web.templates import render
from orchestrator.view.web.trial_view import quoted

TAGS: Final = re.compile(r"<[^>]*>")
#: What agents print: bytes of any kind, and often those that matter.
PRINTED: Final = st.lists(
    st.sampled_from([b"\x1b[1;31m", b"\x1b[0m", b"<b>", b"&", b"</script>", b"\r\n", b"\n", "\u202e".encode(), b"\xff"])
    | st.binary(max_size=8)
).map(b"".join)


@given(PRINTED)
def test_markup_has_no_tag_but_ours_and_no_character_that_is_obeyed(data: bytes) -> None:
    for html in (log_markup(data), patch_markup(data)):
        assert {*TAGS.findall(re.sub(r' class="[a-z0-9 ]*"', "", html))} <= {"<span>", "</span>"}
        assert TAGS.sub("", html).replace("\n", "").replace("\t", "").isprintable()


def test_colours_stay_and_other_sequences_are_shown() -> None:
    assert log_markup(b"\x1b[1;31mred\x1b[0m \x1b[38;5;2mgreen\x1b[39m \x1b[38;2;9;9;9mgrey\x1b]0;t\x07") == (
        '<span class="bold c1">red</span> <span class="c2">green</span> grey'
        '<span class="escape">\\x1b</span>]0;t<span class="escape">\\x07</span>'
    )


@given(st.lists(st.text(alphabet="añ漢🙂\n", max_size=30)), st.integers(min_value=4, max_value=40))
def test_pieces_forward_have_every_byte_once_and_cut_no_letter(lines: list[str], limit: int) -> None:
    data = "".join(lines).encode()
    read, at = "", 0
    with NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        while at < len(data):
            piece = read_piece(Path(file.name), at=at, limit=limit)
            assert piece.begin == at
            assert piece.end > at
            read, at = read + piece.html, piece.end
    assert read == "".join(lines)


def test_pieces_backwards_meet_those_forward_and_a_torn_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(1000)) + b"torn")
    last = read_piece(path, limit=100)
    assert last.end == last.size
    assert last.html.endswith("line 999\ntorn")
    before = read_piece(path, before=last.begin, limit=100)
    assert before.end == last.begin
    assert before.html.startswith("line ")
    assert not read_piece(path, limit=100, is_over=False).html.endswith("torn")
    assert find(path, "LINE 500", 0) == path.read_bytes().index(b"line 500")
    assert find(path, "line 500", path.stat().st_size - 100) is None


def test_names_are_text_in_every_template() -> None:
    html = render("error.html", {"title": "<b>\u202ename", "message": "a\x1b[31m & b"})
    assert "&lt;b&gt;\\u202ename" in html
    assert "a\\x1b[31m &amp; b" in html


def test_codes_without_end_and_looks_that_are_asked_for_again_take_no_room() -> None:
    assert log_markup(b"\x1b[" + b"1" * 5000 + b"mplain") == "plain"
    assert len(log_markup(b"\x1b[1mx" * 1000)) < 50_000


@pytest.mark.parametrize("word", ["a b", "it's\nline\\n", "tab\t'q'", "\u202ebidi", "\x1b[31m", "\x9b"])
def test_a_command_to_type_is_the_word_that_was_meant(word: str) -> None:
    typed = quoted(word)
    assert typed.isprintable()
    said = subprocess.run(
        ["bash", "-c", f"printf %s {typed}"], env={"LC_ALL": "C.UTF-8"}, capture_output=True, check=True
    )
    assert said.stdout.decode() == word
