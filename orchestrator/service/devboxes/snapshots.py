"""Snapshots of the disks of devboxes: taken in the background, kept with the service's state, started from.

Its secret: what is kept. Of a devbox of an image it is the layer that it has written, over the same image; of one on
this machine's own system its own folders. Everything in the devbox stands still while they are copied. A copy is made
under a name of its own and counts once it is whole; a folder goes when no snapshot and no living devbox has it.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import structlog
from anyio.to_thread import run_sync

from orchestrator.core.errors import SweepError
from orchestrator.core.protocol import DEVBOX_ALIVE
from orchestrator.service.devboxes import blueprints, states
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.errors import BadRequest, NotFound, Unwritable, WaitExpired
from orchestrator.service.records import SnapshotRecord, SnapshotStatus
from orchestrator.service.sandbox.prepared import Preparation, Prepared
from orchestrator.service.sandbox.provider import ImageRoot
from orchestrator.service.sandbox.safe_fs import clone, disk_usage, remove
from orchestrator.service.store import (
    BLUEPRINTS,
    DEVBOXES,
    SNAPSHOTS,
    Filters,
    ListQuery,
    Page,
    Store,
    insist,
    now_ms,
)

#: The folder of a snapshot in a folder of its name: the kernel gives that one the ids of a box.
_TREE: Final = "fs"


class Snapshots:
    """The snapshots of the store, below `folder`. Call `open` first; `environment` prepares blueprints."""

    def __init__(
        self,
        *,
        store: Store,
        folder: Path,
        fleet: Fleet,
        environment: Callable[[str, Preparation], Awaitable[Prepared]],
    ) -> None:
        self._store = store
        self._folder = folder
        self._fleet = fleet
        self._environment = environment
        self._changes = states.ChangeEvents()
        #: Held while a folder is begun, and while those that nothing has are removed.
        self._removing = anyio.Lock()

    async def open(self) -> None:
        """Give up what an earlier service has not ended. Raises Unwritable and OSError."""

        def give_up(db: sqlite3.Connection) -> None:
            for each in SNAPSHOTS.select(db, {"_status": SnapshotStatus.IN_PROGRESS}):
                end = {"status": SnapshotStatus.ERROR, "error": "The service ended while the snapshot was taken."}
                SNAPSHOTS.update(db, each.id, end)

        await self._store.write(give_up)
        await run_sync(partial(self._folder.mkdir, mode=0o700, exist_ok=True))
        await self._remove_unused()

    async def take(self, devbox_id: str, fields: Mapping[str, Any], key: str | None) -> SnapshotRecord:
        """Begin a snapshot of a running devbox, once for each key. Raises BadRequest and NotFound."""
        with self._fleet.boxes(devbox_id) as boxes:
            spec = boxes.spec

        def insert(db: sqlite3.Connection) -> SnapshotRecord:
            devbox = DEVBOXES.get(db, devbox_id)
            parent = SNAPSHOTS.get(db, devbox.snapshot_id) if devbox.snapshot_id else None
            blueprint_id = parent.source_blueprint_id if parent else devbox.blueprint_id
            blueprint = BLUEPRINTS.find(db, blueprint_id) if blueprint_id else None
            if blueprint is not None and blueprint.state == blueprints.DELETED:
                raise BadRequest(f"Blueprint {blueprint.id}, which devbox {devbox_id} began from, was deleted.")
            identity = SNAPSHOTS.new_id()
            made = SnapshotRecord(
                id=identity,
                create_time_ms=now_ms(),
                metadata=fields.get("metadata") or {},
                source_devbox_id=devbox_id,
                name=fields.get("name"),
                commit_message=fields.get("commit_message"),
                source_blueprint_id=blueprint_id,
                status=SnapshotStatus.IN_PROGRESS,
                layers=(*(parent.layers if parent and spec.image else ()), identity),
                is_image=spec.image is not None,
                working_directory=spec.working_directory,
            )
            SNAPSHOTS.insert(db, made)
            return made

        with anyio.CancelScope(shield=True):  # what is in the store must be taken
            made, is_new = await self._store.once(key, SnapshotRecord, insert)
            if is_new:
                self._fleet.start_soon(self._carry_out, made)
        return made

    async def _carry_out(self, made: SnapshotRecord) -> None:
        """Take a snapshot, and record how that ended, however long the disk refuses."""
        draft, place = self._folder / f".{made.id}", self._folder / made.id
        log = structlog.get_logger().bind(snapshot=made.id, devbox=made.source_devbox_id)
        try:
            with self._fleet.boxes(made.source_devbox_id) as boxes:
                async with self._removing:
                    await run_sync(partial(draft.mkdir, mode=0o700))
                await boxes.save(draft / _TREE)
                woken = [f"{made.id}/{number}" for number, _ in enumerate(boxes.woken)]
                for name, layer in zip(woken, boxes.woken, strict=True):
                    await run_sync(partial((draft / Path(name).name).mkdir, mode=0o700))
                    await run_sync(clone, layer, draft / Path(name).name / _TREE)
            size = await run_sync(disk_usage, draft)
            await run_sync(draft.rename, place)
            layers = (*made.layers[:-1], *woken, made.id)
            end: dict[str, Any] = {"status": SnapshotStatus.COMPLETE, "size_bytes": size, "layers": layers}
        except Exception as error:  # one snapshot's trouble is not the service's
            is_known = isinstance(error, SweepError | OSError)
            log.warning("snapshot.failed", error=str(error), exc_info=not is_known)
            end = {
                "status": SnapshotStatus.ERROR,
                "error": str(error) if is_known else f"The snapshot broke: {error!r}",
            }
            with suppress(OSError):
                await run_sync(remove, draft)

        def change(db: sqlite3.Connection) -> SnapshotRecord:
            found = SNAPSHOTS.get(db, made.id)
            return found if found.status == SnapshotStatus.DELETED else SNAPSHOTS.update(db, made.id, end)

        ended = await insist(lambda: self._store.write(change))
        self._changes.announce(made.id)
        log.info("snapshot.ended", status=ended.status)
        if ended.status == SnapshotStatus.DELETED:
            with suppress(OSError, Unwritable):  # it goes with the next one, or at the next start
                await self._remove_unused()

    async def wait(self, snapshot_id: str, timeout: float) -> SnapshotRecord:
        """Wait until a snapshot is complete. Raises BadRequest when it failed, WaitExpired, and NotFound."""
        with anyio.move_on_after(timeout):
            while True:
                event = self._changes.next(snapshot_id)
                found = await self.retrieve(snapshot_id)
                if found.status == SnapshotStatus.COMPLETE:
                    return found
                if found.status != SnapshotStatus.IN_PROGRESS:
                    raise BadRequest(f"Snapshot {snapshot_id}: {found.error or found.status}")
                await event.wait()
        raise WaitExpired(f"Snapshot {snapshot_id} is {SnapshotStatus.IN_PROGRESS} after {timeout:g} s.")

    async def retrieve(self, snapshot_id: str) -> SnapshotRecord:
        """Raises NotFound."""
        return await self._store.read(partial(SNAPSHOTS.get, identity=snapshot_id))

    async def page(self, filters: Filters, query: ListQuery) -> Page[SnapshotRecord]:
        """List those that are complete. Raises NotFound for an unknown `starting_after`."""
        return await self._store.read(
            lambda db: SNAPSHOTS.page(db, {"_status": SnapshotStatus.COMPLETE, **filters}, query)
        )

    async def update(self, snapshot_id: str, changes: Mapping[str, Any]) -> SnapshotRecord:
        """Replace the fields given. Raises NotFound."""
        return await self._store.write(lambda db: SNAPSHOTS.update(db, snapshot_id, changes))

    async def delete(self, snapshot_id: str) -> None:
        """Delete a snapshot; devboxes that began from it keep what they have. Idempotent. Raises NotFound."""
        await self._store.write(lambda db: SNAPSHOTS.update(db, snapshot_id, {"status": SnapshotStatus.DELETED}))
        self._changes.announce(snapshot_id)
        await self._remove_unused()

    async def prepare(self, snapshot_id: str, preparation: Preparation) -> Prepared:
        """Return what a devbox from a snapshot starts from. Raises NotFound, and what preparing its blueprint raises.

        What is set up when a devbox of the blueprint boots is in the snapshot already.
        """
        found = await self.retrieve(snapshot_id)
        if found.status != SnapshotStatus.COMPLETE:
            raise NotFound(f"Snapshot {snapshot_id} is {found.status}, not {SnapshotStatus.COMPLETE}.")
        blueprint_id = found.source_blueprint_id
        base = await self._environment(blueprint_id, preparation) if blueprint_id else Prepared()
        folders = tuple(self._folder / name / _TREE for name in found.layers)
        directory = found.working_directory or base.working_directory
        prepared = replace(base, name=found.id, files={}, setup=(), working_directory=directory)
        if found.is_image:
            below = base.image.layers if base.image is not None else ()
            return replace(prepared, image=ImageRoot(layers=(*below, *folders)))
        return replace(prepared, root=folders[-1])

    async def _remove_unused(self) -> None:
        """Remove the folders that nothing has. Raises OSError."""

        def used(db: sqlite3.Connection) -> set[str]:
            kept = SNAPSHOTS.select(db, {"_status": (SnapshotStatus.IN_PROGRESS, SnapshotStatus.COMPLETE)})
            begun = {each.snapshot_id for each in DEVBOXES.select(db, {"status": DEVBOX_ALIVE}) if each.snapshot_id}
            kept += [found for each in begun if (found := SNAPSHOTS.find(db, each))]
            return {name.partition("/")[0] for each in kept for name in each.layers}

        def clean(names: set[str]) -> None:
            for each in self._folder.iterdir():
                if each.name.removeprefix(".") not in names:
                    remove(each)

        async with self._removing:
            await run_sync(clean, await self._store.read(used))
