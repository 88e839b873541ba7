"""The service's memory: one SQLite file, one thread that writes it, another that reads it.

A change is a function of the connection, run on the writer's thread inside a transaction; changes that queue up while
one is committed share the next commit, each in a savepoint of its own. A change is durable when `write` returns. What
is read later includes it, because the reader begins a transaction for what it finds in its queue. In SQLite's WAL mode
readers never wait for the writer, so a GET never takes the write lock; without it the writer's thread reads too.
Things are kept as JSON, newest first by `seq`, because the wire shows them whole; what lists filter by is indexed.

A failure on these threads is raised where its job is waited for, and the next batch is tried: a full disk is full for
a while, a service that hangs is lost. A failure that is not one job's own is reported as the disk's.

Why not an ORM or a pool: one writer never sees "database is locked", and the file opens in any SQLite shell.
"""

import os
import queue
import secrets
import sqlite3
import threading
import time
from asyncio import AbstractEventLoop, Future, get_running_loop
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

import anyio
import msgspec
import structlog

from orchestrator.core.errors import InternalError, UsageError
from orchestrator.core.protocol import LockKind
from orchestrator.service import records
from orchestrator.service.errors import NotFound, Unwritable

Document = dict[str, Any]
Filters = Mapping[str, str | Sequence[str] | None]
"""Wanted values by key, a sequence meaning any of them; a key whose value is None does not filter."""
T = TypeVar("T")
R = TypeVar("R", bound=records.Record | Document)

