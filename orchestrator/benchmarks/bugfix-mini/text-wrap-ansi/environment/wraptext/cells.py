"""How much room text takes on a terminal."""


def width(text: str) -> int:
    """The cells that a text without newlines takes."""
    return len(text)
