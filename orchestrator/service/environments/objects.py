"""Files that clients upload, to be the build contexts of blueprints.

Its secret: the addresses at which contents come and go. The published client sends no token there, so each address has
a key of its own. A content counts when its request has ended whole, and is never changed once it was completed.
"""

import gzip
import hmac
import lzma
import os
import secrets
import sqlite3
import tarfile
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.to_thread import run_sync
from msgspec.structs import replace

from orchestrator.service.errors import BadRequest, NotFound
from orchestrator.service.records import ObjectRecord
from orchestrator.service.sandbox.safe_fs import remove
from orchestrator.service.store import OBJECTS, Filters, ListQuery, Page, Store, now_ms

UPLOADING: Final = "UPLOADING"
READ_ONLY: Final = "READ_ONLY"
DELETED: Final = "DELETED"
CONTENT_TYPES: Final = ("unspecified", "text", "binary", "gzip", "tar", "tgz")
#: Files in an archive, and their bytes in all.
MAX_FILES: Final = 100_000
MAX_UNPACKED_BYTES: Final = 8 << 30
_BROKEN: Final = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


class Objects:
    """The objects of the store, their contents below `folder`. Call `open` first."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._locks: dict[str, anyio.Lock] = {}

    async def open(self) -> None:
        """Make the folder, and remove what did not come whole or was deleted. Raises OSError."""
        await self._remove_expired()
        kept = {each.id for each in await self._store.read(_kept)}

        def clean() -> None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for file in self._folder.iterdir():
                if file.name not in kept:
                    file.unlink()

        await run_sync(clean)

    async def create(self, fields: Mapping[str, Any], key: str | None) -> ObjectRecord:
        """Create an object without a content, once for each key. Raises BadRequest."""
        if fields["content_type"] not in CONTENT_TYPES:
            raise BadRequest(f"content_type: expected one of {', '.join(CONTENT_TYPES)}.")
        lifetime, at = fields.get("ttl_ms"), now_ms()
        made = ObjectRecord(
            id=OBJECTS.new_id(),
            name=fields["name"],
            content_type=fields["content_type"],
            create_time_ms=at,
            state=UPLOADING,
            metadata=fields.get("metadata"),
            delete_after_time_ms=None if lifetime is None else at + lifetime,
            key=secrets.token_urlsafe(24),
        )

        def insert(db: sqlite3.Connection) -> ObjectRecord:
            OBJECTS.insert(db, made)
            return made

        await self._remove_expired()
        return (await self._store.once(key, ObjectRecord, insert))[0]

    async def retrieve(self, identity: str) -> ObjectRecord:
        """Raises NotFound."""
        return _as_of_now(await self._store.read(partial(OBJECTS.get, identity=identity)))

    async def page(self, filters: Filters, query: ListQuery) -> Page[ObjectRecord]:
        """Raises NotFound for an unknown `starting_after`."""
        await self._remove_expired()
        filters = {"state": (UPLOADING, READ_ONLY), **{key: value for key, value in filters.items() if value}}
        return await self._store.read(lambda db: OBJECTS.page(db, filters, query))

    async def at(self, identity: str, key: str) -> ObjectRecord:
        """Return the object that has this address. Raises NotFound, for a wrong key too."""
        found = await self.retrieve(identity)
        if not hmac.compare_digest(found.key.encode(), key.encode()):
            raise NotFound(f"There is no {OBJECTS.noun} with id {identity!r}.")
        return found

    async def receive(self, found: ObjectRecord, content: AsyncIterator[bytes]) -> None:
        """Take the content of an object that is not complete. Raises BadRequest and OSError."""
        _check_uploading(found)
        draft = self._folder / f".{found.id}-{secrets.token_hex(4)}"
        try:
            async with await anyio.open_file(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                async for piece in content:
                    await file.write(piece)
                await file.flush()
                await run_sync(os.fsync, file.wrapped.fileno())
            async with self._changing(found.id) as now:
                _check_uploading(now)
                await run_sync(draft.replace, self.content(found.id))
        finally:
            draft.unlink(missing_ok=True)

    async def complete(self, identity: str) -> ObjectRecord:
        """Make the content final. Idempotent. Raises NotFound, and BadRequest if it has none."""
        async with self._changing(identity) as found:
            if found.state != UPLOADING:
                return found
            try:
                size = self.content(identity).stat().st_size
            except FileNotFoundError:
                raise BadRequest(f"Object {identity} has no content yet: send it to its upload_url first.") from None
            return await self._store.write(
                lambda db: OBJECTS.update(db, identity, {"state": READ_ONLY, "size_bytes": size})
            )

    async def readable(self, identity: str) -> ObjectRecord:
        """Return an object whose content is there. Raises NotFound and BadRequest."""
        found = await self.retrieve(identity)
        if found.state != READ_ONLY:
            raise BadRequest(f"Object {identity} is {found.state}, and its content cannot be read.")
        return found

    def content(self, identity: str) -> Path:
        """The file of an object that was looked up."""
        return self._folder / identity

    async def delete(self, identity: str) -> ObjectRecord:
        """Remove its content. Idempotent. Raises NotFound."""
        async with self._changing(identity):
            found = await self._store.write(lambda db: OBJECTS.update(db, identity, {"state": DELETED}))
            await run_sync(partial(self.content(identity).unlink, missing_ok=True))
        return found

    async def unpack(self, identity: str, target: Path) -> None:
        """Unpack the archive that an object is into the folder `target`, which has all of it or is not there.

        Raises NotFound, BadRequest and OSError.
        """
        await self.readable(identity)
        draft = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
        try:
            await run_sync(_unpack, self.content(identity), draft)
            await run_sync(draft.replace, target)
        except _BROKEN as error:
            raise BadRequest(f"build_context: object {identity} is no archive that can be used: {error}") from None
        finally:
            await run_sync(remove, draft)

    @asynccontextmanager
    async def _changing(self, identity: str) -> AsyncIterator[ObjectRecord]:
        """Look up an object that nobody else changes within the block. Raises NotFound."""
        lock = self._locks.setdefault(identity, anyio.Lock())
        try:
            async with lock:
                yield await self.retrieve(identity)
        finally:
            if not lock.locked():
                self._locks.pop(identity, None)

    async def _remove_expired(self) -> None:
        """Delete what has outlived its time."""
        for each in await self._store.read(_kept):
            if _as_of_now(each).state == DELETED:
                await self.delete(each.id)


def _kept(db: sqlite3.Connection) -> list[ObjectRecord]:
    return OBJECTS.select(db, {"state": (UPLOADING, READ_ONLY)})


def _check_uploading(found: ObjectRecord) -> None:
    """Raises BadRequest."""
    if found.state != UPLOADING:
        raise BadRequest(f"Object {found.id} is {found.state}: its content cannot be changed.")


def _as_of_now(found: ObjectRecord) -> ObjectRecord:
    is_over = found.delete_after_time_ms is not None and found.delete_after_time_ms <= now_ms()
    return replace(found, state=DELETED) if is_over else found


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack what a stranger packed: nothing is put, and no link leads, out of the folder. Raises TarError, OSError."""
    folder.mkdir(mode=0o700)
    count, room = 0, MAX_UNPACKED_BYTES

    def judge(entry: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal count, room
        count, room = count + 1, room - entry.size
        if count > MAX_FILES or room < 0:
            raise tarfile.TarError(f"it has more than {MAX_FILES:,} files or {MAX_UNPACKED_BYTES:,} bytes")
        return tarfile.data_filter(entry, path)

    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter=judge)  # noqa: S202 - each is judged