SCHEMA_VERSION: Final = 1
#: Characters of the rows on one page, but for the last of them.
MAX_PAGE: Final = 32 << 20
#: Pause before what must be recorded is tried again on a full disk.
RETRY_S: Final = 1.0
_CLOSE_TIMEOUT_S: Final = 10.0
#: SQLite's errors about one statement and what is in it; its other errors are the file's.
_OF_A_JOB: Final = (
    *(sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.NotSupportedError),
    sqlite3.ProgrammingError,
)
_ANSWERS: Final = (
    "CREATE TABLE IF NOT EXISTS answers "
    "(key TEXT PRIMARY KEY, body BLOB NOT NULL, created_ms INTEGER NOT NULL) WITHOUT ROWID"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """The question that every list answers: at most `limit`, after an id, with a text in id or name, counted or not."""

    limit: int
    starting_after: str | None = None
    search: str = ""
    with_total: bool = True


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """One page of a list: records newest first, whether more follow, how many match in all (None if not asked)."""

    items: list[R]
    has_more: bool
    total_count: int | None


@dataclass(frozen=True, slots=True)
class Table(Generic[R]):
    """A kind of thing, its rows read as `kind`.

    `noun` is for messages; `prefix` opens its ids; `indexed` are the keys that lists filter by. `tallied` are those
    that `tally` reads, from an index that holds all of them: it opens no documents, which may carry the output of
    scorers (5,000 runs in 9 ms instead of 170).
    """

    kind: type[R]
    name: str
    noun: str
    prefix: str
    indexed: tuple[str, ...] = ()
    tallied: tuple[str, ...] = ()

    def create(self, db: sqlite3.Connection) -> None:
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {self.name} "
            "(seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, doc TEXT NOT NULL)"
        )
        for key in self.indexed:
            db.execute(
                f"CREATE INDEX IF NOT EXISTS {self.name}_{key} ON {self.name} (json_extract(doc, '$.{key}'), seq)"
            )

        if self.tallied:
            db.execute(f"CREATE INDEX IF NOT EXISTS {self._tally} ON {self.name} ({', '.join(self._tallied)}, id)")

    @property
    def _tally(self) -> str:
        return f"{self.name}_tally"

    @property
    def _tallied(self) -> list[str]:
        return [f"json_extract(doc, '$.{key}')" for key in self.tallied]

    def tally(self, db: sqlite3.Connection, value: str) -> sqlite3.Cursor:
        """Select id and the `tallied` keys but the first, of the rows whose first one is `value`."""
        first, *others = self._tallied
        query = f"SELECT id, {', '.join(others)} FROM {self.name} INDEXED BY {self._tally} WHERE {first} = ?"
        return db.execute(query, (value,))

    def new_id(self) -> str:
        return f"{self.prefix}_{secrets.token_hex(10)}"

    def _read(self, text: str) -> R:
        return msgspec.json.decode(text, type=self.kind)

    def insert(self, db: sqlite3.Connection, record: R) -> None:
        text = msgspec.json.encode(record).decode()
        db.execute(f"INSERT INTO {self.name} (id, doc) VALUES (json_extract(?1, '$.id'), ?1)", (text,))

    def find(self, db: sqlite3.Connection, identity: str) -> R | None:
        row = db.execute(f"SELECT doc FROM {self.name} WHERE id = ?", (identity,)).fetchone()
        return self._read(row[0]) if row else None

    def get(self, db: sqlite3.Connection, identity: str) -> R:
        """Return one record. Raises NotFound."""
        record = self.find(db, identity)
        if record is None:
            raise NotFound(f"There is no {self.noun} with id {identity!r}.")
        return record

    def put(self, db: sqlite3.Connection, record: R) -> None:
        """Replace a record that exists."""
        text = msgspec.json.encode(record).decode()
        db.execute(f"UPDATE {self.name} SET doc = ?1 WHERE id = json_extract(?1, '$.id')", (text,))

    def delete(self, db: sqlite3.Connection, identity: str) -> None:
        db.execute(f"DELETE FROM {self.name} WHERE id = ?", (identity,))

    def update(self, db: sqlite3.Connection, identity: str, changes: Mapping[str, Any]) -> R:
        """Replace some fields of a record, and return it. Raises NotFound."""
        before: Any = self.get(db, identity)
        after: Any = {**before, **changes} if isinstance(before, dict) else msgspec.structs.replace(before, **changes)
        record: R = after
        self.put(db, record)
        return record

    def select(self, db: sqlite3.Connection, filters: Filters) -> list[R]:
        """Return all records that match, oldest first."""
        where, values = _conditions(filters, "")
        return [self._read(row[0]) for row in db.execute(f"SELECT doc FROM {self.name} {where} ORDER BY seq", values)]

    def count(self, db: sqlite3.Connection, filters: Filters, search: str = "") -> int:
        """Count the records that match."""
        where, values = _conditions(filters, search)
        count: int = db.execute(f"SELECT count(*) FROM {self.name} {where}", values).fetchone()[0]
        return count

    def page(self, db: sqlite3.Connection, filters: Filters, query: ListQuery) -> Page[R]:
        """Return records that match, newest first; fewer than asked for where they are large, and more follow.

        Raises NotFound when `starting_after` names nothing here.
        """
        where, values = _conditions(filters, query.search)
        total = self.count(db, filters, query.search) if query.with_total else None
        if query.starting_after:
            row = db.execute(f"SELECT seq FROM {self.name} WHERE id = ?", (query.starting_after,)).fetchone()
            if row is None:
                raise NotFound(f"starting_after: there is no {self.noun} with id {query.starting_after!r}.")
            where, values = f"{where or 'WHERE 1'} AND seq < ?", [*values, row[0]]
        rows = db.execute(f"SELECT doc FROM {self.name} {where} ORDER BY seq DESC LIMIT ?", [*values, query.limit + 1])
        items: list[R] = []
        room = MAX_PAGE
        for (text,) in rows:
            if len(items) == query.limit or room <= 0:
                return Page(items, has_more=True, total_count=total)
            items.append(self._read(text))
            room -= len(text)
        return Page(items, has_more=False, total_count=total)


