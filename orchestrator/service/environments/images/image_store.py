"""The images of this machine's user: layers unpacked once, shared by all images that begin alike and all processes.

Its secret: the layout below the cache folder. `layers/CHAIN/l/fs` is a layer as a kernel overlay reads it; CHAIN is a
digest of it and of all layers below it (the chain id of image-spec, `config.md`), since what a hard link or a folder's
mode means depends on those, and of the ids that its files have on this machine. `blobs/` has what is being downloaded,
and `names/` says which layers an image has. A layer is made in a folder of its own and counts only with its
description, which is written when all of it is on the disk. `fs` may belong to an id that a user was lent; `l` is his
own, so that he can move it.

Names are short: the kernel takes the paths of all layers of an overlay in one page of memory.

What is used is held by leases, and everything else may go when room is needed. Who lacks room gets an error at once,
and waits without a lease: two that wait never hold what the other needs.
"""

import fcntl
import gzip
import os
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import new, sha256
from pathlib import Path
from secrets import token_hex
from typing import IO, Any, Final, Protocol

import anyio
import msgspec
import orjson
import structlog
import zstandard
from anyio.to_thread import run_sync

from orchestrator.core.errors import leaf
from orchestrator.core.printable import byte_size, counted
from orchestrator.core.protocol import Mirror
from orchestrator.service.environments.images import engine
from orchestrator.service.environments.images.manifest import (
    BadImage,
    Descriptor,
    ImageConfig,
    ImageError,
    Manifest,
    Platform,
    check_layers,
    ours,
    read,
)
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.images.registry import NoSuchImage, Refused, Registries, Tell, Unavailable
from orchestrator.service.environments.images.room import Need, NoRoom, NoRoomYet, Room
from orchestrator.service.environments.images.unpack import FULL, NO_ROOM
from orchestrator.service.sandbox.build_cache import Build, Built, UserCache, check_private, lock_folder
from orchestrator.service.sandbox.bwrap.overlay import nested
from orchestrator.service.sandbox.user_namespace import IdMap, UserNamespace

#: Blobs that come at the same time.
MAX_DOWNLOADS: Final = 4
#: Characters of a digest in a folder's name.
_NAME_CHARS: Final = 20
_CHUNK_BYTES: Final = 1 << 18
_TREE: Final = "l"
_POLL_S: Final = 0.25
#: What the name of an image is written as first, while `deciding`.
_DRAFT: Final = ".draft"
_UNPACK: Final = Path(__file__).with_name("unpack.py")
#: Bytes that a command is expected to leave while there are no others.
_RUN_BYTES: Final = 500_000_000
#: Bytes that one layer may take, uncompressed.
MAX_LAYER_BYTES: Final = 64 << 30


Download = Callable[[Descriptor, Path, Tell], Awaitable[None]]


class DiskFull(ImageError):
    """The disk filled up while a layer was unpacked."""


