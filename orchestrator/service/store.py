"""The service's memory: one SQLite file, one thread that touches it.

Every change is a function of the connection, run on that thread inside a transaction; changes that queue up while one
is committed share the next commit, each in a savepoint of its own. A change is durable when `write` returns. Things
are kept as JSON documents, newest first by `seq`, because the wire shows them whole; what lists filter by is indexed.

Whatever goes wrong on that thread, those who wait for it are told, and the next batch is tried: a full disk is full
for a while, a service that hangs is lost. A failure that is not one job's own is the disk's as far as callers know.

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
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import orjson
import structlog

from orchestrator.common.locks import Kind
from orchestrator.core.errors import InternalError, UsageError
from orchestrator.service.errors import NotFound, Unwritable

Document = dict[str, Any]
Filters = Mapping[str, str | Sequence[str] | None]
"""Wanted values by key, a sequence meaning any of them; a key whose value is None does not filter."""
T = TypeVar("T")

SCHEMA_VERSION = 1
#: Characters of the documents on one page, but for the last of them.
MAX_PAGE: Final = 32 << 20
#: Seconds after which somebody tries again who will not take a full disk for an answer.
RETRY: Final = 1.0
#: What SQLite says of one statement and what is in it; its other errors are the file's.
_OF_A_JOB: Final = (
    *(sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.NotSupportedError),
    sqlite3.ProgrammingError,
)
_ANSWERS = (
    "CREATE TABLE IF NOT EXISTS answers "
    "(key TEXT PRIMARY KEY, body BLOB NOT NULL, created_ms INTEGER NOT NULL) WITHOUT ROWID"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What every list can be asked: how many, behind which id, with which text in id or name, and counted or not."""

    limit: int
    starting_after: str | None = None
    search: str = ""
    with_total: bool = True


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: documents newest first, whether more follow, how many match in all (None if not asked)."""

    items: list[Document]
    has_more: bool
    total_count: int | None


@dataclass(frozen=True, slots=True)
class Table:
    """A kind of thing. `noun` is for messages; `prefix` opens its ids; `indexed` are the keys that lists filter by."""

    name: str
    noun: str
    prefix: str
    indexed: tuple[str, ...] = ()

    def create(self, db: sqlite3.Connection) -> None:
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {self.name} "
            "(seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, doc TEXT NOT NULL)"
        )
        for key in self.indexed:
            db.execute(
                f"CREATE INDEX IF NOT EXISTS {self.name}_{key} ON {self.name} (json_extract(doc, '$.{key}'), seq)"
            )

    def new_id(self) -> str:
        return f"{self.prefix}_{secrets.token_hex(10)}"

    def insert(self, db: sqlite3.Connection, doc: Document) -> None:
        db.execute(f"INSERT INTO {self.name} (id, doc) VALUES (?, ?)", (doc["id"], orjson.dumps(doc).decode()))

    def find(self, db: sqlite3.Connection, identity: str) -> Document | None:
        row = db.execute(f"SELECT doc FROM {self.name} WHERE id = ?", (identity,)).fetchone()
        return orjson.loads(row[0]) if row else None

    def get(self, db: sqlite3.Connection, identity: str) -> Document:
        """Return one document. Raises NotFound."""
        doc = self.find(db, identity)
        if doc is None:
            raise NotFound(f"There is no {self.noun} with id {identity!r}.")
        return doc

    def put(self, db: sqlite3.Connection, doc: Document) -> None:
        """Replace a document that exists."""
        db.execute(f"UPDATE {self.name} SET doc = ? WHERE id = ?", (orjson.dumps(doc).decode(), doc["id"]))

    def delete(self, db: sqlite3.Connection, identity: str) -> None:
        db.execute(f"DELETE FROM {self.name} WHERE id = ?", (identity,))

    def update(self, db: sqlite3.Connection, identity: str, changes: Mapping[str, Any]) -> Document:
        """Replace some keys of a document; returns it as it is then. Raises NotFound."""
        doc = {**self.get(db, identity), **changes}
        self.put(db, doc)
        return doc

    def select(self, db: sqlite3.Connection, filters: Filters) -> list[Document]:
        """All documents that match, oldest first."""
        where, values = _conditions(filters, "")
        return [orjson.loads(row[0]) for row in db.execute(f"SELECT doc FROM {self.name} {where} ORDER BY seq", values)]

    def count(self, db: sqlite3.Connection, filters: Filters, search: str = "") -> int:
        """How many documents match."""
        where, values = _conditions(filters, search)
        count: int = db.execute(f"SELECT count(*) FROM {self.name} {where}", values).fetchone()[0]
        return count

    def page(self, db: sqlite3.Connection, filters: Filters, query: ListQuery) -> Page:
        """Documents that match, newest first; fewer than asked for where they are large, and more follow.

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
        items: list[Document] = []
        room = MAX_PAGE
        for (text,) in rows:
            if len(items) == query.limit or room <= 0:
                return Page(items, has_more=True, total_count=total)
            items.append(orjson.loads(text))
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