def _conditions(filters: Filters, search: str) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    for key, wanted in filters.items():
        if wanted is None:
            continue
        options = [wanted] if isinstance(wanted, str) else list(wanted)
        parts.append(f"json_extract(doc, '$.{key}') IN ({', '.join('?' * len(options))})")
        values += options
    if search:
        parts.append("(instr(id, ?) OR instr(lower(coalesce(json_extract(doc, '$.name'), '')), lower(?)))")
        values += [search, search]
    return ("WHERE " + " AND ".join(parts)) if parts else "", values


BENCHMARKS: Final = Table(Document, "benchmarks", "benchmark", "bmd", ("name",))
SCENARIOS: Final = Table(Document, "scenarios", "scenario", "scn", ("name",))
SCORERS: Final = Table(Document, "scorers", "scorer", "scs", ("type",))
BENCHMARK_RUNS: Final = Table(
    records.BenchmarkRunRecord, "benchmark_runs", "benchmark run", "bmr", ("benchmark_id", "name", "state")
)
SCENARIO_RUNS: Final = Table(
    *(records.ScenarioRunRecord, "scenario_runs", "scenario run", "scr"),
    indexed=("benchmark_run_id", "scenario_id", "devbox_id", "state"),
    tallied=("benchmark_run_id", "scenario_id", "state", "scoring_contract_result.score"),
)
DEVBOXES: Final = Table(records.DevboxRecord, "devboxes", "devbox", "dbx", ("status",))
EXECUTIONS: Final = Table(records.ExecutionRecord, "executions", "execution", "exec", ("devbox_id",))
NETWORK_POLICIES: Final = Table(records.NetworkPolicyRecord, "network_policies", "network policy", "npo", ("name",))
BLUEPRINTS: Final = Table(records.BlueprintRecord, "blueprints", "blueprint", "bpt", ("name", "status", "state"))
OBJECTS: Final = Table(records.ObjectRecord, "objects", "object", "obj", ("state",))
SNAPSHOTS: Final = Table(
    *(records.SnapshotRecord, "snapshots", "disk snapshot", "snp"),
    indexed=("source_devbox_id", "source_blueprint_id", "_status"),
)
TABLES: Final[tuple[Table[Any], ...]] = (
    *(BENCHMARKS, SCENARIOS, SCORERS, BENCHMARK_RUNS, SCENARIO_RUNS, DEVBOXES, EXECUTIONS),
    *(NETWORK_POLICIES, BLUEPRINTS, OBJECTS, SNAPSHOTS),
)


def now_ms() -> int:
    """Return wall-clock milliseconds since 1970, as the wire wants them."""
    return time.time_ns() // 1_000_000


def answered(db: sqlite3.Connection, key: str | None, kind: type[T]) -> T | None:
    """Return the answer to an earlier request with this idempotency key, None if there was none."""
    row = db.execute("SELECT body FROM answers WHERE key = ?", (key,)).fetchone() if key else None
    return msgspec.json.decode(row[0], type=kind) if row else None


async def insist(attempt: Callable[[], Awaitable[T]], *, is_over: Callable[[], bool] = lambda: False) -> T:
    """Repeat `attempt` until the disk allows it, and return its result: for what must be recorded.

    Raises Unwritable once `is_over` says that there is no time left.
    """
    while True:
        try:
            return await attempt()
        except Unwritable:
            if is_over():
                raise
            await anyio.sleep(RETRY_S)


@dataclass(slots=True)
class _Job:
    work: Callable[[sqlite3.Connection], Any]
    loop: AbstractEventLoop
    done: "Future[Any]"

    def succeed(self, result: Any) -> None:
        self._settle(self.done.set_result, result)

    def fail(self, error: BaseException) -> None:
        """Raise an error where the job is waited for; one that means something to event loops as one of ours."""
        if not isinstance(error, Exception) or isinstance(error, StopIteration):
            error = InternalError(f"A change of the service's state ended in {error!r}.")
        self._settle(self.done.set_exception, error)

    def _settle(self, settle: Callable[[Any], None], value: Any) -> None:
        with suppress(RuntimeError):  # the loop is gone, and with it the task that waited
            self.loop.call_soon_threadsafe(lambda: None if self.done.done() else settle(value))


