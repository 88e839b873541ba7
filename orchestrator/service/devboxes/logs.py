"""The log of a devbox, put together when it is asked for: what setup printed, its commands, and their output.

Output lines carry the time their command started, because only the bytes are kept; the order within a stream is
right. Setup is kept as a file of log entries, since it happens before there is anything else to file it under.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from orchestrator.service.devboxes.spool import STREAMS, append, read_tail, spool_path
from orchestrator.service.store import Document

MAX_ENTRIES: Final = 10_000
MAX_BYTES: Final = 2 << 20
_LEVELS: Final = {"stdout": "info", "stderr": "error"}


def entry(source: str, at: int, *, level: str = "info", **fields: Any) -> Document:
    """One entry, in the published shape; `at` in milliseconds; fields that are None are left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    return {"level": level, "source": source, "timestamp_ms": at, **given}


def setup_path(output: Path, devbox_id: str) -> Path:
    return output / devbox_id / "setup.jsonl"


def append_setup(output: Path, devbox_id: str, entries: Iterable[Document]) -> None:
    """Blocking."""
    append(setup_path(output, devbox_id), b"".join(orjson.dumps(one) + b"\n" for one in entries))


def read_setup(output: Path, devbox_id: str) -> list[Document]:
    """Blocking."""
    path = setup_path(output, devbox_id)
    if not path.exists():
        return []
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def collect(output: Path, devbox: Document, executions: Iterable[Document], *, with_setup: bool) -> list[Document]:
    """All entries by time, at most MAX_ENTRIES and about MAX_BYTES; the newest are kept. Blocking."""
    newest_first = sorted(executions, key=lambda doc: doc["_created_ms"], reverse=True)
    kept: list[Document] = []
    room = MAX_BYTES
    for doc in newest_first:
        part = list(_of_execution(output, doc, room))
        room -= sum(len(one.get("message", "")) for one in part)
        kept += part
        if room <= 0 or len(kept) >= MAX_ENTRIES:
            break
    if with_setup:
        kept += read_setup(output, devbox["id"])
        if devbox.get("_failure"):
            kept.append(entry("kmsg", devbox["end_time_ms"], level="error", message=devbox["_failure"]))
    return sorted(kept, key=lambda one: one["timestamp_ms"])[-MAX_ENTRIES:]


def _of_execution(output: Path, doc: Document, room: int) -> Iterator[Document]:
    at = doc["_created_ms"]
    about = {"cmd_id": doc["id"], "shell_name": doc.get("shell_name")}
    yield entry("exec", at, cmd=doc["_command"], **about)
    for stream in STREAMS:
        tail = read_tail(spool_path(output, doc["devbox_id"], doc["id"], stream), limit=max(room // 2, 1))
        for line in tail.text.splitlines():
            yield entry("exec", at, level=_LEVELS[stream], message=line, **about)
    if "_ended_ms" in doc:
        note = doc.get("_note")
        yield entry("exec", doc["_ended_ms"], exit_code=doc.get("exit_status"), message=note, **about)
