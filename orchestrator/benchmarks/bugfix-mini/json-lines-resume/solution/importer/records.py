"""A line of the source, and the record in it."""

import json
from dataclasses import dataclass


class RecordError(ValueError):
    """A line is not a record."""


@dataclass(frozen=True)
class Record:
    id: int
    user: str
    amount: int  # cents


def parse_record(line: bytes) -> Record:
    try:
        found = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise RecordError(f"not a record: {error}") from None
    if not isinstance(found, dict):
        raise RecordError("not a record: not an object")
    try:
        record = Record(found["id"], found["user"], found["amount"])
    except KeyError as error:
        raise RecordError(f"not a record: {error} is missing") from None
    if type(record.id) is not int or type(record.amount) is not int or not isinstance(record.user, str):
        raise RecordError("not a record: a value has the wrong type")
    return record
