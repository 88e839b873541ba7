"""The commands of clients: each has a row in the store, two files of output, and a task while it runs.

The row and the answer to an idempotency key are committed together, and only then the process starts; so a repeated
request finds the execution of the first, whatever became of the reply. A devbox that ends completes the rows of its
executions in its own transaction. Nothing is kept of an execution in memory once it has completed.
"""

import shutil
import sqlite3
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import structlog

from orchestrator.core.errors import SweepError
from orchestrator.service.devboxes.changes import Changes
from orchestrator.service.devboxes.execution import KILLED, Ending, Execution
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.logs import collect
from orchestrator.service.devboxes.rows import not_running
from orchestrator.service.devboxes.shells import Turns, program
from orchestrator.service.devboxes.spool import (
    MAX_TAIL,
    PIECE,
    STREAMS,
    Spool,
    Tail,
    read_piece,
    read_tail,
    spool_path,
    whole_characters,
)
from orchestrator.service.devboxes.states import Status
from orchestrator.service.errors import BadRequest, NotFound, WaitExpired
from orchestrator.service.store import DEVBOXES, EXECUTIONS, Document, Store, answered, insist, now_ms, once

DEFAULT_LINES: Final = 100
COMPLETED: Final = "completed"
KILL_TIMEOUT: Final = 20.0
#: Seconds in which an execution must be recorded that the end of the service cuts off.
LAST_WRITE: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest:
    """A command as a client asks for it."""

    command: str
    shell_name: str | None = None
    attach_stdin: bool = False
    command_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of output as text, and the offset in bytes at which the stream goes on behind it."""

    output: str
    offset: int


class Executions:
    """All executions of the service; make it before the fleet is entered. Its tasks are the fleet's."""

    def __init__(self, store: Store, fleet: Fleet, state: Path) -> None:
        self._store = store
        self._fleet = fleet
        self._output = state / "output"
        self._changes = Changes()
        self._turns = Turns()
        self._live: dict[str, Execution] = {}
        fleet.on_end.append(_complete_all)

    async def start(self, devbox_id: str, request: CommandRequest, key: str | None) -> str:
        """Start a command, once for each idempotency key or command id; returns the id of the execution.

        Raises NotFound, and BadRequest if the devbox does not run.
        """
        if "\0" in request.command:
            raise BadRequest("command: contains a NUL character, which no command can.")
        if request.command_id is not None:
            key = _command_key(devbox_id, request.command_id)

        def change(db: sqlite3.Connection) -> tuple[Document, bool]:
            return once(db, key, lambda: _insert(db, devbox_id, request))

        with anyio.CancelScope(shield=True):  # an execution that is in the store must be started
            answer, is_new = await self._store.write(change)
            if is_new:
                self._begin(devbox_id, answer["id"], request)
        identity: str = answer["id"]
        return identity

    def _begin(self, devbox_id: str, identity: str, request: CommandRequest) -> None:
        spools = {
            stream: Spool(
                spool_path(self._output, devbox_id, identity, stream),
                on_change=partial(self._changes.announce, (identity, stream)),
            )
            for stream in STREAMS
        }
        execution = Execution(identity, spools=spools, has_stdin=request.attach_stdin)
        self._fleet.start_soon(self._run, execution, devbox_id, request)
        self._live[identity] = execution

    async def _run(self, execution: Execution, devbox_id: str, request: CommandRequest) -> None:
        try:
            ending = await self._perform(execution, devbox_id, request)
            await self._record_end(execution, ending)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(LAST_WRITE, shield=True):
                await self._record_end(execution, Ending(status=KILLED, note="The service stopped."))
            raise
        finally:
            del self._live[execution.id]
            execution.done.set()
            for what in ("status", *STREAMS):
                self._changes.announce((execution.id, what))

    async def _perform(self, execution: Execution, devbox_id: str, request: CommandRequest) -> Ending:
        async with AsyncExitStack() as stack:
            with execution.turn:
                await stack.enter_async_context(self._turns.turn(devbox_id, request.shell_name))
            try:
                box = stack.enter_context(self._fleet.using(devbox_id))
                command = await program(
                    box,
                    request.command,
                    execution_id=execution.id,
                    shell_name=request.shell_name,
                    stdin=request.attach_stdin,
                )
                if request.shell_name is not None:
                    await self._record_running(execution)
                return await execution.run(box, replace(command, cwd=self._fleet.working_directory(devbox_id)))
            except SweepError as error:
                return Ending(status=KILLED, note=f"It could not be started: {error.message}")
            except Exception as error:  # noqa: BLE001 - one command's trouble is not the service's
                await execution.kill()
                structlog.get_logger().exception("execution.crashed", devbox=devbox_id, execution=execution.id)
                return Ending(status=KILLED, note=f"It could not be run: {error!r}")

    async def _record_running(self, execution: Execution) -> None:
        def change(db: sqlite3.Connection) -> None:
            doc = EXECUTIONS.get(db, execution.id)
            if doc["status"] == "queued":
                EXECUTIONS.put(db, doc | {"status": "running"})

        await insist(partial(self._store.write, change))
        self._changes.announce((execution.id, "status"))

    async def _record_end(self, execution: Execution, ending: Ending) -> None:
        """Until it is written, for a full disk must not make a command look as if it still ran."""
        cut = {f"_{stream}_cut": True for stream, spool in execution.spools.items() if spool.is_cut}

        def change(db: sqlite3.Connection) -> None:
            doc = EXECUTIONS.get(db, execution.id)
            if doc["status"] != COMPLETED:
                doc = _completed(doc, ending)
            EXECUTIONS.put(db, doc | cut)

        await insist(partial(self._store.write, change))

    async def view(self, devbox_id: str, identity: str, *, lines: int = DEFAULT_LINES) -> Document:
        """An execution as the wire shows it, with the last lines of its output so far. Raises NotFound."""
        return await self._shown(await self._find(devbox_id, identity), lines)

    async def _find(self, devbox_id: str, identity: str) -> Document:
        return await self._store.read(partial(_find, devbox_id=devbox_id, identity=identity))

    async def _shown(self, doc: Document, lines: int | None, limit: int = MAX_TAIL) -> Document:
        shown: Document = {
            name: doc[name] for name in ("devbox_id", "status", "exit_status", "shell_name") if name in doc
        }
        shown["execution_id"] = doc["id"]
        for stream, tail in (await anyio.to_thread.run_sync(self._tails, doc, lines, limit)).items():
            shown[stream] = tail.text
            shown[f"{stream}_truncated"] = tail.is_truncated or f"_{stream}_cut" in doc
        return shown

    def _tails(self, doc: Document, lines: int | None, limit: int) -> dict[str, Tail]:
        paths = {stream: spool_path(self._output, doc["devbox_id"], doc["id"], stream) for stream in STREAMS}
        return {stream: read_tail(path, lines=lines, limit=limit) for stream, path in paths.items()}

    async def wait(
        self,
        devbox_id: str,
        identity: str,
        *,
        timeout: float,
        statuses: Collection[str] = (COMPLETED,),
        lines: int | None = DEFAULT_LINES,
        limit: int = MAX_TAIL,
    ) -> Document:
        """Wait, at most `timeout` seconds, for one of the statuses. Raises WaitExpired, and NotFound."""
        doc = await self._find(devbox_id, identity)
        key = (doc["id"], "status")
        with anyio.move_on_after(timeout):
            event = self._changes.next(key)
            while not self._is_in(doc, statuses):
                await event.wait()
                event = self._changes.next(key)
                doc = await self._find(devbox_id, identity)
        if doc["status"] in statuses:
            return await self._shown(doc, lines, limit)
        wanted = ", ".join(sorted(statuses))
        raise WaitExpired(f"Execution {identity} is {doc['status']} after {timeout:g} s, not yet: {wanted}.")

    def _is_in(self, doc: Document, statuses: Collection[str]) -> bool:
        """One that was completed by the end of its devbox counts once the last of its output is on disk, too."""
        return doc["status"] in statuses and not (doc["status"] == COMPLETED and doc["id"] in self._live)

    async def kill(self, devbox_id: str, identity: str) -> Document:
        """End a command with all its descendants and wait for that. Idempotent. Raises NotFound."""
        doc = await self._find(devbox_id, identity)
        execution = self._live.get(doc["id"])
        if execution is not None:
            with anyio.move_on_after(KILL_TIMEOUT):
                await execution.kill()
                await execution.done.wait()
        return await self.view(devbox_id, identity)

    async def send(self, devbox_id: str, identity: str, *, text: str | None = None, signal: str | None = None) -> None:
        """Send text, then EOF or INTERRUPT, to a command. Raises NotFound, and BadRequest if it takes no input."""
        doc = await self._find(devbox_id, identity)
        execution = self._live.get(doc["id"])
        if execution is None:
            raise BadRequest(f"Execution {identity} has completed and takes no input.")
        if text is not None:
            execution.send(text)
        if signal == "EOF":
            execution.end_input()
        elif signal == "INTERRUPT":
            await execution.interrupt()

    async def stream(
        self, devbox_id: str, identity: str, stream: str, *, offset: int, pause: float
    ) -> AsyncIterator[Chunk | None]:
        """Open a stream of output at a byte offset; it ends with the execution. Raises NotFound.

        It yields None whenever `pause` seconds have gone by without output. A piece never ends inside a character.
        """
        doc = await self._find(devbox_id, identity)
        return self._follow(doc["id"], stream, spool_path(self._output, devbox_id, doc["id"], stream), offset, pause)

    async def _follow(
        self, identity: str, stream: str, path: Path, offset: int, pause: float
    ) -> AsyncIterator[Chunk | None]:
        while True:
            event = self._changes.next((identity, stream))
            is_live = identity in self._live
            data = await anyio.to_thread.run_sync(read_piece, path, offset)
            size = whole_characters(data) if is_live or len(data) == PIECE else len(data)
            if size > 0:
                offset += size
                yield Chunk(output=data[:size].decode(errors="replace"), offset=offset)
            elif not is_live:
                return
            else:
                with anyio.move_on_after(pause):
                    await event.wait()
                if not event.is_set():
                    yield None

    async def forget(self, devbox_id: str) -> None:
        """Remove what the commands of a devbox printed, once all of them have ended: it may have secrets in it."""
        docs = await insist(lambda: self._store.read(lambda db: EXECUTIONS.select(db, {"devbox_id": devbox_id})))
        for execution in [self._live[doc["id"]] for doc in docs if doc["id"] in self._live]:
            await execution.done.wait()
        remove = partial(shutil.rmtree, self._output / devbox_id, ignore_errors=True)
        await anyio.to_thread.run_sync(remove)

    async def logs(self, devbox_id: str, *, execution_id: str | None, shell_name: str | None) -> list[Document]:
        """The log of a devbox, or of one execution or named shell in it. Raises NotFound."""

        def rows(db: sqlite3.Connection) -> tuple[Document, list[Document]]:
            return DEVBOXES.get(db, devbox_id), EXECUTIONS.select(db, {"devbox_id": devbox_id})

        devbox, docs = await self._store.read(rows)
        chosen = [
            doc for doc in docs if execution_id in {None, doc["id"]} and shell_name in {None, doc.get("shell_name")}
        ]
        is_all = execution_id is None and shell_name is None
        return await anyio.to_thread.run_sync(partial(collect, self._output, devbox, chosen, with_setup=is_all))


