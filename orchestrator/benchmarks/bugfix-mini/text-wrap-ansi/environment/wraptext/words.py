"""Words, and pieces of those that are too long for a line."""

from wraptext.cells import width


def split_words(text: str) -> list[str]:
    return text.split()


def pieces(word: str, limit: int) -> list[str]:
    """The word in pieces of at most `limit` cells, all but the last as long as they can be."""
    found = []
    while width(word) > limit:
        found.append(word[:limit])
        word = word[limit:]
    return [*found, word]
