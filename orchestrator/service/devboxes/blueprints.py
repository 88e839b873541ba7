"""Blueprints by API: kept as records, built in the background, and what devboxes inherit of them.

Its secret: what a blueprint comes to. With a Dockerfile, its own or its base's, it is that text with a COPY for each
file mount and a RUN for each command after it, and is built into the image store of this machine's user. Without one
it is this machine's own system: each devbox gets the files and runs the commands when it boots, and nothing is built.

A build that the service did not live to see ended is begun again by the next one, and finds the layers that are there.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
import msgspec
import structlog
from anyio.to_thread import run_sync

from orchestrator.core.errors import InternalError, SweepError
from orchestrator.service.content import Listing, digest, listing, read_file
from orchestrator.service.devboxes import states
from orchestrator.service.devboxes.boot import in_home
from orchestrator.service.devboxes.output import append
from orchestrator.service.devboxes.requests import DevboxRequest, check_paths, parse_launch
from orchestrator.service.environments.environments import MAX_SOURCE_BYTES, Blueprint, FindBlueprint, ImageRecipe
from orchestrator.service.environments.objects import Objects
from orchestrator.service.errors import BadRequest, Conflict
from orchestrator.service.records import BlueprintRecord, Record, SnapshotStatus
from orchestrator.service.sandbox.prepared import Preparation, Prepared
from orchestrator.service.sandbox.provider import HOME, Resources
from orchestrator.service.sandbox.safe_fs import remove
from orchestrator.service.store import BLUEPRINTS, SNAPSHOTS, Filters, ListQuery, Page, Store, insist, now_ms

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

CREATED: Final = "created"
DELETED: Final = "deleted"
QUEUED: Final = "queued"
BUILDING: Final = "building"
BUILT: Final = "build_complete"
FAILED: Final = "failed"
#: Builds at the same time, and seconds that one may take.
MAX_BUILDS: Final = 2
BUILD_TIMEOUT_S: Final = 3600.0
#: Bytes of the log of a blueprint.
MAX_LOG_BYTES: Final = 4 << 20
#: Characters that a Dockerfile's COPY would take for something else than a part of a path.
_NO_PATH: Final = frozenset(" \t\r\n\"'\\$")
_OWN_SYSTEM: Final = "# This machine's own system. Nothing is built: each devbox gets and runs this when it boots.\n"


class BuildLine(Record, frozen=True, kw_only=True):
    """One line of a blueprint's log, in the published shape."""

    level: str
    message: str
    timestamp_ms: int