def _command_key(devbox_id: str, command_id: str) -> str:
    return f"command {devbox_id} {command_id}"


def _insert(db: sqlite3.Connection, devbox_id: str, request: CommandRequest) -> Document:
    status = DEVBOXES.get(db, devbox_id)["status"]
    if status != Status.RUNNING:
        raise not_running(devbox_id, status)
    doc: Document = {
        "id": EXECUTIONS.new_id(),
        "devbox_id": devbox_id,
        "status": "running" if request.shell_name is None else "queued",
        "_command": request.command,
        "_created_ms": now_ms(),
    }
    if request.shell_name is not None:
        doc["shell_name"] = request.shell_name
    EXECUTIONS.insert(db, doc)
    return {"id": doc["id"]}


def _find(db: sqlite3.Connection, devbox_id: str, identity: str) -> Document:
    """By its own id, or by the command id that the client gave it."""
    doc = EXECUTIONS.find(db, identity)
    if doc is None:
        named = answered(db, _command_key(devbox_id, identity))
        doc = EXECUTIONS.find(db, named["id"]) if named else None
    if doc is None or doc["devbox_id"] != devbox_id:
        raise NotFound(f"There is no execution with id {identity!r} in devbox {devbox_id!r}.")
    return doc


def _completed(doc: Document, ending: Ending) -> Document:
    doc = doc | {"status": COMPLETED, "exit_status": ending.status, "_ended_ms": now_ms()}
    return doc if ending.note is None else doc | {"_note": ending.note}


def _complete_all(db: sqlite3.Connection, devbox: Document) -> None:
    """What still runs in a devbox ends with it."""
    ending = Ending(status=KILLED, note=f"The devbox ended under it: {devbox.get('_failure') or devbox['status']}")
    for doc in EXECUTIONS.select(db, {"devbox_id": devbox["id"]}):
        if doc["status"] != COMPLETED:
            EXECUTIONS.put(db, _completed(doc, ending))
