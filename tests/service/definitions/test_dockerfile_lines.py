"""Parsing a Dockerfile's text: Docker's own rules."""

import pytest

from orchestrator.service.environments.dockerlines import Lines, Mistake, expand, split


def read(text: str) -> list[tuple[int, str, str]]:
    return [(each.line, each.keyword, each.rest) for each in Lines(text).instructions()]


def test_comments_and_empty_lines_are_no_instructions() -> None:
    assert read("# syntax=docker/dockerfile:1\n\nfrom  x \n  # more\nRUN\ta\n") == [(3, "FROM", "x"), (5, "RUN", "a")]


def test_a_continued_instruction_counts_from_its_first_line() -> None:
    text = "FROM x\nRUN a \\\n   # why\n\n  && b \\  \n  && c\nRUN d\n"
    assert read(text) == [(1, "FROM", "x"), (2, "RUN", "a   && b   && c"), (7, "RUN", "d")]


def test_two_backslashes_continue_nothing() -> None:
    assert read("RUN a \\\\\nRUN b\n") == [(1, "RUN", "a \\\\"), (2, "RUN", "b")]


def test_a_last_line_may_hang() -> None:
    assert read("RUN a \\") == [(1, "RUN", "a")]


def test_here_documents_belong_to_their_instruction() -> None:
    text = "RUN <<EOF cat > a\none $X\n# two\nEOF\nCOPY <<-'B' <<C /d/\n\tb\n\tB\nc\nC\nRUN a <<<EOF\n"
    first, second, third = Lines(text).instructions()
    assert [(each.name, each.is_quoted, each.text) for each in first.heredocs] == [("EOF", False, "one $X\n# two\n")]
    assert [(each.name, each.is_quoted, each.text) for each in second.heredocs] == [
        ("B", True, "b\n"),
        ("C", False, "c\n"),
    ]
    assert (third.line, third.heredocs) == (10, ())


def test_a_here_document_without_end_is_a_mistake_of_its_line() -> None:
    lines = Lines("FROM x\nRUN <<EOF\na\n")
    assert len(list(lines.instructions())) == 2
    assert lines.mistakes == [(2, "the here-document has no end: expected a line EOF")]


def test_another_escape_character_is_a_mistake() -> None:
    lines = Lines("# escape=`\nFROM x\n")
    assert [each.keyword for each in lines.instructions()] == ["FROM"]
    assert lines.mistakes == [(1, "another escape character than \\ is not supported")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a  b\tc", ["a", "b", "c"]),
        ("A=\"x y\" B='z w' C=p\\ q", ['A="x y"', "B='z w'", "C=p\\ q"]),
        ("", []),
        ('""', ['""']),
    ],
)
def test_quotes_and_backslashes_keep_words_together(text: str, words: list[str]) -> None:
    assert split(text) == words


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("$A/b", "one/b"),
        ("${A}b", "oneb"),
        ("\"$A\"'$A'", "one$A"),
        ("\\$A", "$A"),
        ("$NONE.", "."),
        ("${NONE:-x}${EMPTY:-y}${EMPTY-z}", "xy"),
        ("${A:+x}${NONE:+y}${EMPTY+z}", "xz"),
        ("${NONE:-$A}", "one"),
        ("a$", "a$"),
        ("'it''s' \"\\\"q\\n\\\"\"", 'its "q\\n"'),
    ],
)
def test_variables_are_filled_in_as_docker_does(word: str, value: str) -> None:
    assert expand(word, {"A": "one", "EMPTY": ""}) == value


@pytest.mark.parametrize("word", ["${A#x}", "'open", '"open'])
def test_lines_that_docker_or_we_cannot_read_are_mistakes(word: str) -> None:
    with pytest.raises(Mistake):
        expand(word, {"A": "one"})


def test_quotes_of_a_here_document_are_text() -> None:
    assert expand('it\'s "$A" \\$A\n', {"A": "one"}, is_quoted_text=True) == 'it\'s "one" $A\n'
