"""The output of devboxes on disk: what their setup and their commands print, the log made of it, and its end.

One file per stream of a command, written as it comes, read at any time, never held in memory. Each write opens the file
anew, in a thread: a service with hundreds of commands holds no descriptor for any of them, and while one write is under
way the next bytes gather in the pipe, so that a flood is written in large pieces. Setup is kept as a file of log
entries, since it happens before there is anything else to file it under.

Output stays for a day after its devbox has ended; that of a sweep's devbox goes as soon as its run is completed or
canceled (`Executions.forget`). What is known of the devbox and its executions stays in the store.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import msgspec
import structlog

from orchestrator.service.errors import Unwritable
from orchestrator.service.records import DevboxRecord, ExecutionRecord, Record
from orchestrator.service.store import DEVBOXES, Store, now_ms

STREAMS: Final = ("stdout", "stderr")
#: Bytes that are kept of one stream, that a tail has, and that one reading takes.
MAX_STREAM_BYTES: Final = 1 << 30
MAX_TAIL_BYTES: Final = 1 << 20
PIECE_BYTES: Final = 1 << 16
_LONGEST_CHARACTER: Final = 4
#: Entries and characters of the log of a devbox.
MAX_ENTRIES: Final = 10_000
MAX_LOG_CHARACTERS: Final = 2 << 20
KEPT_MS: Final = 24 * 3600 * 1000
_PRUNE_PAUSE_S: Final = 3600.0
_LEVELS: Final = {"stdout": "info", "stderr": "error"}


def spool_path(output: Path, devbox_id: str, execution_id: str, stream: str) -> Path:
    return output / devbox_id / f"{execution_id}.{stream}"


class Spool:
    """The writer of one stream. After `limit` bytes the rest is dropped, and the file says so."""

    def __init__(self, path: Path, *, on_change: Callable[[], None], limit: int = MAX_STREAM_BYTES) -> None:
        self._path = path
        self._on_change = on_change
        self._room = limit
        self._limit = limit
        #: Some of the output was dropped.
        self.is_cut = False

    async def write(self, chunk: bytes) -> None:
        """Keep a piece of output; what the disk refuses is dropped, so that the command is not held up."""
        if self.is_cut:
            return
        kept = chunk[: self._room]
        self._room -= len(kept)
        if len(kept) < len(chunk):
            self.is_cut = True
            kept += f"\n[the output beyond {self._limit} bytes was not kept]\n".encode()
        try:
            await anyio.to_thread.run_sync(append, self._path, kept)
        except OSError as error:
            self.is_cut = True
            structlog.get_logger().warning("output.unwritable", path=str(self._path), error=str(error))
        self._on_change()


def append(path: Path, data: bytes) -> None:
    """Add to a file in the folder of a devbox's output, both for their owner only; all of it or nothing. Blocking.

    Raises OSError.
    """
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab", 0) as file:
        before = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(before)
            raise


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a stream as text, and whether anything came before it."""

    text: str
    is_truncated: bool


def read_tail(path: Path, *, lines: int | None = None, limit: int = MAX_TAIL_BYTES) -> Tail:
    """Read the last lines (all, if None) of a file, at most `limit` bytes; a missing file is empty. Blocking."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return Tail("", is_truncated=False)
    with file:
        start = file.seek(0, 2)
        data = b""
        while start > 0 and len(data) < limit and (lines is None or data.count(b"\n", 0, -1) < lines):
            step = min(start, PIECE_BYTES, limit - len(data))
            start -= step
            file.seek(start)
            data = file.read(step) + data
    cut = 0
    if lines is not None:
        cut = len(data) - 1 if data.endswith(b"\n") else len(data)
        for _ in range(lines):
            cut = data.rfind(b"\n", 0, cut)
            if cut < 0:
                break
        cut = cut + 1 if lines > 0 else len(data)
    is_truncated = start > 0 or cut > 0
    if start > 0 and cut == 0:  # drop the bytes of a character that began before the first of them
        while cut < min(len(data), _LONGEST_CHARACTER - 1) and data[cut] & 0xC0 == 0x80:
            cut += 1
    return Tail(data[cut:].decode(errors="replace"), is_truncated)


def read_piece(path: Path, offset: int) -> bytes:
    """Read up to PIECE_BYTES bytes from `offset` on; a missing file is empty. Blocking."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)
    except FileNotFoundError:
        return b""