@dataclass(slots=True, eq=False)
class Lease:
    """The layers of one use: from when they are got with it until it ends, no process removes them."""

    end: Callable[["Lease"], None]
    chains: set[str] = field(default_factory=set)


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is there: the digest of its manifest, its configuration, and chain names of its layers."""

    reference: str
    digest: str
    config: ImageConfig
    chains: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """An image to start boxes from: `layers` are the folders of its layers, from the lowest up."""

    image: Image
    layers: tuple[Path, ...]


class Source(Protocol):
    """Where images come from: registries, or a file. Methods raise ImageError and OSError."""

    async def manifest(self, reference: Reference, platform: Platform) -> tuple[str, Manifest]: ...

    async def document(self, reference: Reference, blob: Descriptor) -> bytes: ...

    async def download(self, reference: Reference, blob: Descriptor, target: Path, tell: Tell) -> None: ...


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a pull has come: it is kept by the pull, and read while that works.

    Bytes are those of blobs, packed as they come; layers count as ready once they are unpacked. `origin` says where
    they come from, once that is known.
    """

    origin: str = ""
    expected_bytes: int = 0
    came_bytes: int = 0
    layers: int = 0
    ready: int = 0

    def tell(self, came: int) -> None:
        self.came_bytes += came

    def __str__(self) -> str:
        sizes = f"{byte_size(self.came_bytes)} of {byte_size(self.expected_bytes)}"
        return f"{sizes}, {self.ready} of {counted(self.layers, 'layer')} unpacked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an image takes: `size` of the files in its layers in bytes, and how much of it other images have too.

    `used_at` is the time of its last use, in seconds since 1970.
    """

    reference: str
    digest: str
    size: int
    shared: int
    used_at: float


@dataclass(slots=True)
class ImageStore:
    """The images below `cache/images`, with the ids of `namespace`; `engines` are sockets of this machine's engines."""

    cache: Path
    registries: Registries
    namespace: UserNamespace
    engines: Sequence[Path] = ()
    #: Bytes that the files of all images may take together; None leaves them the disk.
    budget: int | None = None
    _layers: UserCache[Path] = field(init=False)
    _downloads: anyio.CapacityLimiter = field(init=False)
    _room: Room = field(init=False)
    _leases: set[Lease] = field(default_factory=set)
    #: What is got without a lease, for as long as the store lives.
    _kept: Lease = field(init=False)

    def __post_init__(self) -> None:
        self._downloads = anyio.CapacityLimiter(MAX_DOWNLOADS)
        self._room = Room(folder=self.cache / "images", budget=self.budget)
        self._kept = self.lease()
        self._layers = UserCache(
            self.cache / "images",
            "layers",
            kind="layer",
            tree=_TREE,
            read=lambda built: built.tree / "fs",
            measure=lambda _: [],
        )

    def lease(self) -> Lease:
        """Begin a use of layers. Its owner ends it."""

        def end(lease: Lease) -> None:
            self._leases.discard(lease)
            self._layers.release(lease.chains.difference(*(each.chains for each in self._leases)))

        lease = Lease(end)
        self._leases.add(lease)
        return lease

    def narrow(self, lease: Lease, layers: Iterable[Path]) -> None:
        """Let a lease hold these layers only."""
        kept, lease.chains = lease.chains, {layer.parents[1].name for layer in layers}
        self._layers.release(kept.difference(*(each.chains for each in self._leases)))

    async def hold(self, chains: Collection[str], lease: Lease | None = None) -> tuple[Path, ...] | None:
        """Return the folders of layers; None if one of them is not there. Raises OSError."""
        found = await self._hold_found(chains, lease)
        layers = tuple(layer for layer in found if layer is not None)
        return layers if len(layers) == len(found) else None

    async def _hold_found(self, chains: Collection[str], lease: Lease | None) -> Sequence[Path | None]:
        """Hold the layers that are there, and return the folder of each; None for one that is not. Raises OSError."""
        (lease or self._kept).chains.update(chains)  # before the look: another lease of them may end
        return [await run_sync(self._layers.find, chain) for chain in chains]

    async def get(
        self, reference: Reference, *, lease: Lease | None = None, progress: Progress | None = None
    ) -> Unpacked:
        """Return an image, pulled now if it is not there whole. Raises as `pull`."""
        image = await run_sync(self.find, reference)
        if image is not None and (layers := await self.hold(image.chains, lease)) is not None:
            return Unpacked(image=image, layers=layers)
        return await self.pull(reference, lease=lease, progress=progress)

    async def layer(self, key: str, build: Build, lease: Lease | None = None) -> Path:
        """Return the folder of the layer that `key` names, made now by `build`, in a folder `l/fs`, if it is not there.

        Raises what `build` raises, and OSError.
        """
        await run_sync(self._open_folder)
        name = self._chain_of(key)
        (lease or self._kept).chains.add(name)
        return await self._layers.get(name, build)

    async def hold_layer(self, key: str, lease: Lease | None = None) -> bool:
        """Hold the layer that `key` names; False if it is not there. Raises OSError."""
        return await self.hold([self._chain_of(key)], lease) is not None

    def discard_layer(self, key: str) -> bool:
        """Remove the layer that `key` names; False if it is in use. Blocking. Raises OSError."""
        return self._layers.discard(self._chain_of(key))

    def keep_built(self, reference: Reference, key: str, layers: Sequence[Path]) -> None:
        """Give an image that was built a name. Blocking. Raises NoRoom where it takes more than all may; OSError."""
        chains = tuple(layer.parents[1].name for layer in layers)
        self._check_size(str(reference), chains)
        self._keep_name(reference, Image(reference=str(reference), digest=key, config=ImageConfig(), chains=chains))

    def _chain_of(self, key: str) -> str:
        (name,) = chain_names([key], self.namespace.ids)
        return name

    def find(self, reference: Reference) -> Image | None:
        """Return what is known of an image that was pulled once; its layers may be gone. Blocking. Raises OSError."""
        try:
            return msgspec.json.decode(self._name_file(reference).read_bytes(), type=Image)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    async def pull(
        self,
        reference: Reference,
        *,
        source: Source | None = None,
        lease: Lease | None = None,
        progress: Progress | None = None,
    ) -> Unpacked:
        """Get what is not there yet of an image from the source, by default from wherever it can be had.

        An image that is not here is looked for in this machine's engines, then in the registries. For one that is here
        already the registries are asked first: they may have a newer one. Raises ImageError, with NoRoomYet if other
        images are in the way that are used now, and OSError.
        """
        progress = progress or Progress()
        await run_sync(self._open_folder)
        if source is not None:
            return await self._pull(reference, source, lease, progress)
        is_new = await run_sync(self.find, reference) is None
        if is_new and (found := await self._pull_saved(reference, lease, progress)):
            return found
        progress.origin = "its registry"
        try:
            return await self._pull(reference, self.registries, lease, progress)
        except (NoSuchImage, Refused, Unavailable):
            if not is_new and (found := await self._pull_saved(reference, lease, progress)):
                return found
            raise

    async def _pull_saved(self, reference: Reference, lease: Lease | None, progress: Progress) -> Unpacked | None:
        """Get an image from an engine of this machine; None if none has it. Raises ImageError and OSError."""
        place = self.cache / "images/blobs" / f"saved-{token_hex(8)}"
        for socket in self.engines:
            place.parent.mkdir(mode=0o700, exist_ok=True)
            lock = await run_sync(lock_folder, place, fcntl.LOCK_EX)
            assert lock is not None
            try:
                if archive := await engine.save(socket, reference, place / "archive"):
                    progress.origin = f"the engine at {socket}"
                    return await self._pull(reference, archive, lease, progress)
            finally:
                os.close(lock)
                with anyio.CancelScope(shield=True):
                    await run_sync(_clear, place)
        return None

    async def _pull(self, reference: Reference, source: Source, lease: Lease | None, progress: Progress) -> Unpacked:
        """Raises ImageError and OSError."""
        digest, manifest = await source.manifest(reference, ours())
        data = await source.document(reference, manifest.config)
        config = read(data, ImageConfig, f"the configuration of {reference}")
        check_layers(manifest, config, str(reference))
        chains = tuple(chain_names(config.rootfs.diff_ids, self.namespace.ids))
        found = await self._hold_found(chains, lease)
        blobs = [blob for blob, layer in zip(manifest.layers, found, strict=True) if layer is None]
        async with self.room(Need.of(blobs), what=str(reference), keep=frozenset(chains)):
            fetch = partial(self._layers_of, partial(source.download, reference), manifest, config, chains, progress)
            try:
                layers = await fetch()
            except (DiskFull, OSError) as error:
                if isinstance(error, OSError) and error.errno not in FULL:
                    raise
                if not await run_sync(self._make_way, frozenset(chains)):
                    raise
                layers = await fetch()
            image = Image(reference=str(reference), digest=digest, config=config, chains=chains)
            await run_sync(self._check_size, str(reference), chains)
            await run_sync(self._keep_name, reference, image)
        structlog.get_logger().info("image.pulled", reference=str(reference), digest=digest, origin=progress.origin)
        return Unpacked(image=image, layers=layers)

    @asynccontextmanager
    async def room(self, need: Need, *, what: str, keep: Collection[str] = ()) -> AsyncIterator[None]:
        """Have room for bytes that are written meanwhile; other images than those of the layers `keep` may go for it.

        Raises NoRoomYet, NoRoom and OSError; `what` is what needs it.
        """
        await run_sync(self._open_folder)
        note = await run_sync(self._make_room, need, what, keep)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(note.close)
                await run_sync(self.come_back, keep)

    def _make_room(self, need: Need, what: str, keep: Collection[str]) -> ExitStack:
        """Return the note of what is about to be written. Blocking. Raises NoRoomYet, NoRoom and OSError."""
        note = ExitStack()
        if not need.likely:
            return note
        self._check_size(what, keep, need.least)
        with self._room.deciding():
            expected = self._room.expected()

            def short(size: int) -> int:
                return self._room.shortage(self.size(), expected + size)

            self._evict(lambda: short(need.likely) > 0, keep)
            size = need.likely
            if short(size) > 0:
                words = f"{what} needs about {byte_size(size)}, and {self._room} has not that much left"
                if expected or any(chain not in keep for chain in self._layers.names()):
                    raise NoRoomYet(f"{words} while other images are in use", need, keep)
                size = need.least
                if short(size) > 0:
                    raise NoRoom(f"{words}: make room on that disk, or raise --image-cache")
            note.enter_context(self._room.noted(size))
        return note

    def has_room(self, lacking: NoRoomYet) -> bool:
        """Tell whether it is worth another try for somebody who lacked room. Blocking. Raises OSError."""
        try:
            self._make_room(lacking.need, "", lacking.keep).close()
        except NoRoomYet:
            return False
        except NoRoom:
            pass
        return True

    def come_back(self, keep: Collection[str] = ()) -> None:
        """Come back below the budget after more was written than was expected, by what nobody uses now. Blocking."""
        if self.budget is not None:
            with suppress(OSError), self._room.deciding():
                self._evict(lambda: self._room.shortage(self.size(), 0) > 0, keep)

    def _make_way(self, keep: Collection[str]) -> int:
        """Remove all that nobody uses; returns how many images. Blocking. Raises OSError."""
        with self._room.deciding():
            return self._evict(lambda: True, keep)

    def _check_size(self, what: str, chains: Iterable[str], more: int = 0) -> None:
        """Raise NoRoom for an image that is larger than all may be together."""
        size = more + sum(self._size_of(chain) for chain in set(chains))
        if self.budget is not None and size > self.budget:
            raise NoRoom(
                f"{what} takes {byte_size(size)}, and all images may take {byte_size(self.budget)}: raise --image-cache"
            )

    def _evict(self, is_needed: Callable[[], bool], keep: Collection[str]) -> int:
        """Remove what nobody uses, the least recently used first, while more room is needed; returns how many images.

        Call it while `deciding`. A layer goes with the last image that has it. Blocking. Raises OSError.
        """
        tried, gone = set[str](), 0
        while is_needed():
            images = self._images()
            owners = Counter(chain for image in images for chain in set(image.chains))
            units: list[tuple[float, str, list[str], Reference | None]] = [
                (self._layers.used_at(chain), chain, [chain], None)
                for chain in self._layers.names()
                if not owners[chain] and chain not in keep
            ]
            for image in images:
                own = [chain for chain in reversed(image.chains) if owners[chain] == 1 and chain not in keep]
                if own:
                    when = self._layers.used_at(image.chains[-1])
                    units.append((when, image.reference, own, Reference.parse(image.reference)))
            unit = min((unit for unit in units if unit[1] not in tried), default=None)
            if unit is None:
                break
            tried.add(unit[1])
            gone += self._discard(unit[2], unit[3])
        return gone

    def _discard(self, own: Sequence[str], reference: Reference | None) -> bool:
        """Remove layers, the uppermost first, and the name of their image; False if they are in use."""
        if own and not self._layers.discard(own[0]):
            return False
        if reference is not None:
            self._name_file(reference).unlink(missing_ok=True)
        for chain in own[1:]:
            self._layers.discard(chain)
        return True

    def _open_folder(self) -> None:
        """Make the folder of all images one that nobody else can enter: it has programs that run as others (setuid)."""
        self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(self.cache)
        (self.cache / "images").mkdir(mode=0o700, exist_ok=True)
        (self.cache / "images").chmod(0o700)

    async def _layers_of(
        self, download: Download, manifest: Manifest, config: ImageConfig, chains: Sequence[str], progress: Progress
    ) -> tuple[Path, ...]:
        """Return the folders of the layers: the missing ones come side by side, and are unpacked from the lowest up."""
        layers: list[Path] = []
        progress.layers, progress.ready = len(chains), 0
        with ExitStack() as held:
            async with _ungrouped(), anyio.create_task_group() as tasks:
                arrivals = [anyio.Event() for _ in chains]
                places = [  # a blob of another packing is another file
                    self.cache / "images/blobs" / f"{chain}-{_short(blob.digest)}" / "blob"
                    for chain, blob in zip(chains, manifest.layers, strict=True)
                ]
                for chain, blob, place, arrival in zip(chains, manifest.layers, places, arrivals, strict=True):
                    tasks.start_soon(self._download, download, chain, blob, place, progress, arrival, held)
                for chain, diff_id, place, arrival in zip(
                    chains, config.rootfs.diff_ids, places, arrivals, strict=True
                ):
                    await arrival.wait()
                    layers.append(await self._layers.get(chain, partial(self._unpack, place, diff_id, tuple(layers))))
                    await run_sync(_empty, place.parent)
                    progress.ready += 1
        return tuple(layers)

    async def _download(
        self,
        download: Download,
        chain: str,
        blob: Descriptor,
        place: Path,
        progress: Progress,
        arrival: anyio.Event,
        held: ExitStack,
    ) -> None:
        """Get the blob of a layer, unless that is there. One pull gets it, and others wait until that has unpacked it.

        Until `held` ends nobody else removes the blob.
        """
        async with self._downloads:
            place.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            while (lock := await run_sync(lock_folder, place.parent, fcntl.LOCK_EX)) is None:  # noqa: ASYNC110
                await anyio.sleep(_POLL_S)
            held.callback(os.close, lock)
            if await run_sync(self._layers.find, chain) is None:
                progress.expected_bytes += blob.size
                await download(blob, place, progress.tell)
        arrival.set()

    async def _unpack(self, blob: Path, diff_id: str, lowers: Sequence[Path], folder: Path) -> Built:
        """Unpack a layer below `folder`. Raises BadImage and OSError."""
        unpacker = await run_sync(self._start_unpacker, lowers, folder)
        try:
            found = await run_sync(_pour, blob, diff_id.partition(":")[0], unpacker, abandon_on_cancel=True)
        finally:
            unpacker.kill()
            with anyio.CancelScope(shield=True):
                said = await run_sync(_said, unpacker)
        words = said.decode(errors="replace").strip()
        if unpacker.returncode == NO_ROOM:
            raise DiskFull(
                f"layer {diff_id} finds no room below {self.cache}: {words}; `sweep images prune` makes some"
            )
        if unpacker.returncode != 0:
            if where := nested(folder):
                raise OSError(f"layer {diff_id} cannot be unpacked ({words}): {where}")
            await run_sync(partial(blob.unlink, missing_ok=True))
            raise BadImage(f"layer {diff_id} cannot be unpacked: {words}")
        if found != diff_id:
            await run_sync(partial(blob.unlink, missing_ok=True))
            raise BadImage(f"layer {diff_id} is not what its image says: its digest is {found}")
        facts = orjson.loads(said)
        structlog.get_logger().info("image.layer_unpacked", layer=diff_id, **facts)
        return Built(tree=folder / _TREE, facts={"diff_id": diff_id, **facts})

    def _start_unpacker(self, lowers: Sequence[Path], folder: Path) -> "subprocess.Popen[bytes]":
        tree = folder / _TREE
        tree.mkdir()
        # The namespace's root may be a stranger here; the folders above are closed to all others.
        folder.chmod(0o711)
        tree.chmod(0o777)
        opened = [os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW) for lower in lowers]
        try:
            most = min(MAX_LAYER_BYTES, self.budget or MAX_LAYER_BYTES)
            limits = (self.namespace.fd, self.namespace.ids.count, most, *opened)
            return subprocess.Popen(
                [sys.executable, "-I", "-S", os.fspath(_UNPACK), *map(str, limits)],
                cwd=tree,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(self.namespace.fd, *opened),
            )
        finally:
            for lower in opened:
                os.close(lower)

    def _keep_name(self, reference: Reference, image: Image) -> None:
        file = self._name_file(reference)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_suffix(_DRAFT)
        with self._room.deciding():
            draft.write_bytes(msgspec.json.encode(image))
            draft.replace(file)

    def usages(self) -> Sequence[Usage]:
        """Return what each image takes, by name; layers that are gone count as nothing. Blocking. Raises OSError."""
        images = self._images()
        sizes = {chain: self._size_of(chain) for image in images for chain in image.chains}
        owners = Counter(chain for image in images for chain in set(image.chains))
        return [
            Usage(
                reference=image.reference,
                digest=image.digest,
                size=sum(sizes[chain] for chain in set(image.chains)),
                shared=sum(sizes[chain] for chain in set(image.chains) if owners[chain] > 1),
                used_at=self._layers.used_at(image.chains[-1]) if image.chains else 0.0,
            )
            for image in images
        ]

    def size(self, chains: Iterable[str] | None = None) -> int:
        """Return the bytes of the files in all layers, or in some. Blocking. Raises OSError."""
        return sum(map(self._size_of, self._layers.names() if chains is None else chains))

    def layer_facts(self) -> Iterator[Mapping[str, Any]]:
        """Yield the descriptions of all layers. Blocking. Raises OSError."""
        for chain in self._layers.names():
            if (facts := self._layers.facts(chain)) is not None:
                yield facts

    def run_bytes(self) -> int:
        """Return what a command of a Dockerfile may leave: as much as others did, on average. Blocking.

        Raises OSError.
        """
        left = [int(facts["bytes"]) for facts in self.layer_facts() if facts.get("is_run")]
        return sum(left) // len(left) if left else _RUN_BYTES

    def capacity(self) -> int:
        """Return the bytes that all images may take together. Blocking. Raises OSError."""
        self._open_folder()
        return self.size() - self._room.shortage(self.size(), 0)

    def remove(self, reference: Reference) -> bool:
        """Remove an image, and the layers that no other one has; False if a process uses it.

        Blocking. Raises NoSuchImage and OSError.
        """
        image = self.find(reference)
        if image is None:
            there = ", ".join(each.reference for each in self._images()) or "none"
            raise NoSuchImage(f"{reference} is not here; there are: {there}")
        with self._room.deciding():
            if image.chains and self._layers.is_used(image.chains[-1]):
                return False
            others = {chain for each in self._images() if each.reference != image.reference for chain in each.chains}
            own = [chain for chain in reversed(image.chains) if chain not in others]
            return self._discard(own, reference)

    def prune(self) -> Sequence[str]:
        """Remove the layers that no process uses, the names of images that lost one by it, and parts of downloads.

        Return the names of the others: they are in use, or one that is was built on them. Blocking. Raises OSError.
        """
        self._open_folder()
        with self._room.deciding():
            for chain in self._layers.names():
                self._layers.discard(chain)
            in_use = []
            for image in self._images():
                if image.chains and all(self._layers.facts(chain) is not None for chain in image.chains):
                    in_use.append(image.reference)
                else:
                    self._name_file(Reference.parse(image.reference)).unlink(missing_ok=True)
            for draft in (self.cache / "images/names").glob(f"*{_DRAFT}"):
                draft.unlink()
        blobs = self.cache / "images/blobs"
        for place in blobs.iterdir() if blobs.is_dir() else ():
            _clear(place)
        return in_use

    def _images(self) -> Sequence[Image]:
        """Return all images that have a name here, by name."""
        found = []
        for file in (self.cache / "images/names").glob("*.json"):
            with suppress(FileNotFoundError, msgspec.DecodeError):  # removed meanwhile; of another version
                found.append(msgspec.json.decode(file.read_bytes(), type=Image))
        return sorted(found, key=lambda image: image.reference)

    def _size_of(self, chain: str) -> int:
        """Bytes of a layer's files; 0 for one that is gone."""
        facts = self._layers.facts(chain)
        return int(facts["bytes"]) if facts else 0

    def _name_file(self, reference: Reference) -> Path:
        return self.cache / "images/names" / f"{_short(str(reference))}.json"


