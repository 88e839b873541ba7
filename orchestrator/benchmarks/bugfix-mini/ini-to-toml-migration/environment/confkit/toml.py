"""Writes sections as TOML."""


class ConversionError(Exception):
    """The sections can't be said in TOML."""


def to_toml(sections):
    """Returns the text of a TOML file."""
    raise ConversionError("to-toml is not there yet")