def whole_characters(data: bytes) -> int:
    """Return how many bytes of `data` can be decoded now, because no later byte can belong to them.

    Only a character that is begun and not finished at the very end is held back; bytes that are no UTF-8 are not.
    """
    for back in range(1, min(_LONGEST_CHARACTER, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if length > back else len(data)
    return len(data)


class LogEntry(Record, frozen=True, kw_only=True):
    """One entry of a devbox's log, in the published shape."""

    level: str
    source: str
    timestamp_ms: int
    cmd_id: str | None = None
    shell_name: str | None = None
    cmd: str | None = None
    message: str | None = None
    exit_code: int | None = None


def append_setup(output: Path, devbox_id: str, entries: Iterable[LogEntry]) -> None:
    """Add entries to the log of a devbox's setup. Blocking."""
    lines = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
    append(output / devbox_id / "setup.jsonl", lines)


def collect(
    output: Path, devbox: DevboxRecord, executions: Iterable[ExecutionRecord], *, with_setup: bool
) -> list[LogEntry]:
    """Put the log of a devbox together, by time; the newest MAX_ENTRIES, about MAX_LOG_CHARACTERS, are kept. Blocking.

    Output lines carry the time their command started, because only the bytes are kept; the order within a stream is
    right.
    """
    kept: list[LogEntry] = []
    room = MAX_LOG_CHARACTERS
    for execution in sorted(executions, key=lambda each: each.created_ms, reverse=True):
        part = _entries_of(output, execution, room)
        room -= sum(len(each.message or "") for each in part)
        kept += part
        if room <= 0 or len(kept) >= MAX_ENTRIES:
            break

    if with_setup:
        setup = output / devbox.id / "setup.jsonl"
        if setup.exists():
            kept += [msgspec.json.decode(line, type=LogEntry) for line in setup.read_bytes().splitlines()]
        if devbox.end_message:
            at = devbox.end_time_ms or 0
            kept.append(LogEntry(level="error", source="kmsg", timestamp_ms=at, message=devbox.end_message))
    return sorted(kept, key=lambda entry: entry.timestamp_ms)[-MAX_ENTRIES:]


def _entries_of(output: Path, execution: ExecutionRecord, room: int) -> list[LogEntry]:
    entry = partial(
        LogEntry, source="exec", timestamp_ms=execution.created_ms, cmd_id=execution.id, shell_name=execution.shell_name
    )
    entries = [entry(level="info", cmd=execution.command)]
    for stream in STREAMS:
        path = spool_path(output, execution.devbox_id, execution.id, stream)
        tail = read_tail(path, limit=max(room // 2, 1))
        entries += [entry(level=_LEVELS[stream], message=line) for line in tail.text.splitlines()]
    if execution.ended_ms is not None:
        ended, status = execution.ended_ms, execution.exit_status
        entries.append(entry(level="info", timestamp_ms=ended, exit_code=status, message=execution.note))
    return entries


async def prune_hourly(store: Store, output: Path) -> None:
    """Remove what is old enough from the folder of all output, now and every hour."""
    while True:
        try:
            await prune(store, output)
        except (Unwritable, OSError) as error:
            structlog.get_logger().warning("output.not_pruned", error=str(error))
        await anyio.sleep(_PRUNE_PAUSE_S)


async def prune(store: Store, output: Path) -> None:
    """Remove the folders of devboxes that ended more than KEPT_MS ago. Raises Unwritable and OSError."""
    names = await anyio.to_thread.run_sync(lambda: [each.name for each in output.iterdir()] if output.exists() else [])
    before = now_ms() - KEPT_MS

    def find(db: sqlite3.Connection) -> list[str]:
        found = [devbox for name in names if (devbox := DEVBOXES.find(db, name))]
        return [devbox.id for devbox in found if devbox.is_ended and (devbox.end_time_ms or 0) < before]

    old = await store.read(find)
    for name in old:
        await anyio.to_thread.run_sync(shutil.rmtree, output / name)
    if old:
        structlog.get_logger().info("output.pruned", devboxes=len(old))