class Blueprints:
    """The blueprints of the store; use `async with`: entering goes on with builds that have not ended.

    `folder` has contexts and logs, `find_other` knows the blueprints of scenarios' folders, and `build` makes what a
    blueprint's devboxes start from.
    """

    def __init__(
        self,
        *,
        store: Store,
        folder: Path,
        objects: Objects,
        find_other: FindBlueprint,
        build: Callable[[str, Preparation], Awaitable[Prepared]],
    ) -> None:
        self._store = store
        self._contexts = folder / "contexts"
        self._logs = folder / "logs"
        self._objects = objects
        self._find_other = find_other
        self._build = build
        self._seats = anyio.CapacityLimiter(MAX_BUILDS)
        #: Held while a folder of a context is made or removed.
        self._context_lock = anyio.Lock()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        await self._objects.open()
        kept = await self._store.read(lambda db: BLUEPRINTS.select(db, {"state": CREATED}))
        await run_sync(self._clean, {each.context for each in kept})
        self._tasks = await anyio.create_task_group().__aenter__()
        for each in kept:
            if each.status in {QUEUED, BUILDING}:
                self._tasks.start_soon(self._carry_out, each.id)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        tasks.cancel_scope.cancel()
        await tasks.__aexit__(None, None, None)

    def _clean(self, contexts: set[str | None]) -> None:
        """Remove contexts that no blueprint has, and what was being unpacked. Blocking."""
        for folder in (self._contexts.parent, self._contexts, self._logs):
            folder.mkdir(mode=0o700, exist_ok=True)
        for each in self._contexts.iterdir():
            if each.name not in contexts:
                remove(each)

    async def create(self, fields: Mapping[str, Any], key: str | None) -> BlueprintRecord:
        """Create a blueprint and build it soon, once for each key. Raises BadRequest, NotFound and OSError."""
        made = await self._drafted(fields)
        tasks = self._tasks
        if tasks is None:
            raise InternalError("The blueprints are not open.")

        def insert(db: sqlite3.Connection) -> BlueprintRecord:
            BLUEPRINTS.insert(db, made)
            return made

        async with self._context_lock:
            if made.context is not None and not (self._contexts / made.context).is_dir():
                await self._objects.unpack(made.context, self._contexts / made.context)
            with anyio.CancelScope(shield=True):  # what is in the store must be built
                blueprint, is_new = await self._store.once(key, BlueprintRecord, insert)
                if is_new and blueprint.status == QUEUED:
                    tasks.start_soon(self._carry_out, blueprint.id)
        return blueprint

    async def preview(self, fields: Mapping[str, Any]) -> str:
        """Return the Dockerfile that `create` would build. Raises as that."""
        draft = await self._drafted(fields)
        if draft.dockerfile is not None:
            return draft.dockerfile
        return _OWN_SYSTEM + _steps(draft.files, draft.commands)

    async def _drafted(self, fields: Mapping[str, Any]) -> BlueprintRecord:
        """Make the record of a blueprint as a client wants it. Raises BadRequest and NotFound."""
        identity, name = fields.get("base_blueprint_id"), fields.get("base_blueprint_name")
        if identity and name:
            raise BadRequest("base_blueprint_name: give it or base_blueprint_id, not both.")
        base = None
        if identity or name:
            wanted = identity or ""
            find = partial(newest, name=name) if name else partial(_usable, identity=wanted, key="base_blueprint_id")
            base = await self._store.read(find)
            if base is None:
                raise BadRequest(f"base_blueprint_name: no blueprint named {name!r} has been built.")
            if base.status != BUILT:
                raise BadRequest(f"base_blueprint_id: blueprint {base.id} is {base.status}, not {BUILT}.")

        text, context = fields.get("dockerfile"), fields.get("build_context")
        if text is not None and base is not None:
            raise BadRequest("dockerfile: it says itself what it is built on; leave out the base blueprint.")
        if context is not None and (text is None or context.get("type") != "object" or not context.get("object_id")):
            raise BadRequest("build_context: an object (type and object_id) that a dockerfile copies from.")
        if context is not None:
            await self._objects.readable(context["object_id"])
        if base is not None:
            text = base.dockerfile
        if fields.get("build_args") and text is None:
            raise BadRequest("build_args: only a dockerfile has arguments.")
        files, commands = fields.get("file_mounts") or {}, tuple(fields.get("system_setup_commands") or ())
        check_paths("file_mounts", files)
        for number, command in enumerate(commands):
            if not command.strip() or "\0" in command:
                raise BadRequest(f"system_setup_commands.{number}: expected a command, without a NUL character.")
        launch = {**(base.launch if base else {}), **(fields.get("launch_parameters") or {})}
        parse_launch(launch)

        if text is not None:
            for path in files:
                if set(path) & _NO_PATH or path.endswith("/"):
                    raise BadRequest(f"file_mounts: {path!r} cannot be copied to by a Dockerfile; rename it.")
            text = "\n".join(part for part in (text.rstrip("\n"), _steps(files, commands)) if part)
        at = now_ms()
        return BlueprintRecord(
            id=BLUEPRINTS.new_id(),
            name=fields["name"],
            create_time_ms=at,
            state=CREATED,
            status=BUILT if text is None else QUEUED,
            parameters=fields,
            base_blueprint_id=base.id if base else None,
            build_finish_time_ms=at if text is None else None,
            metadata=fields.get("metadata"),
            dockerfile=text,
            arguments={**(base.arguments if base else {}), **(fields.get("build_args") or {})},
            context=context["object_id"] if context else base.context if base else None,
            files={} if text is not None else {**(base.files if base else {}), **files},
            commands=() if text is not None else (*(base.commands if base else ()), *commands),
            launch=launch,
        )

    async def _carry_out(self, identity: str) -> None:
        """Build a blueprint, and record how that ended, however long the disk refuses."""
        log = structlog.get_logger().bind(blueprint=identity)
        async with self._seats:
            if (await insist(partial(self._advance, identity, {"status": BUILDING}))).state == DELETED:
                return
            end = {"status": BUILT}
            preparation = Preparation()
            try:
                await self._build(identity, preparation)
            except Exception as error:  # one blueprint's trouble is not the service's
                is_known = isinstance(error, SweepError)
                log.warning("blueprint.failed", error=str(error), exc_info=not is_known)
                await self._tell(identity, str(error) if is_known else f"The build broke: {error!r}", level="error")
                reason = states.failure_reason(str(error))
                end = {"status": FAILED, "failure_reason": reason if reason.startswith("out_of_") else "build_failed"}
            finally:
                preparation.held.close()
            await insist(partial(self._advance, identity, {**end, "build_finish_time_ms": now_ms()}))
            log.info("blueprint.ended", status=end["status"])

    async def _advance(self, identity: str, changes: Mapping[str, Any]) -> BlueprintRecord:
        """Change a blueprint; one that was deleted stays as it is."""

        def change(db: sqlite3.Connection) -> BlueprintRecord:
            blueprint = BLUEPRINTS.get(db, identity)
            return blueprint if blueprint.state == DELETED else BLUEPRINTS.update(db, identity, changes)

        return await self._store.write(change)

    async def _tell(self, identity: str, message: str, level: str = "info") -> None:
        """Add to the log of a blueprint, as far as there is room; a full disk must not end the build."""
        lines = [BuildLine(level=level, message=each, timestamp_ms=now_ms()) for each in message.splitlines()]

        def write() -> None:
            file = self._log(identity)
            if not file.exists() or file.stat().st_size < MAX_LOG_BYTES:
                append(file, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))

        with suppress(OSError):
            await run_sync(write)

    def _log(self, identity: str) -> Path:
        return self._logs / f"{identity}.jsonl"

    async def find(self, identity: str) -> Blueprint | None:
        """Return the plan of a blueprint, made by API or with a scenario's folder. Raises what the latter raises."""
        record = await self._store.read(partial(BLUEPRINTS.find, identity=identity))
        if record is None:
            return await self._find_other(identity)
        if record.state == DELETED:
            return None
        return await run_sync(self._plan, record)

    def _plan(self, record: BlueprintRecord) -> Blueprint:
        """Blocking. Raises OSError."""
        files, recipe = Listing(), None
        if record.context is not None:
            files = listing(self._contexts / record.context, self._contexts / record.context)
        if record.dockerfile is not None:
            rules = files.find(".dockerignore")
            ignore = read_file(rules.place, MAX_SOURCE_BYTES).decode(errors="replace") if rules else ""
            recipe = ImageRecipe(
                text=record.dockerfile, file="Dockerfile", ignore=ignore, name=record.name, arguments=record.arguments
            )
        return Blueprint(
            id=record.id,
            files=files,
            content=digest(files.nodes),
            image=recipe,
            working_directory="" if recipe else HOME,
            mounts=record.files,
            setup=tuple(record.commands),
            resources=parse_launch(record.launch).resources or Resources(),
            build_timeout=BUILD_TIMEOUT_S,
            limit="the time that a blueprint may take",
            tell=partial(self._tell, record.id),
        )

    async def retrieve(self, identity: str) -> BlueprintRecord:
        """Raises NotFound."""
        return await self._store.read(partial(BLUEPRINTS.get, identity=identity))

    async def page(self, filters: Filters, query: ListQuery) -> Page[BlueprintRecord]:
        """Raises NotFound for an unknown `starting_after`."""
        return await self._store.read(lambda db: BLUEPRINTS.page(db, {"state": CREATED, **filters}, query))

    async def logs(self, identity: str) -> list[BuildLine]:
        """Return what was said of its build. Raises NotFound."""
        await self.retrieve(identity)
        try:
            data = await run_sync(self._log(identity).read_bytes)
        except FileNotFoundError:
            return []
        return [msgspec.json.decode(line, type=BuildLine) for line in data.splitlines()]

    async def delete(self, identity: str) -> None:
        """Delete a blueprint; devboxes that began from it keep what they have. Idempotent.

        Raises NotFound, and Conflict while there are snapshots of its devboxes.
        """

        def change(db: sqlite3.Connection) -> str | None:
            kept = SnapshotStatus.IN_PROGRESS, SnapshotStatus.COMPLETE
            if count := SNAPSHOTS.count(db, {"source_blueprint_id": identity, "_status": kept}):
                raise Conflict(f"Blueprint {identity} has {count} snapshots of its devboxes: delete them first.")
            blueprint = BLUEPRINTS.update(db, identity, {"state": DELETED})
            others = {each.context for each in BLUEPRINTS.select(db, {"state": CREATED})}
            return None if blueprint.context in others else blueprint.context

        async with self._context_lock:
            context = await self._store.write(change)
            await run_sync(partial(self._log(identity).unlink, missing_ok=True))
            if context is not None:
                await run_sync(remove, self._contexts / context)


