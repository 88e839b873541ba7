"""Public sets that we know how to get, and what is known of them: `public_sets.toml`, with a source for each fact.

It is a list to choose from. Nothing here is asked of a network, and nothing is fetched because it stands here.
"""

from datetime import date
from pathlib import Path
from typing import Final

import msgspec

_FILE: Final = Path(__file__).with_suffix(".toml")


class PublicCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The outcome of `sweep check`: so many scenarios of so many can run, and `why` others cannot, or are not proved.

    `proved` counts those whose solution scored 1.0, and doing nothing less; None if the check was static.
    """

    can_run: int
    of: int
    on: date
    proved: int | None = None
    why: str = ""


class PublicSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A set that others publish; a fact that is not known is None or empty.

    Either `get` is the words that fetch it, or `form` and the address of its `file` are what it is imported from.
    `size` is in bytes, as it is fetched. `sources` say where each fact is from, by its name.
    """

    name: str
    description: str
    get: str = ""
    form: str = ""
    file: str = ""
    tasks: int | None = None
    licence: str | None = None
    size: int | None = None
    needs: str = ""
    checked: PublicCheck | None = None
    sources: dict[str, str]


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    sets: tuple[PublicSet, ...]


def public_sets() -> tuple[PublicSet, ...]:
    """Return the sets, in the order of the file. Blocking, shortly."""
    return msgspec.toml.decode(_FILE.read_bytes(), type=_File).sets
