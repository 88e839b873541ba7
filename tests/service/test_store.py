"""The store's thread: nothing ends it, and every caller learns the result of its change."""

import json
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from orchestrator.core.errors import InternalError
from orchestrator.core.protocol import Isolation, LockKind
from orchestrator.service import store as module
from orchestrator.service.assembly import Service
from orchestrator.service.errors import NotFound, Unwritable
from orchestrator.service.records import ExecutionRecord, ExecutionStatus, view
from orchestrator.service.store import BENCHMARKS, DEVBOXES, EXECUTIONS, ListQuery, Store

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "service.sqlite") as opened:
        yield opened


def insert(db: sqlite3.Connection, identity: str, **fields: Any) -> str:
    BENCHMARKS.insert(db, {"id": identity, **fields})
    return identity


async def ids(store: Store) -> list[str]:
    return [doc["id"] for doc in await store.read(lambda db: BENCHMARKS.select(db, {}))]


def raising(error: BaseException) -> Callable[[sqlite3.Connection], None]:
    def change(db: sqlite3.Connection) -> None:
        insert(db, "undone")
        raise error

    return change


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NotFound("x"), NotFound),
        (ZeroDivisionError(), ZeroDivisionError),
        (sqlite3.IntegrityError("x"), sqlite3.IntegrityError),
        (StopIteration(), InternalError),
        (SystemExit(1), InternalError),
        (KeyboardInterrupt(), InternalError),
        (sqlite3.OperationalError("database or disk is full"), Unwritable),
        (sqlite3.DatabaseError("database disk image is malformed"), Unwritable),
        (MemoryError(), Unwritable),
        (OSError(5, "Input/output error"), Unwritable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.__name__,
)
async def test_a_failure_undoes_the_change_is_raised_and_ends_nothing(
    store: Store, error: BaseException, told: type[Exception]
) -> None:
    with anyio.fail_after(10):
        with pytest.raises(told):
            await store.write(raising(error))
        assert await store.write(partial(insert, identity="kept")) == "kept"
        assert await ids(store) == ["kept"]


async def test_a_failed_commit_fails_all_its_callers_and_keeps_nothing(store: Store) -> None:
    errors: list[Exception] = []
    begun, hold = threading.Event(), threading.Event()

    def block(_: sqlite3.Connection) -> None:
        begun.set()
        hold.wait(10)

    async def attempt(change: Callable[[sqlite3.Connection], Any]) -> None:
        try:
            await store.write(change)
        except Unwritable as error:
            errors.append(error)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(attempt, block)
            await anyio.to_thread.run_sync(begun.wait)
            for each in range(3):
                tasks.start_soon(attempt, partial(insert, identity=f"in-the-batch-{each}"))
            tasks.start_soon(attempt, raising(sqlite3.OperationalError("disk I/O error")))
            await anyio.wait_all_tasks_blocked()
            hold.set()
        assert len(errors) == 4
        assert all("disk I/O error" in str(error) for error in errors)
        assert await ids(store) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left"), MemoryError(), ValueError("embedded null byte")])
async def test_a_file_that_cannot_be_opened_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failures, connect = [error], module._connect

    def refuse(path: Path, lock: LockKind) -> sqlite3.Connection:
        if failures:
            raise failures.pop()
        return connect(path, lock)

    async with Store.open(tmp_path / "service.sqlite") as store:
        monkeypatch.setattr(module, "_connect", refuse)
        with anyio.fail_after(10):
            with pytest.raises(Unwritable):  # the file is taken for broken
                await store.write(raising(sqlite3.DatabaseError("file is not a database")))
            with pytest.raises(Unwritable):
                await store.write(partial(insert, identity="not kept"))
            await store.write(partial(insert, identity="kept"))
            assert await ids(store) == ["kept"]


