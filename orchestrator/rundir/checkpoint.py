"""What spares reading a long journal again: what it added up to, up to an offset. Derived, and disposable.

The file is a header and then the ledger, a thousand entries a line, so that neither writing nor reading it holds it
twice. How to write a type is orjson's knowledge and how to read it pydantic's, from the annotations: a new field of the
ledger needs nothing here. It is not a pickle, because a folder that somebody sends you must not run code.

It counts only if the journal begins with the very bytes that were folded, by the same code. All of these bytes are
read and hashed for that: a size and a date would not show a repaired, restored or edited journal, and damage that a
checkpoint hides would come up in the night that it is lost. It costs a second for a gigabyte; reading the events of a
gigabyte takes thirty. Whatever is wrong with a checkpoint, the journal is read from its start.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from hashlib import sha256
from io import BufferedReader
from itertools import chain
from pathlib import Path
from types import GenericAlias
from typing import Any, Final, get_args, get_origin, get_type_hints

import orjson
import structlog
from pydantic import TypeAdapter

from orchestrator.core import events, ledger, records, stages
from orchestrator.core.ledger import Ledger
from orchestrator.rundir.append_file import Proof, Sum
from orchestrator.rundir.files import JOURNAL, write_atomically

CHECKPOINT: Final = "checkpoint.jsonl"
SCHEMA: Final = 1
_ROWS: Final = 1000


@dataclass(slots=True, kw_only=True)
class Folded:
    """How far a journal is folded: its first bytes, which are so many lines, and where in them the results come from.

    `results` is what results.jsonl is then, if that is known.
    """

    journal: Sum = field(default_factory=Sum)
    lines: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    results: Proof | None = None


def save(folder: Path, state: Ledger, folded: Folded) -> None:
    """Keep what a journal has added up to. Raises OSError; an earlier checkpoint is still there then."""
    write_atomically(folder / CHECKPOINT, _dump(state, folded))


def load(folder: Path, state: Ledger) -> Folded | None:
    """Fill an empty ledger with what is kept, if it is of this journal and this code; else it stays as it is."""
    try:
        with (folder / CHECKPOINT).open("rb") as file:
            return _load(file, folder / JOURNAL, state)
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 - it is disposable, and anything may be in that file
        structlog.get_logger().debug("checkpoint.ignored", folder=str(folder), reason=repr(error))
        return None


def _dump(state: Ledger, folded: Folded) -> Iterator[bytes]:
    hashed = sha256()
    for line in chain([_header(folded)], _body(state, folded)):
        data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
        hashed.update(data)
        yield data
    yield hashed.hexdigest().encode()


def _header(folded: Folded) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "code": _code(),
        "journal": folded.journal.proof(),
        "lines": folded.lines,
        "results": folded.results,
    }


def _body(state: Ledger, folded: Folded) -> Iterator[tuple[str, Any]]:
    """Each value in pieces, under its name."""
    for name, value in [*((f.name, getattr(state, f.name)) for f in fields(Ledger)), ("offsets", folded.offsets)]:
        rows = list(value.items()) if isinstance(value, dict) else value
        if isinstance(rows, list):
            yield from ((name, rows[start : start + _ROWS]) for start in range(0, len(rows), _ROWS))
        else:
            yield name, rows


def _load(file: BufferedReader, journal: Path, state: Ledger) -> Folded:
    hashed = sha256(first := file.readline())
    header = orjson.loads(first)
    if (header["schema"], header["code"]) != (SCHEMA, _code()):
        raise ValueError("it is another version's")
    proof = Proof(**header["journal"])
    folded = Sum().read(journal, proof.size)
    if folded.proof() != proof:
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
    results = Proof(**header["results"]) if header["results"] else None
    return Folded(journal=folded, lines=header["lines"], offsets=offsets, results=results)


@cache
def _adapters() -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(Ledger)
    shapes = {f.name: _shape(hints[f.name]) for f in fields(Ledger)} | {"offsets": list[tuple[str, int]]}
    return {name: TypeAdapter(shape) for name, shape in shapes.items()}


def _shape(hint: Any) -> Any:
    """A mapping is written as a list of its entries: JSON has no keys but strings."""
    if issubclass(get_origin(hint) or object, Counter):
        return GenericAlias(list, GenericAlias(tuple, (*get_args(hint), int)))
    if issubclass(get_origin(hint) or object, dict):
        return GenericAlias(list, GenericAlias(tuple, get_args(hint)))
    return hint


@cache
def _code() -> str:
    """Another fold of the same journal is another state: the sources that say what events add up to."""
    hashed = sha256()
    for module in (records, stages, events, ledger):
        hashed.update(Path(str(module.__file__)).read_bytes())
    return hashed.hexdigest()