BENCHMARKS: Final = Table("benchmarks", "benchmark", "bmd", ("name",))
SCENARIOS: Final = Table("scenarios", "scenario", "scn", ("name",))
SCORERS: Final = Table("scorers", "scorer", "scs", ("type",))
BENCHMARK_RUNS: Final = Table("benchmark_runs", "benchmark run", "bmr", ("benchmark_id", "name", "state"))
SCENARIO_RUNS: Final = Table(
    "scenario_runs", "scenario run", "scr", ("benchmark_run_id", "scenario_id", "devbox_id", "state")
)
DEVBOXES: Final = Table("devboxes", "devbox", "dbx", ("status",))
EXECUTIONS: Final = Table("executions", "execution", "exec", ("devbox_id",))
NETWORK_POLICIES: Final = Table("network_policies", "network policy", "npo", ("name",))
TABLES: Final = (
    *(BENCHMARKS, SCENARIOS, SCORERS, BENCHMARK_RUNS, SCENARIO_RUNS, DEVBOXES, EXECUTIONS),
    NETWORK_POLICIES,
)


def now_ms() -> int:
    """Wall-clock milliseconds since 1970, as the wire wants them."""
    return time.time_ns() // 1_000_000


def answered(db: sqlite3.Connection, key: str | None) -> Document | None:
    """What was answered to the request with this idempotency key, if it was asked before."""
    row = db.execute("SELECT body FROM answers WHERE key = ?", (key,)).fetchone() if key else None
    return orjson.loads(row[0]) if row else None


def remember(db: sqlite3.Connection, key: str | None, body: Document) -> None:
    """Keep the answer to a keyed request, in the transaction that has its effect."""
    if key:
        db.execute("INSERT INTO answers (key, body, created_ms) VALUES (?, ?, ?)", (key, orjson.dumps(body), now_ms()))


def once(db: sqlite3.Connection, key: str | None, effect: Callable[[], Document]) -> tuple[Document, bool]:
    """Have `effect` unless this key had it before: the answer, and whether it is new.

    Transactions run one after the other, so a duplicate that arrives while the first is in flight finds its answer too.
    """
    before = answered(db, key)
    if before is not None:
        return before, False
    body = effect()
    remember(db, key, body)
    return body, True


async def insist(attempt: Callable[[], Awaitable[T]]) -> T:
    """What `attempt` returns, made until the disk allows it: what must be recorded is not to be lost to a full one."""
    while True:
        try:
            return await attempt()
        except Unwritable:
            await anyio.sleep(RETRY)


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
        with suppress(RuntimeError):  # the loop is gone, and with it whoever waited
            self.loop.call_soon_threadsafe(lambda: None if self.done.done() else settle(value))