async def test_an_answer_that_cannot_be_given_is_one_request_s_failure(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, is_broken = module._Job.succeed, [True]

    def fail_once(job: Any, result: Any) -> None:
        if is_broken:
            is_broken.clear()
            raise MemoryError
        settle(job, result)

    monkeypatch.setattr(module._Job, "succeed", fail_once)
    with anyio.fail_after(10):
        with pytest.raises(InternalError, match="kept a change and could not say so"):
            await store.write(partial(insert, identity="kept"))
        assert await ids(store) == ["kept"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("worker", ["_writer", "_reader"])
async def test_a_dead_store_thread_fails_its_callers(
    store: Store, monkeypatch: pytest.MonkeyPatch, worker: str
) -> None:
    """For a reason that nobody foresaw: those in its hands, those in the queue, and those who come later."""
    begun, hold, told = threading.Event(), threading.Event(), list[str]()

    def die(*_: Any) -> None:
        begun.set()
        hold.wait(10)
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(getattr(store, worker), "_attend", die)
    ask = store.write if worker == "_writer" else store.read

    async def attempt() -> None:
        with pytest.raises(Unwritable) as refusal:
            await ask(lambda db: BENCHMARKS.select(db, {}))
        told.append(str(refusal.value))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(attempt)
            await anyio.to_thread.run_sync(begun.wait)
            for _ in range(3):
                tasks.start_soon(attempt)
            await anyio.wait_all_tasks_blocked()
            hold.set()
        await attempt()
    assert len(told) == 5
    assert all("no longer" in words for words in told)


LISTS = ("devboxes", "scenarios", "scenarios/runs", "benchmarks", "benchmark_runs", "network-policies")


async def test_a_get_is_answered_while_a_writer_holds_the_write_lock(tmp_path: Path) -> None:
    """Nothing that is only read waits for the lock, or for the thread that holds it."""
    async with (
        Service.open(state=tmp_path, benchmarks=[], isolation=Isolation.NONE, token="a token of the tests") as service,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=service.app),
            base_url="http://service",
            headers={"authorization": "Bearer a token of the tests"},
        ) as http,
    ):
        created = await http.post("/v1/devboxes", json={"name": "before"})
        assert created.status_code == 200
        with closing(sqlite3.connect(tmp_path / "service.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with anyio.fail_after(3):  # SQLite waits 5 s for a lock
                answers = [await http.get(f"/v1/{path}") for path in LISTS]
                devbox = await http.get(f"/v1/devboxes/{created.json()['id']}")
                log = await http.get(f"/v1/devboxes/{created.json()['id']}/logs")
            other.execute("ROLLBACK")
    assert [answer.status_code for answer in answers] == [200] * len(LISTS)
    assert (devbox.json()["name"], log.status_code) == ("before", 200)


async def test_reading_goes_on_while_a_long_change_is_made_and_sees_nothing_of_it(store: Store) -> None:
    began, may_end = threading.Event(), threading.Event()

    def change(db: sqlite3.Connection) -> None:
        insert(db, "one")
        began.set()
        may_end.wait(30)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.write, change)
        try:
            await anyio.to_thread.run_sync(began.wait)
            with anyio.fail_after(3):
                assert await ids(store) == []
        finally:
            may_end.set()
    assert await ids(store) == ["one"]


async def test_a_read_after_an_answered_change_includes_it(store: Store) -> None:
    seen: list[bool] = []

    async def write_and_read(number: int) -> None:
        for round_ in range(20):
            identity = await store.write(partial(insert, identity=f"{number}-{round_}"))
            seen.append(await store.read(lambda db, one=identity: BENCHMARKS.find(db, one)) is not None)  # type: ignore[misc]

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(write_and_read, number)
    assert seen == [True] * 200


async def test_a_read_cannot_write(store: Store) -> None:
    with pytest.raises(Unwritable, match="cannot read"):
        await store.read(partial(insert, identity="one"))
    assert await ids(store) == []


async def test_without_locks_one_connection_reads_and_writes(tmp_path: Path) -> None:
    """There SQLite shares no memory: a second connection would not see what is in the first one's log."""
    async with Store.open(tmp_path / "service.sqlite", "none") as store:
        await store.write(partial(insert, identity="one"))
        assert await ids(store) == ["one"]
        assert store._reader is store._writer


async def test_rows_of_an_older_and_of_a_newer_version_open(store: Store) -> None:
    """An older one lacks what is not essential, a newer one has more; both can be changed."""
    row = {
        "id": "dbx_old",
        "status": "running",
        "capabilities": [],
        "create_time_ms": 1,
        "end_time_ms": None,
        "launch_parameters": {"keep_alive_time_seconds": 5},
        "metadata": {"sweep": "s"},
        "state_transitions": [{"status": "running", "transition_time_ms": 2, "of_tomorrow": 1}],
        "initiator_type": "api",
        "isolation": "process",
        "of_tomorrow": {"any": ["thing"]},
    }

    def change(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO devboxes (id, doc) VALUES ('dbx_old', ?)", (json.dumps(row),))
        DEVBOXES.update(db, "dbx_old", {"name": "renamed"})

    await store.write(change)
    devbox = await store.read(lambda db: DEVBOXES.get(db, "dbx_old"))
    shown = {name: value for name, value in row.items() if name != "of_tomorrow"}
    shown |= {
        "name": "renamed",
        "isolation": "none",
        "state_transitions": [{"status": "running", "transition_time_ms": 2}],
    }
    assert view(devbox) == shown


async def test_internal_fields_are_stored_and_never_shown(store: Store) -> None:
    execution = ExecutionRecord(
        id="exec_1", devbox_id="dbx_1", status=ExecutionStatus.COMPLETED, command="true", created_ms=1, note="n"
    )
    await store.write(partial(EXECUTIONS.insert, record=execution))
    (text,) = await store.read(lambda db: db.execute("SELECT doc FROM executions").fetchone())
    assert json.loads(text)["_command"] == "true"
    assert await store.read(partial(EXECUTIONS.get, identity="exec_1")) == execution
    assert view(execution) == {"id": "exec_1", "devbox_id": "dbx_1", "status": "completed"}


async def test_a_change_that_comes_after_the_end_is_refused_at_once(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "service.sqlite") as store:
        pass
    with anyio.fail_after(10), pytest.raises(Unwritable):
        await ids(store)


async def test_the_file_is_its_owners_alone_though_it_was_everybodys(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    path.touch(0o644)
    async with Store.open(path) as store:
        await store.write(partial(insert, identity="one"))
        files = [path, path.with_name("service.sqlite-wal"), path.with_name("service.sqlite-shm")]
        assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3


async def test_a_page_of_large_documents_has_fewer_of_them_and_the_next_follows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PAGE", 250)
    for number in range(7):
        await store.write(partial(insert, identity=f"dbx_{number}", padding="x" * 100))
    seen, pages, after, has_more = list[str](), 0, None, True
    while has_more:
        query = ListQuery(limit=5000, starting_after=after)
        page = await store.read(lambda db, query=query: BENCHMARKS.page(db, {}, query))  # type: ignore[misc]
        seen += [doc["id"] for doc in page.items]
        pages, after, has_more = pages + 1, seen[-1], page.has_more
        assert page.total_count == 7
    assert seen == [f"dbx_{number}" for number in reversed(range(7))]
    assert pages == 4