@asynccontextmanager
async def _ungrouped() -> AsyncIterator[None]:
    """Let an error that a task group has wrapped pass as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise leaf(group) from None


@asynccontextmanager
async def open_images(
    cache: Path, mirrors: Sequence[Mirror] = (), budget: int | None = None
) -> AsyncIterator[ImageStore]:
    """Open this user's images below `cache`, which take `budget` bytes together at most.

    `mirrors` are asked before the registries. Raises BoxStartFailed.
    """
    namespace = await UserNamespace.make(IdMap.own())
    try:
        async with Registries.open(mirrors=mirrors) as registries:
            engines = engine.sockets()
            store = ImageStore(cache=cache, registries=registries, namespace=namespace, engines=engines, budget=budget)
            yield store
            await run_sync(store.come_back)
    finally:
        namespace.close()


def chain_names(diff_ids: Sequence[str], ids: IdMap) -> Iterator[str]:
    """Yield a name for each layer and those below it; files of other ids are other files."""
    chain = "" if ids == IdMap(user=0, group=0) else f"{ids.user} {ids.group} {ids.count} {ids.outside}"
    for diff_id in diff_ids:
        chain = _short(f"{chain} {diff_id}")
        yield chain


def _clear(place: Path) -> None:
    """Remove the folder of a blob, unless somebody is at work there. Blocking. Raises OSError."""
    if (lock := lock_folder(place, fcntl.LOCK_EX)) is None:
        return
    try:
        _empty(place)
    finally:
        os.close(lock)


def _empty(place: Path) -> None:
    """Remove the folder of a blob, whose lock is ours and ends with it. Blocking. Raises OSError."""
    for left in place.iterdir():
        left.unlink()
    with suppress(OSError):  # somebody is there again
        place.rmdir()


def _short(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:_NAME_CHARS]


def _pour(blob: Path, algorithm: str, unpacker: "subprocess.Popen[bytes]") -> str:
    """Give the program the archive in a blob; returns the archive's digest. Raises BadImage and OSError. Blocking."""
    assert unpacker.stdin is not None
    digest = new(algorithm, usedforsecurity=False)
    try:
        with blob.open("rb") as file, _archive(file) as archive, suppress(BrokenPipeError):
            while piece := archive.read(_CHUNK_BYTES):
                digest.update(piece)
                unpacker.stdin.write(piece)
            unpacker.stdin.close()
            unpacker.wait()  # it is still writing
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        blob.unlink(missing_ok=True)
        raise BadImage(f"the blob of a layer is damaged: {error}") from error
    return f"{algorithm}:{digest.hexdigest()}"


def _said(unpacker: "subprocess.Popen[bytes]") -> bytes:
    """Return what an ended program printed. Blocking."""
    with suppress(BrokenPipeError), unpacker:
        assert unpacker.stdout is not None
        return unpacker.stdout.read()
    return b""


def _archive(file: IO[bytes]) -> "IO[bytes] | gzip.GzipFile | zstandard.ZstdDecompressionReader":
    """Open the archive in a blob, by its first bytes: media types are not always true."""
    start = file.read(4)
    file.seek(0)
    if start[:2] == b"\x1f\x8b":
        return gzip.open(file)
    if start == b"\x28\xb5\x2f\xfd":
        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return file
