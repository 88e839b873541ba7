"""Breaks text into lines for a terminal."""

from wraptext.cells import width
from wraptext.lines import wrap

__all__ = ["width", "wrap"]
