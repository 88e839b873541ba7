"""How much room text takes on a terminal."""

import re
import unicodedata

# A colour code, or a character.
TOKEN = re.compile(r"\x1b\[[0-9;]*m|.", re.DOTALL)


def is_code(token: str) -> bool:
    return len(token) > 1


def token_width(token: str) -> int:
    if is_code(token) or unicodedata.category(token) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(token) in {"W", "F"} else 1


def width(text: str) -> int:
    """The cells that a text without newlines takes."""
    return sum(map(token_width, TOKEN.findall(text)))