class Store:
    """Use `async with Store.open(path) as store`."""

    def __init__(self, path: Path, lock: Kind = "file") -> None:
        self._path = path
        self._lock = lock
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        #: Batches in a row that could not be kept.
        self._refused = 0
        #: Nobody takes jobs any more.
        self._is_over = False

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, lock: Kind = "file") -> AsyncIterator["Store"]:
        """Open or create the file. Raises Unwritable, and UsageError if it was written by a newer version."""
        store = cls(path, lock)
        store._thread.start()
        try:
            await store.write(_create)
            yield store
        finally:
            store._jobs.put(None)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(store._thread.join, 10.0)

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run `change` in a transaction; what it returns is returned once it is durable.

        An exception of `change` undoes it and is raised here. Raises Unwritable when the disk refuses.
        Cancelling the caller does not undo the change.
        """
        loop = get_running_loop()
        job = _Job(change, loop, loop.create_future())
        self._jobs.put(job)
        if self._is_over:
            self._turn_away([])
        result: T = await job.done
        return result

    read = write

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
        """Nobody waits for a thread that is no more: those of whom it knew, and those who came since, are told."""
        with suppress(queue.Empty):
            while True:
                if job := self._jobs.get_nowait():
                    jobs.append(job)
        for job in jobs:
            job.fail(Unwritable(f"The service keeps its state in {self._path} no longer: it is ending, or broken."))

    def _attend(self, db: sqlite3.Connection | None, jobs: list[_Job]) -> sqlite3.Connection | None:
        """Have the jobs done and their callers told; the connection to go on with, None for a new one."""
        try:
            db = db or _connect(self._path, self._lock)
            before = db.total_changes
            settled = _run_batch(db, jobs)
        except BaseException as error:  # noqa: BLE001 - nothing may end this thread
            self._note_refusal(error)
            for job in jobs:
                job.fail(Unwritable(f"The service cannot write its state in {self._path}: {_words(error)}"))
            return _usable(db, error)
        for job, settle in zip(jobs, settled, strict=True):
            try:
                settle()
            except Exception as error:  # noqa: BLE001 - it was kept, and its caller is not to hang
                structlog.get_logger().exception("store.answer_lost", path=str(self._path))
                job.fail(InternalError(f"The service kept a change and could not say so: {_words(error)}"))
        if db.total_changes > before:
            self._note_success()
        return db

    def _note_refusal(self, error: BaseException) -> None:
        """Say it once: a log on a full disk needs no line for every request."""
        self._refused += 1
        if self._refused == 1:
            is_ours = not isinstance(error, OSError | sqlite3.Error)
            log = structlog.get_logger()
            log.warning("store.unwritable", path=str(self._path), error=_words(error), exc_info=is_ours)

    def _note_success(self) -> None:
        if self._refused:
            structlog.get_logger().warning("store.writable_again", path=str(self._path), refused=self._refused)
            self._refused = 0


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _usable(db: sqlite3.Connection | None, error: BaseException) -> sqlite3.Connection | None:
    """The connection after a failure, unless it may be the connection that is broken: a full disk is none of that."""
    if db is None or (isinstance(error, sqlite3.OperationalError) and not db.in_transaction):
        return db
    with suppress(sqlite3.Error):
        db.close()
    return None


def _connect(path: Path, lock: Kind) -> sqlite3.Connection:
    """Open the file, for its owner only: run profiles hold keys. SQLite gives its other files the same mode.

    Where there are no locks SQLite takes none, and shares no memory with others: whoever holds the folder is alone.
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


def _create(db: sqlite3.Connection) -> None:
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


def _run_batch(db: sqlite3.Connection, jobs: list[_Job]) -> list[Callable[[], None]]:
    """Run the jobs in one transaction, each in a savepoint; returns how to tell their callers, after the commit."""
    db.execute("BEGIN IMMEDIATE")
    try:
        settled = [_run_one(db, job) for job in jobs]
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return settled


def _run_one(db: sqlite3.Connection, job: _Job) -> Callable[[], None]:
    """Raises what is not the job's own failure: what the disk, or a lack of memory, does to all of them."""
    db.execute("SAVEPOINT one")
    try:
        result = job.work(db)
    except BaseException as error:
        if isinstance(error, MemoryError | OSError | sqlite3.Error) and not isinstance(error, _OF_A_JOB):
            raise
        db.execute("ROLLBACK TO one")
        db.execute("RELEASE one")
        failure = error
        return lambda: job.fail(failure)
    db.execute("RELEASE one")
    return lambda: job.succeed(result)
