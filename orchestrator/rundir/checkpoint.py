"""The checkpoint: the fold of a journal up to an offset, so that a long journal need not be read again. Disposable.

The file is a header and then the ledger, a thousand entries a line, so that neither writing nor reading it holds it
twice in memory. orjson writes the types and pydantic reads them, from the annotations: a new field of the ledger needs
nothing here. It is not a pickle, because a folder that you get from others must not run code.

It is used only if the journal begins with the bytes that were folded, by the same code. All of these bytes are read and
hashed for that: a size and a date would not show a repaired, restored or edited journal, and a checkpoint must not hide
damage until it is lost itself. That takes a second for a gigabyte; reading the events of a gigabyte takes thirty.
With any doubt about a checkpoint the journal is read from its start.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from types import GenericAlias
from typing import Any, Final, get_args, get_origin, get_type_hints

import orjson
import structlog
from pydantic import TypeAdapter

from orchestrator.core import events, ledger, records, stages
from orchestrator.core.ledger import Ledger
from orchestrator.rundir.append_file import Checksum, Digest
from orchestrator.rundir.files import JOURNAL, write_atomically

CHECKPOINT: Final = "checkpoint.jsonl"
SCHEMA: Final = 1
#: The most entries of a field that one line has.
_ENTRIES: Final = 1000


@dataclass(slots=True, kw_only=True)
class Folded:
    """The part of a journal that is folded: its bytes, their number of lines, and the offsets of the results in it.

    `results` is the digest of results.jsonl then, if that is known.
    """

    journal: Checksum = field(default_factory=Checksum)
    lines: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    results: Digest | None = None


def save(folder: Path, state: Ledger, folded: Folded) -> None:
    """Save the fold of a journal. After OSError the earlier checkpoint is still there."""
    header = {
        "schema": SCHEMA,
        "code": _code(),
        "journal": folded.journal.digest(),
        "lines": folded.lines,
        "results": folded.results,
    }
    values = {f.name: getattr(state, f.name) for f in fields(Ledger)} | {"offsets": folded.offsets}

    def rows() -> Iterator[Any]:
        yield header
        for name, value in values.items():
            entries = list(value.items()) if isinstance(value, dict) else value
            if isinstance(entries, list):
                yield from ((name, entries[at : at + _ENTRIES]) for at in range(0, len(entries), _ENTRIES))
            else:
                yield name, entries

    def lines() -> Iterator[bytes]:
        hashed = sha256()
        for row in rows():
            data = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
            hashed.update(data)
            yield data
        yield hashed.hexdigest().encode()

    write_atomically(folder / CHECKPOINT, lines())


def load(folder: Path, state: Ledger) -> Folded | None:
    """Fill an empty ledger from the checkpoint if journal and code are still the same; else leave it empty."""
    try:
        with (folder / CHECKPOINT).open("rb") as file:
            return _load(file, folder / JOURNAL, state)
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 - a checkpoint is disposable, and the file may have any content
        structlog.get_logger().debug("checkpoint.ignored", folder=str(folder), reason=repr(error))
        return None


def _load(file: BufferedReader, journal: Path, state: Ledger) -> Folded:
    hashed = sha256(first := file.readline())
    header = orjson.loads(first)
    if (header["schema"], header["code"]) != (SCHEMA, _code()):
        raise ValueError("it is another version's")
    digest = Digest(**header["journal"])
    folded = Checksum().read(journal, digest.size)
    if folded.digest() != digest:
        raise ValueError("the journal is another")
    values: dict[str, Any] = {}
    while (line := file.readline()).endswith(b"\n"):
        hashed.update(line)
        name, piece = orjson.loads(line)
        value = _adapters()[name].validate_python(piece)
        if isinstance(value, list):
            values.setdefault(name, []).extend(value)
        else:
            values[name] = value
    if line != hashed.hexdigest().encode():
        raise ValueError("it is damaged")
    offsets = dict(values.pop("offsets", []))
    for name, value in values.items():
        kind = type(getattr(state, name))
        setattr(state, name, kind(dict(value)) if issubclass(kind, dict) else value)
    results = Digest(**header["results"]) if header["results"] else None
    return Folded(journal=folded, lines=header["lines"], offsets=offsets, results=results)


@cache
def _adapters() -> dict[str, TypeAdapter[Any]]:
    """The reader of each field. A mapping is written as a list of its entries: JSON has no keys but strings."""
    shapes: dict[str, Any] = {"offsets": list[tuple[str, int]]}
    hints = get_type_hints(Ledger)
    for each in fields(Ledger):
        hint = hints[each.name]
        kind = get_origin(hint) or object
        if issubclass(kind, dict):
            entry = (*get_args(hint), int) if issubclass(kind, Counter) else get_args(hint)
            hint = GenericAlias(list, GenericAlias(tuple, entry))
        shapes[each.name] = hint
    return {name: TypeAdapter(shape) for name, shape in shapes.items()}


@cache
def _code() -> str:
    """A hash of the sources that define the fold: changed code may fold the same journal to another state."""
    hashed = sha256()
    for module in (records, stages, events, ledger):
        hashed.update(Path(str(module.__file__)).read_bytes())
    return hashed.hexdigest()