def newest(db: sqlite3.Connection, name: str) -> BlueprintRecord | None:
    """Return the newest blueprint of this name that is built."""
    query = ListQuery(limit=1, with_total=False)
    return next(iter(BLUEPRINTS.page(db, {"name": name, "status": BUILT, "state": CREATED}, query).items), None)


def _usable(db: sqlite3.Connection, identity: str, key: str) -> BlueprintRecord:
    """Return a blueprint that was made by API, and neither deleted nor failed. Raises BadRequest naming the `key`."""
    found = BLUEPRINTS.find(db, identity)
    if found is None or found.state == DELETED:
        raise BadRequest(f"{key}: there is no blueprint with id {identity!r}.")
    if found.status == FAILED:
        raise BadRequest(f"{key}: the build of blueprint {identity} failed; its logs say why.")
    return found


def with_start(db: sqlite3.Connection, request: DevboxRequest) -> DevboxRequest:
    """Check what a devbox starts from, and name a blueprint by its id. Raises BadRequest.

    It inherits the blueprint's launch parameters. One that is not built yet is waited for when the devbox boots.
    """
    given = [key for key in ("blueprint_id", "blueprint_name", "snapshot_id") if getattr(request, key)]
    if len(given) > 1:
        raise BadRequest(f"{given[1]}: give it or {given[0]}, not both.")
    if request.snapshot_id:
        snapshot = SNAPSHOTS.find(db, request.snapshot_id)
        if snapshot is None or snapshot.status is not SnapshotStatus.COMPLETE:
            state = "no such snapshot" if snapshot is None else f"this snapshot is {snapshot.status}"
            raise BadRequest(f"snapshot_id: {request.snapshot_id}: {state}.")
        return request
    if request.blueprint_name:
        found = newest(db, request.blueprint_name)
        if found is None:
            raise BadRequest(f"blueprint_name: no blueprint named {request.blueprint_name!r} has been built.")
    elif request.blueprint_id and BLUEPRINTS.find(db, request.blueprint_id):
        found = _usable(db, request.blueprint_id, "blueprint_id")
    else:
        return request
    parameters = {**found.launch, **request.launch_parameters}
    return replace(request, blueprint_id=found.id, launch_parameters=parameters)


def _steps(files: Mapping[str, str], commands: Sequence[str]) -> str:
    """Return lines of a Dockerfile that put files in place, and then run commands. Each file ends with a newline."""
    lines = []
    for path, text in files.items():
        lines.append(_heredoc(f'COPY <<"{{}}" {in_home(path)}', text))
    lines += [_heredoc('RUN <<"{}"', command) for command in commands]
    return "".join(lines)


def _heredoc(head: str, text: str) -> str:
    lines, word = text.splitlines(), "END"
    while word in lines:
        word += "_"
    body = text if text.endswith("\n") or not text else f"{text}\n"
    return f"{head.replace('{}', word)}\n{body}{word}\n"
