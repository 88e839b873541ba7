"""Puts words into lines."""

from wraptext.cells import width
from wraptext.words import pieces, split_words


def wrap(text: str, limit: int) -> list[str]:
    """The lines of `text`, none wider than `limit` cells; `limit` is at least 2."""
    if limit < 2:
        raise ValueError("the width must be at least 2")
    return [line for paragraph in text.split("\n") for line in fill(split_words(paragraph), limit)]


def fill(words: list[str], limit: int) -> list[str]:
    """One paragraph."""
    lines = [""]
    for word in words:
        first, *others = pieces(word, limit)
        if lines[-1] and (others or width(lines[-1]) + 1 + width(first) > limit):
            lines.append(first)
        else:
            lines[-1] = f"{lines[-1]} {first}" if lines[-1] else first
        lines.extend(others)
    return lines
