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
from msgspec.structs import replace as replaced

from orchestrator.core.errors import SweepError
from orchestrator.core.protocol import DevboxStatus
from orchestrator.service.devboxes import output
from orchestrator.service.devboxes.execution import Ending, LiveExecution, Turns, program_for
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.devboxes.states import KILLED, ChangeEvents, completed, not_running
from orchestrator.service.errors import BadRequest, NotFound, WaitExpired
from orchestrator.service.records import Created, DevboxRecord, ExecutionRecord, ExecutionStatus, Record
from orchestrator.service.store import DEVBOXES, EXECUTIONS, Store, answered, insist, now_ms

DEFAULT_LINES: Final = 100
KILL_TIMEOUT_S: Final = 20.0
#: Time in which an execution must be recorded that the end of the service cuts off.
LAST_WRITE_S: Final = 5.0


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


class ExecutionView(Record, frozen=True, kw_only=True):
    """An execution as the wire shows it, with the end of its output so far."""

    devbox_id: str
    execution_id: str
    status: ExecutionStatus
    exit_status: int | None = None
    shell_name: str | None = None
    stdout: str
    stderr: str
    stdout_truncated: bool
    stderr_truncated: bool


class Executions:
    """All executions of the service. Its tasks are the fleet's."""

    def __init__(self, store: Store, fleet: Fleet, state: Path) -> None:
        self._store = store
        self._fleet = fleet
        self._output = state / "output"
        self._changes = ChangeEvents()
        self._turns = Turns()
        self._live: dict[str, LiveExecution] = {}

    async def start(self, devbox_id: str, request: CommandRequest, key: str | None) -> str:
        """Start a command, once for each idempotency key or command id; returns the id of the execution.

        Raises NotFound, and BadRequest if the devbox does not run.
        """
        if "\0" in request.command:
            raise BadRequest("command: contains a NUL character, which no command can.")
        if request.command_id is not None:
            key = _command_key(devbox_id, request.command_id)

        def insert(db: sqlite3.Connection) -> Created:
            devbox = DEVBOXES.get(db, devbox_id)
            if devbox.status is not DevboxStatus.RUNNING:
                raise not_running(devbox_id, devbox.status)
            status = ExecutionStatus.RUNNING if request.shell_name is None else ExecutionStatus.QUEUED
            execution = ExecutionRecord(
                id=EXECUTIONS.new_id(),
                devbox_id=devbox_id,
                status=status,
                command=request.command,
                created_ms=now_ms(),
                shell_name=request.shell_name,
            )
            EXECUTIONS.insert(db, execution)
            return Created(id=execution.id)

        with anyio.CancelScope(shield=True):  # an execution that is in the store must be started
            answer, is_new = await self._store.once(key, Created, insert)
            if is_new:
                self._begin(devbox_id, answer.id, request)
        return answer.id

    def _begin(self, devbox_id: str, identity: str, request: CommandRequest) -> None:
        spools = {
            stream: output.Spool(
                output.spool_path(self._output, devbox_id, identity, stream),
                on_change=partial(self._changes.announce, (identity, stream)),
            )
            for stream in output.STREAMS
        }
        execution = LiveExecution(identity, spools=spools, has_stdin=request.attach_stdin)
        self._fleet.start_soon(self._run, execution, devbox_id, request)
        self._live[identity] = execution

    async def _run(self, execution: LiveExecution, devbox_id: str, request: CommandRequest) -> None:
        try:
            ending = await self._perform(execution, devbox_id, request)
            await self._record_end(execution, ending)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(LAST_WRITE_S, shield=True):
                await self._record_end(execution, Ending(status=KILLED, note="The service stopped."))
            raise
        finally:
            del self._live[execution.id]
            execution.done.set()
            for what in ("status", *output.STREAMS):
                self._changes.announce((execution.id, what))

    async def _perform(self, execution: LiveExecution, devbox_id: str, request: CommandRequest) -> Ending:
        def begin(db: sqlite3.Connection) -> None:
            record = EXECUTIONS.get(db, execution.id)
            if record.status is ExecutionStatus.QUEUED:
                EXECUTIONS.put(db, replaced(record, status=ExecutionStatus.RUNNING))

        async with AsyncExitStack() as stack:
            with execution.turn:
                await stack.enter_async_context(self._turns.turn(devbox_id, request.shell_name))
            try:
                box = stack.enter_context(self._fleet.using(devbox_id))
                command = await program_for(
                    box,
                    request.command,
                    execution_id=execution.id,
                    shell_name=request.shell_name,
                    stdin=request.attach_stdin,
                )
                if request.shell_name is not None:
                    await insist(partial(self._store.write, begin))
                    self._changes.announce((execution.id, "status"))
                return await execution.run(box, replace(command, cwd=self._fleet.working_directory(devbox_id)))
            except SweepError as error:
                return Ending(status=KILLED, note=f"It could not be started: {error.message}")
            except Exception as error:  # noqa: BLE001 - one command's trouble is not the service's
                await execution.kill()
                structlog.get_logger().exception("execution.crashed", devbox=devbox_id, execution=execution.id)
                return Ending(status=KILLED, note=f"It could not be run: {error!r}")

    async def _record_end(self, execution: LiveExecution, ending: Ending) -> None:
        """Record an end until it is written: a full disk must not make a command look as if it still ran."""
        cut = {f"is_{stream}_cut": spool.is_cut for stream, spool in execution.spools.items()}

        def change(db: sqlite3.Connection) -> None:
            record = EXECUTIONS.get(db, execution.id)
            if record.status is not ExecutionStatus.COMPLETED:
                record = completed(record, ending.status, ending.note)
            EXECUTIONS.put(db, replaced(record, **cut))

        await insist(partial(self._store.write, change))

    async def view(self, devbox_id: str, identity: str, *, lines: int = DEFAULT_LINES) -> ExecutionView:
        """Show an execution, with the last lines of its output so far. Raises NotFound."""
        return await self._shown(await self._find(devbox_id, identity), lines)

    async def _find(self, devbox_id: str, identity: str) -> ExecutionRecord:
        """Find an execution by its own id, or by the command id that the client gave it. Raises NotFound."""

        def find(db: sqlite3.Connection) -> ExecutionRecord:
            found = EXECUTIONS.find(db, identity)
            if found is None and (named := answered(db, _command_key(devbox_id, identity), Created)):
                found = EXECUTIONS.find(db, named.id)
            if found is None or found.devbox_id != devbox_id:
                raise NotFound(f"There is no execution with id {identity!r} in devbox {devbox_id!r}.")
            return found

        return await self._store.read(find)

    async def _shown(
        self, record: ExecutionRecord, lines: int | None, limit: int = output.MAX_TAIL_BYTES
    ) -> ExecutionView:
        def read() -> list[output.Tail]:
            paths = [output.spool_path(self._output, record.devbox_id, record.id, stream) for stream in output.STREAMS]
            return [output.read_tail(path, lines=lines, limit=limit) for path in paths]

        stdout, stderr = await anyio.to_thread.run_sync(read)
        return ExecutionView(
            devbox_id=record.devbox_id,
            execution_id=record.id,
            status=record.status,
            exit_status=record.exit_status,
            shell_name=record.shell_name,
            stdout=stdout.text,
            stderr=stderr.text,
            stdout_truncated=stdout.is_truncated or record.is_stdout_cut,
            stderr_truncated=stderr.is_truncated or record.is_stderr_cut,
        )

    async def wait(
        self,
        devbox_id: str,
        identity: str,
        *,
        timeout: float,
        statuses: Collection[ExecutionStatus] = (ExecutionStatus.COMPLETED,),
        lines: int | None = DEFAULT_LINES,
        limit: int = output.MAX_TAIL_BYTES,
    ) -> ExecutionView:
        """Wait, at most `timeout` seconds, for one of the statuses. Raises WaitExpired, and NotFound."""

        def is_reached() -> bool:
            """Tell whether to answer: a command that ended with its devbox may still be writing its last output."""
            is_writing = record.status is ExecutionStatus.COMPLETED and record.id in self._live
            return record.status in statuses and not is_writing

        record = await self._find(devbox_id, identity)
        key = (record.id, "status")
        with anyio.move_on_after(timeout):
            event = self._changes.next(key)
            record = await self._find(devbox_id, identity)  # what changed before the event would else be missed
            while not is_reached():
                await event.wait()
                event = self._changes.next(key)
                record = await self._find(devbox_id, identity)
        if record.status in statuses:
            return await self._shown(record, lines, limit)
        wanted = ", ".join(sorted(statuses))
        raise WaitExpired(f"Execution {identity} is {record.status} after {timeout:g} s, not yet: {wanted}.")

    async def kill(self, devbox_id: str, identity: str) -> ExecutionView:
        """End a command with all its descendants and wait for that. Idempotent. Raises NotFound."""
        record = await self._find(devbox_id, identity)
        execution = self._live.get(record.id)
        if execution is not None:
            with anyio.move_on_after(KILL_TIMEOUT_S):
                await execution.kill()
                await execution.done.wait()
        return await self.view(devbox_id, identity)

    async def send(self, devbox_id: str, identity: str, *, text: str | None = None, signal: str | None = None) -> None:
        """Send text, then EOF or INTERRUPT, to a command. Raises NotFound, and BadRequest if it takes no input."""
        record = await self._find(devbox_id, identity)
        execution = self._live.get(record.id)
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
        record = await self._find(devbox_id, identity)
        path = output.spool_path(self._output, devbox_id, record.id, stream)
        return self._follow(record.id, stream, path, offset, pause)

    async def _follow(
        self, identity: str, stream: str, path: Path, offset: int, pause: float
    ) -> AsyncIterator[Chunk | None]:
        while True:
            event = self._changes.next((identity, stream))
            is_live = identity in self._live
            data = await anyio.to_thread.run_sync(output.read_piece, path, offset)
            size = output.whole_characters(data) if is_live or len(data) == output.PIECE_BYTES else len(data)
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
        records = await insist(lambda: self._store.read(lambda db: EXECUTIONS.select(db, {"devbox_id": devbox_id})))
        for execution in [self._live[record.id] for record in records if record.id in self._live]:
            await execution.done.wait()
        await anyio.to_thread.run_sync(partial(shutil.rmtree, self._output / devbox_id, ignore_errors=True))

    async def logs(self, devbox_id: str, *, execution_id: str | None, shell_name: str | None) -> list[output.LogEntry]:
        """Collect the log of a devbox, or of one execution or named shell in it. Raises NotFound."""

        def rows(db: sqlite3.Connection) -> tuple[DevboxRecord, list[ExecutionRecord]]:
            return DEVBOXES.get(db, devbox_id), EXECUTIONS.select(db, {"devbox_id": devbox_id})

        devbox, records = await self._store.read(rows)
        chosen = [each for each in records if execution_id in {None, each.id} and shell_name in {None, each.shell_name}]
        is_all = execution_id is None and shell_name is None
        return await anyio.to_thread.run_sync(partial(output.collect, self._output, devbox, chosen, with_setup=is_all))


def _command_key(devbox_id: str, command_id: str) -> str:
    return f"command {devbox_id} {command_id}"