class _Worker:
    """A thread with a connection of its own, on which it does the jobs it is given, until `end`."""

    def __init__(self, path: Path, begin: Literal["BEGIN", "BEGIN IMMEDIATE"], connect: Callable[[], Any]) -> None:
        self._path = path
        self._begin = begin
        self._is_reader = begin == "BEGIN"
        self._connect = connect
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        #: Batches in a row that could not be done.
        self._refused = 0
        #: The thread takes no more jobs.
        self._is_over = False
        self._thread = threading.Thread(target=self._serve, name=f"store {begin.lower()}", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in a transaction; return its result once committed. Raises what `work` raises, and Unwritable."""
        loop = get_running_loop()
        job = _Job(work, loop, loop.create_future())
        self._jobs.put(job)
        if self._is_over:
            self._turn_away([])
        result: T = await job.done
        return result

    async def end(self) -> None:
        """Do what is in the queue, close the connection, and end."""
        self._jobs.put(None)
        await anyio.to_thread.run_sync(self._thread.join, _CLOSE_TIMEOUT_S)

    def _serve(self) -> None:
        db: sqlite3.Connection | None = None
        taken: list[_Job] = []
        try:
            while self._take(taken):
                db = self._attend(db, taken)
                taken.clear()
        finally:
            self._is_over = True
            self._turn_away(taken)
            if db is not None:
                db.close()

    def _take(self, jobs: list[_Job]) -> bool:
        """Wait for work and add all there is to `jobs`; False at the end."""
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return True
        if jobs:
            self._jobs.put(None)
        return bool(jobs)

    def _turn_away(self, jobs: list[_Job]) -> None:
        """Fail the `jobs` that the thread had, and those that came since: the thread has ended."""
        with suppress(queue.Empty):
            while True:
                if job := self._jobs.get_nowait():
                    jobs.append(job)
        for job in jobs:
            job.fail(Unwritable(f"The service keeps its state in {self._path} no longer: it is ending, or broken."))

    def _attend(self, db: sqlite3.Connection | None, jobs: list[_Job]) -> sqlite3.Connection | None:
        """Do the jobs and settle them; return the connection to use next, None for a new one."""
        log = structlog.get_logger()
        events = ("unreadable", "readable_again") if self._is_reader else ("unwritable", "writable_again")
        troubled, mended = (f"store.{event}" for event in events)
        try:
            db = db or self._connect()
            before = db.total_changes
            settled = _run_batch(db, self._begin, jobs)
        except BaseException as error:
            self._refused += 1
            if self._refused == 1:  # a log on a full disk needs no line for every request
                is_ours = not isinstance(error, OSError | sqlite3.Error)
                log.warning(troubled, path=str(self._path), error=_words(error), exc_info=is_ours)
            verb = "read" if self._is_reader else "write"
            for job in jobs:
                job.fail(Unwritable(f"The service cannot {verb} its state in {self._path}: {_words(error)}"))
            if db is None or (isinstance(error, sqlite3.OperationalError) and not db.in_transaction):
                return db  # a full disk breaks no connection
            with suppress(sqlite3.Error):
                db.close()
            return None

        for job, settle in zip(jobs, settled, strict=True):
            try:
                settle()
            except Exception as error:
                log.exception("store.answer_lost", path=str(self._path))
                job.fail(InternalError(f"The service kept a change and could not say so: {_words(error)}"))
        if self._refused and (self._is_reader or db.total_changes > before):
            log.warning(mended, path=str(self._path), refused=self._refused)
            self._refused = 0
        return db


class Store:
    """Use `async with Store.open(path) as store`."""

    def __init__(self, path: Path, lock: LockKind = "file") -> None:
        self._writer = self._reader = _Worker(path, "BEGIN IMMEDIATE", lambda: _connect(path, lock))

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, lock: LockKind = "file") -> AsyncIterator["Store"]:
        """Open or create the file. Raises Unwritable, and UsageError if it was written by a newer version."""
        store = cls(path, lock)
        try:
            if await store.write(_create) == "wal" and lock == "file":
                store._reader = _Worker(path, "BEGIN", lambda: _connect_reader(path))
            yield store
        finally:
            with anyio.CancelScope(shield=True):  # the writer last, so that it leaves one whole file
                for worker in dict.fromkeys((store._reader, store._writer)):
                    await worker.end()

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run `change` in a transaction; return its result once it is durable.

        An exception of `change` undoes it and is raised here. Raises Unwritable when the disk refuses.
        Cancelling the caller does not undo the change.
        """
        return await self._writer.run(change)

    async def once(self, key: str | None, kind: type[T], change: Callable[[sqlite3.Connection], T]) -> tuple[T, bool]:
        """Make a change unless this idempotency key made it before; return its answer, and whether that is new.

        The answer, of type `kind`, is kept in the transaction of the change. Transactions run one after the other, so
        a duplicate that arrives while the first is in flight finds its answer too. Raises as `write`.
        """

        def attempt(db: sqlite3.Connection) -> tuple[T, bool]:
            before = answered(db, key, kind)
            if before is not None:
                return before, False
            answer = change(db)
            if key:
                row = (key, msgspec.json.encode(answer), now_ms())
                db.execute("INSERT INTO answers (key, body, created_ms) VALUES (?, ?, ?)", row)
            return answer, True

        return await self.write(attempt)

    async def read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """Run `look`, which changes nothing, in a transaction that sees every change whose `write` has returned.

        Raises what `look` raises, and Unwritable when the disk refuses.
        """
        return await self._reader.run(look)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _connect(path: Path, lock: LockKind) -> sqlite3.Connection:
    """Open the file, for its owner only: run profiles hold keys. SQLite gives its other files the same mode.

    Where there are no locks SQLite takes none, and shares no memory with others: the holder of the folder is alone.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as file:
        os.fchmod(file.fileno(), 0o600)
    unlocked = "?nolock=1" if lock == "none" else ""
    db = sqlite3.connect(f"{path.absolute().as_uri()}{unlocked}", isolation_level=None, uri=True)
    try:
        if lock == "none":
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db


def _connect_reader(path: Path) -> sqlite3.Connection:
    """Open the file to read only.

    Not with `mode=ro`: such a connection cannot open a WAL that nobody else has open, as after the writer's broke.
    """
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", isolation_level=None, uri=True)
    db.execute("PRAGMA query_only = ON")
    return db


def _create(db: sqlite3.Connection) -> str:
    """Make what the file lacks; return its journal mode, `wal` unless the file system cannot."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise UsageError(
            f"The service's state has schema {version}, newer than this version's {SCHEMA_VERSION}: "
            "install a newer sweep, or name another --state folder."
        )
    for table in TABLES:
        table.create(db)
    db.execute(_ANSWERS)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    mode: str = db.execute("PRAGMA journal_mode").fetchone()[0]
    return mode


def _run_batch(db: sqlite3.Connection, begin: str, jobs: list[_Job]) -> list[Callable[[], None]]:
    """Run the jobs in one transaction, each in a savepoint; return what settles each of them, after the commit."""
    db.execute(begin)
    try:
        settled = [_run_one(db, job) for job in jobs]
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return settled


def _run_one(db: sqlite3.Connection, job: _Job) -> Callable[[], None]:
    """Run one job; return what settles it. Raises a failure of the disk, or a lack of memory: all jobs share it."""
    db.execute("SAVEPOINT one")
    try:
        result = job.work(db)
    except BaseException as error:
        if isinstance(error, MemoryError | OSError | sqlite3.Error) and not isinstance(error, _OF_A_JOB):
            raise
        db.execute("ROLLBACK TO one")
        db.execute("RELEASE one")
        return partial(job.fail, error)
    db.execute("RELEASE one")
    return partial(job.succeed, result)
