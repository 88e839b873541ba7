"""Words, and pieces of those that are too long for a line."""

from wraptext.cells import TOKEN, is_code, token_width


def split_words(text: str) -> list[str]:
    """The words; codes that stand alone go to the next one, or to the last."""
    words, codes = [], ""
    for word in text.split():
        if all(map(is_code, TOKEN.findall(word))):
            codes += word
        else:
            words.append(codes + word)
            codes = ""
    if codes:
        words[-1:] = ["".join(words[-1:]) + codes]
    return words


def pieces(word: str, limit: int) -> list[str]:
    """The word in pieces of at most `limit` cells, all but the last as long as they can be.

    What takes no room (codes and combining marks) stays in the piece before it.
    """
    found, used = [""], 0
    for token in TOKEN.findall(word):
        room = token_width(token)
        if used + room > limit:
            found.append("")
            used = 0
        found[-1] += token
        used += room
    return found
