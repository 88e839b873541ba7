"""Images built of Dockerfiles: each step in a box of what the steps before have left, and kept as a layer.

Commands run in the same boxes as agents, with the network, and with this machine's settings of package managers, which
no layer keeps. Copies are put in place by a program in such a box too: links and archives of strangers lead to nothing
but that box. A layer is named by the chain of all that decided it, and shared by all scenarios of this machine's user,
so that a step that many begin with is taken once.

A step that failed by itself fails at once for all who need it within the next hour: a benchmark has many trials of a
scenario. One whose time or disk ran out, or whose box ended, is tried again by the next.

A build that lacks room lets go of everything, waits, and begins again with the layers that are there.
"""

import errno
import os
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryFile
from typing import IO, Any, Final, cast

import anyio
import orjson
import structlog
from anyio.to_thread import run_sync

from orchestrator.core.errors import leaf
from orchestrator.service.content import Node, open_file
from orchestrator.service.environments.build_context import BuildContext, Patterns, normal, split_source
from orchestrator.service.environments.build_outline import DockerfileError
from orchestrator.service.environments.build_plan import SCRIPTS, plan_text
from orchestrator.service.environments.build_steps import (
    BaseImage,
    BuildLayer,
    BuildMount,
    BuildPlan,
    BuildStage,
    BuildStep,
    CopyStep,
    FetchStep,
    FolderStep,
    FromContext,
    FromImage,
    FromStage,
    Origin,
    RunStep,
    StageConfig,
    TextFile,
    origins_of,
)
from orchestrator.service.environments.images.image_store import ImageStore, Lease, Progress, Unpacked
from orchestrator.service.environments.images.manifest import BadImage, Defaults, ImageError, ours
from orchestrator.service.environments.images.reference import BadReference, Reference
from orchestrator.service.environments.images.registry import NoSuchImage
from orchestrator.service.environments.images.room import Need, NoRoom, NoRoomYet
from orchestrator.service.environments.layer_writer import FILE
from orchestrator.service.environments.package_managers import MACHINE, Settings
from orchestrator.service.sandbox.build_cache import Built
from orchestrator.service.sandbox.closure import PROGRAM
from orchestrator.service.sandbox.commands import CHUNK_BYTES, Finished, ReadChunk, collect, run
from orchestrator.service.sandbox.prepared import Preparation
from orchestrator.service.sandbox.provider import (
    GIB,
    Box,
    BoxDied,
    BoxNetwork,
    BoxSpec,
    BoxStartFailed,
    Capability,
    Command,
    ImageRoot,
    Provider,
    Resources,
)
from orchestrator.service.sandbox.safe_fs import disk_usage

#: A build needs more than most scenarios do.
_LEAST: Final = Resources(cpus=2.0, memory=4 * GIB, disk=32 * GIB, processes=8192)
#: Bytes of a command's output in memory, each stream, and characters of its end in a message.
_KEPT_BYTES: Final = 32 << 20
_SHOWN_CHARS: Final = 2000
#: Characters of the end of a step's output in the log of a build.
_SAID_CHARS: Final = 1 << 16
#: Seconds for which a step that failed is not tried again.
_FAILED_S: Final = 3600.0
#: Seconds after which who lacked room looks what it lacks now; and pause between two looks for room.
_ROOM_PATIENCE_S: Final = 30.0
_ROOM_PAUSE_S: Final = 1.0
#: The time of files that come with a Dockerfile, in seconds since 1970: 2000-01-01. A zip takes none before 1980.
_FILE_TIME_S: Final = 946_684_800
_WRITER: Final = Path(__file__).with_name("layer_writer.py")
_TREE: Final = "l"
#: Modes of the folders of mounts that say none, where they are not 755.
_MOUNT_MODES: Final = {"tmpfs": 0o1777}


Tell = Callable[[str], Awaitable[None]]


async def untold(_message: str) -> None:
    """Say nothing of a build."""


class BuildFailed(BoxStartFailed):
    """A step of a Dockerfile failed; the message names its line and shows the end of its output."""


class StepFailed(BuildFailed):
    """A step ended with a status of its own, and would the next time too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSource:
    """A Dockerfile's `text`, its name in messages, and the files that it may copy; `timeout` is for all its commands.

    `timeout` is in seconds, and `limit` names it in messages. The image that is built gets the name `reference`.
    `arguments` are the values of its ARGs. Steps and what they print are said to `tell`.
    """

    text: str
    file: str
    reference: Reference
    context: BuildContext
    resources: Resources
    timeout: float
    limit: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    tell: Tell = untold


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image that was built, ready for boxes, and how its containers start."""

    root: ImageRoot
    config: StageConfig


class ImageBuilds:
    """Builds images of Dockerfiles with boxes of `provider`, on the images of `store`, and into it.

    One that `is_rebuilding` makes every layer anew that nobody uses.
    """

    def __init__(self, store: ImageStore, provider: Provider, *, is_rebuilding: bool = False) -> None:
        self._is_rebuilding = is_rebuilding
        self.store = store
        self._provider = provider
        self._failed: dict[str, tuple[float, str]] = {}
        self._turns: defaultdict[Reference, anyio.Lock] = defaultdict(anyio.Lock)

    async def build(self, source: BuildSource, preparation: Preparation) -> BuiltImage:
        """Build the last stage of a Dockerfile, as far as its layers are not there yet; one task builds an image.

        Raises BuildFailed, BoxStartFailed for what may be otherwise the next time, and OSError.
        """
        preparation.doing = partial(str, f"waiting for another build of {source.reference}")
        async with self._turns[source.reference]:
            return await self._build_in_turn(source, preparation)

    async def _build_in_turn(self, source: BuildSource, preparation: Preparation) -> BuiltImage:
        while True:
            lease = self.store.lease()
            undo = preparation.held.enter_context(ExitStack())
            undo.callback(lease.end, lease)
            try:
                return await self._build(source, preparation, lease)
            except NoRoomYet as error:
                undo.close()
                if preparation.is_early:
                    raise BoxStartFailed(error.message) from None
                preparation.doing = partial(str, f"waiting for room: {error}")
                lacking = error
            except (DockerfileError, BadReference, NoSuchImage, BadImage, NoRoom) as error:
                raise BuildFailed(str(error)) from None
            except ImageError as error:  # it may be had later
                raise BoxStartFailed(error.message) from None
            with anyio.move_on_after(_ROOM_PATIENCE_S):  # another process may have made what lacked room
                while not await run_sync(self.store.has_room, lacking):  # noqa: ASYNC110 - it announces nothing
                    await anyio.sleep(_ROOM_PAUSE_S)

    async def hold(self, root: ImageRoot, preparation: Preparation) -> bool:
        """Keep the layers of an image that was built; False if it is not whole any more. Raises OSError."""
        lease = self.store.lease()
        with ExitStack() as undo:
            undo.callback(lease.end, lease)
            if await self.store.hold([layer.parents[1].name for layer in root.layers], lease) is None:
                return False
            preparation.held.push(undo.pop_all())
        return True

    async def _build(self, source: BuildSource, preparation: Preparation, lease: Lease) -> BuiltImage:
        """Raises as `build`, and NoRoomYet, ImageError and DockerfileError."""
        images: dict[str, Unpacked] = {}
        while True:
            known = {reference: _base_image(image) for reference, image in images.items()}
            read = partial(
                plan_text,
                source.text,
                source.context,
                file=source.file,
                platform=str(ours()),
                build_args=source.arguments,
                images=known,
            )
            plan = await run_sync(read)
            if refused := refusals(plan):
                raise DockerfileError(source.file, refused)
            missing = [each for each in plan.images if each.reference not in images]
            if not missing:
                return await self._carry_out(source, plan, images, preparation, lease)
            for each in missing:
                await source.tell(f"FROM {each.reference}")
                images[each.reference] = await self._image(each, preparation, lease)

    async def _image(self, wanted: FromImage, preparation: Preparation, lease: Lease) -> Unpacked:
        """Get an image for this machine. Raises ImageError and OSError."""
        progress = Progress()
        preparation.doing = lambda: f"pulling {wanted.reference}: {progress}"
        return await self.store.get(Reference.parse(wanted.reference), lease=lease, progress=progress)

    async def _carry_out(
        self,
        source: BuildSource,
        plan: BuildPlan,
        images: Mapping[str, Unpacked],
        preparation: Preparation,
        lease: Lease,
    ) -> BuiltImage:
        build = _Build(
            source=source,
            images=images,
            store=self.store,
            provider=self._provider,
            failed=self._failed,
            seconds_left=source.timeout,
            preparation=preparation,
            lease=lease,
        )
        if self._is_rebuilding:
            for layer in reversed([layer for stage in plan.stages for layer in stage.layers]):
                await run_sync(self.store.discard_layer, layer.key)
        stages, new = await self._wanted(plan, lease)
        need = await run_sync(self._need_of, new)
        async with self.store.room(need, what=str(source.reference), keep=frozenset(lease.chains)):
            for stage in stages:
                below = build.layers_of(stage.base)
                for layer in stage.layers:
                    below = (*below, await build.layer(layer, below))
                build.stages[stage.number] = below
        target = plan.target
        root = ImageRoot(layers=build.stages[target.number])
        if any(stage.layers for stage in stages):
            await run_sync(self.store.keep_built, source.reference, target.key, root.layers)
        self.store.narrow(lease, root.layers)  # not those of other stages
        return BuiltImage(root=root, config=target.config)

    async def _wanted(self, plan: BuildPlan, lease: Lease) -> tuple[list[BuildStage], list[BuildLayer]]:
        """Return the stages that are read now, and their layers that are not here; the lease holds the others.

        What only layers that are here have read is not made again. Raises OSError.
        """
        numbers, stages, new = {plan.target.number}, list[BuildStage](), list[BuildLayer]()
        for stage in reversed(plan.stages):
            if stage.number in numbers:
                stages.insert(0, stage)
                missing = [layer for layer in stage.layers if not await self.store.hold_layer(layer.key, lease)]
                new += missing
                origins = [
                    stage.base,
                    *(origin for layer in missing for step in layer.steps for origin in origins_of(step)),
                ]
                numbers |= {origin.number for origin in origins if isinstance(origin, FromStage)}
        return stages, new

    def _need_of(self, layers: Iterable[BuildLayer]) -> Need:
        """Estimate what layers take that are to be built: of files that are copied it is known.

        Blocking. Raises OSError.
        """
        steps = [step for layer in layers for step in layer.steps]
        copied = sum(
            node.size
            for step in steps
            if isinstance(step, CopyStep)
            for source in step.sources
            for _, node in source.files
        )
        runs = sum(isinstance(step, RunStep | FetchStep) for step in steps)
        return Need(least=copied, likely=copied + runs * self.store.run_bytes())


def refusals(plan: BuildPlan) -> list[tuple[int, str]]:
    """Return what a plan asks for that no build here has, as (line, why); nothing has to be fetched to know it."""
    found = []
    for stage in plan.stages:
        if isinstance(stage.base, FromImage) and stage.base.platform != str(ours()):
            why = f"{stage.base.reference} is wanted for {stage.base.platform}, and this machine runs {ours()}"
            found.append((stage.line, f"FROM: {why}"))
        for step in (step for layer in stage.layers for step in layer.steps):
            if isinstance(step, FetchStep) and step.is_git:
                found.append((step.line, "ADD: a repository cannot be added here: clone it by a RUN"))
            mounts = step.mounts if isinstance(step, RunStep) else ()
            secrets = [mount.id for mount in mounts if mount.kind == "secret" and mount.is_required]
            found += [(step.line, f"RUN: the secret {each} is required, and builds here have none") for each in secrets]
    return found


def _base_image(image: Unpacked) -> BaseImage:
    """Return what a plan has to know of an image."""
    given = image.image.config.config or Defaults()
    pairs = (each.partition("=") for each in given.env or ())
    usual = StageConfig()
    return BaseImage(
        digest=image.image.digest,
        config=StageConfig(
            environment={name: value for name, _, value in pairs},
            working_directory=given.working_dir,
            user=given.user,
            shell=tuple(given.shell or usual.shell),
            entrypoint=None if given.entrypoint is None else tuple(given.entrypoint),
            command=None if given.cmd is None else tuple(given.cmd),
            labels=given.labels or {},
            ports=tuple(given.exposed_ports or ()),
            volumes=tuple(given.volumes or ()),
            stop_signal=given.stop_signal,
            on_build=tuple(given.on_build or ()),
        ),
    )


@dataclass(slots=True, kw_only=True)
class _Build:
    """One build: what it has so far, in `stages` by their numbers, and the seconds that its commands may still take."""

    source: BuildSource
    images: Mapping[str, Unpacked]
    store: ImageStore
    provider: Provider
    failed: dict[str, tuple[float, str]]
    seconds_left: float
    preparation: Preparation
    lease: Lease
    stages: dict[int, tuple[Path, ...]] = field(default_factory=dict)

    def layers_of(self, origin: Origin) -> tuple[Path, ...]:
        match origin:
            case FromImage(reference=reference):
                return self.images[reference].layers
            case FromStage(number=number):
                return self.stages[number]
            case _:
                return ()

    async def layer(self, layer: BuildLayer, below: tuple[Path, ...]) -> Path:
        """Return the folder of a layer, made now if it is not there. Raises BuildFailed, BoxStartFailed and OSError."""
        at, why = self.failed.get(layer.key, (0.0, ""))
        for step in layer.steps:
            await self.source.tell(self.name(step))
        if why and anyio.current_time() - at < _FAILED_S:
            raise BuildFailed(why)
        self.preparation.doing = partial(str, f"building {self.name(layer.steps[0])}")
        is_own = False

        async def make(folder: Path) -> Built:
            nonlocal is_own
            is_own = True
            return await self._make(layer, below, folder)

        while True:
            try:
                return await self.store.layer(layer.key, make, self.lease)
            except StepFailed as error:
                self.failed[layer.key] = (anyio.current_time(), error.message)
                raise
            except BoxStartFailed:
                if is_own:  # else it is another build's that needs the same: its time ran out, say
                    raise

    async def _make(self, layer: BuildLayer, below: tuple[Path, ...], folder: Path) -> Built:
        """Make a layer in the empty `folder`."""
        started = anyio.current_time()
        first = layer.steps[0]
        tree = folder / _TREE
        await run_sync(tree.mkdir)
        if isinstance(first, RunStep):
            await self._run(first, below, folder, tree / "fs")
        else:
            await self._put_all(layer.steps, below, folder, tree / "fs")
        size = await run_sync(disk_usage, tree)
        about = {"line": first.line, "seconds": round(anyio.current_time() - started, 3), "bytes": size}
        structlog.get_logger().info("image.layer_built", file=self.source.file, step=first.text[:200], **about)
        facts = {"key": layer.key, "is_run": isinstance(first, RunStep), "entries": 0, "bytes": size, "notes": {}}
        return Built(tree=tree, facts=facts)

    @asynccontextmanager
    async def _box(self, step: BuildStep, layers: tuple[Path, ...], **spec: Any) -> AsyncIterator[Box]:
        """Start a box for a step, and stop it at the end. Raises BuildFailed for one that ends by itself."""
        asked, least = self.source.resources, _LEAST
        resources = Resources(
            cpus=max(asked.cpus, least.cpus),
            memory=max(asked.memory, least.memory),
            disk=max(asked.disk, least.disk),
            processes=max(asked.processes, least.processes),
        )
        given = BoxSpec(
            id=f"build-{token_hex(6)}", resources=resources, image=ImageRoot(layers=layers, is_bare=True), **spec
        )
        box = await self.provider.start(given)
        try:
            yield box
        except BoxDied as error:
            raise BuildFailed(f"{self.name(step)}: its box ended: {error.message}") from error
        finally:
            with anyio.CancelScope(shield=True):
                await box.stop()

    def name(self, step: BuildStep) -> str:
        """Name a step by its file, its line and its words."""
        return f"{self.source.file}:{step.line}: {step.text}" if step.line else self.source.file

    async def _run(self, step: RunStep, below: tuple[Path, ...], folder: Path, target: Path) -> None:
        """Take a RUN. Raises BuildFailed and OSError."""
        settings = await run_sync(Settings.in_image, folder / "settings")
        box = self._box(
            step,
            below,
            network=BoxNetwork.NONE if step.network == "none" else self._mirrors(settings),
            working_directory=step.cwd,
            environment={**settings.variables, **step.environment},
            user=step.user,
            binds=settings.binds,
            layer=folder / "box",
        )
        async with box as running:
            apart = _apart(settings)
            for mount in step.mounts:
                if mount.kind != "secret":
                    apart.append(await self._mount(running, step, mount, folder))
            if step.files:
                apart.append(SCRIPTS)
                order = {"target": f"{SCRIPTS}/", "mode": "755"}
                texts = [replace(each, name=posixpath.basename(each.name)) for each in step.files]
                await self._write(running, step, order, await self._packed(folder, (), texts))
            command = Command(argv=step.argv, cwd=step.cwd)
            printed = await self._within_limit(running, command, keep=_KEPT_BYTES)
            finished = settings.masked(printed)
            if finished.status != 0:
                raise self._failure(step, finished, self._why(finished))
            if output := finished.output.strip():
                await self.source.tell(output[-_SAID_CHARS:])
            await running.keep_layer(target, without=apart)
        await run_sync(settings.strike_out, target)

    def _mirrors(self, settings: Settings) -> BoxNetwork:
        """Return the network that finds package mirrors: they may be neighbours of this machine, or on it."""
        has_own = Capability.PUBLIC in self.provider.capabilities and not settings.is_on_this_machine
        return BoxNetwork.NEIGHBOURS if has_own else BoxNetwork.HOST

    async def _within_limit(self, box: Box, command: Command, **options: Any) -> Finished:
        """Run a command in the time that is left; what a build waits for takes none of it. Raises BoxDied."""
        began = anyio.current_time()
        try:
            return await run(box, command, timeout=max(0.0, self.seconds_left), **options)
        finally:
            self.seconds_left -= anyio.current_time() - began

    def _why(self, finished: Finished) -> str:
        how = f"ended with status {finished.status}"
        if finished.is_timed_out:
            how = f"ran out of time ({self.source.limit} = {self.source.timeout:g}, for all lines together)"
        output = finished.output.strip()[-_SHOWN_CHARS:]
        return f"{how}\n{output}" if output else f"{how}, without output"

    def _failure(self, step: BuildStep, finished: Finished, why: str) -> BuildFailed:
        is_by_itself = finished.status is not None and os.strerror(errno.ENOSPC) not in finished.output
        return (StepFailed if is_by_itself else BuildFailed)(f"{self.name(step)}: {why}")

    async def _mount(self, box: Box, step: RunStep, mount: BuildMount, folder: Path) -> str:
        """Put what a mount shows in its place, and return that; what is there afterwards is left out of the layer.

        A cache begins anew each time. Raises BuildFailed, BoxStartFailed, BoxDied and OSError.
        """
        source = mount.source
        mode = _MOUNT_MODES.get(mount.kind, 0o755) if mount.mode is None else mount.mode
        order = {
            "target": mount.target,
            "cover": {"owner": f"{mount.uid or 0}:{mount.gid or 0}", "mode": f"{mode:o}"},
        }
        if isinstance(mount.origin, FromStage | FromImage):
            copy = CopyStep(line=step.line, text=step.text, origin=mount.origin, sources=(source,), target=mount.target)
            finished = await self._cross(box, copy, order)
        else:
            files = [(name, node, not source.is_folder) for name, node in source.files]
            finished = await self._write(box, step, order, await self._packed(folder, files, ()))
        return os.fsdecode(finished.stdout)

    async def _packed(
        self, folder: Path, files: Iterable[tuple[str, Node, bool]], texts: Iterable[TextFile]
    ) -> IO[bytes]:
        """Raises BoxStartFailed and OSError."""
        return await run_sync(_packed, folder, files, texts, self.source.context.contents.digests)

    async def _put_all(self, steps: Iterable[BuildStep], below: tuple[Path, ...], folder: Path, target: Path) -> None:
        """Take copies and folders in a row. Raises BuildFailed and OSError."""
        first, *_ = steps = tuple(steps)
        settings, online = None, dict[str, Any]()
        if any(isinstance(step, FetchStep) for step in steps):
            settings = await run_sync(Settings.in_image, folder / "settings")
            online = {"network": self._mirrors(settings), "binds": settings.binds}
        async with self._box(first, below, working_directory="/", layer=folder / "box", **online) as box:
            for step in steps:
                match step:
                    case FolderStep():
                        await self._write(box, step, {"folder": step.path, "owner": step.owner}, BytesIO())
                    case CopyStep():
                        await self._copy(box, step, folder)
                    case FetchStep():
                        assert settings is not None
                        await self._fetch(box, step, settings)
            await box.keep_layer(target, without=_apart(settings) if settings else ())

    async def _copy(self, box: Box, step: CopyStep, folder: Path) -> None:
        """Take a COPY, or an ADD of files. Raises BuildFailed, BoxDied and OSError."""
        order = _order(step)
        if not isinstance(step.origin, FromContext) and step.sources:
            await self._cross(box, step, order)
        files = [(name, node, not source.is_folder) for source in step.sources for name, node in source.files]
        if files or step.texts:
            await self._write(box, step, order, await self._packed(folder, files, step.texts))
        elif isinstance(step.origin, FromContext):  # a folder that is empty
            await self._write(box, step, {"folder": step.target, "owner": step.owner}, BytesIO())

    async def _cross(self, box: Box, step: CopyStep, order: Mapping[str, Any]) -> Finished:
        """Copy from another stage or image: out of a box of it, and into this one. Raises BuildFailed, BoxDied."""
        question = {
            "sources": [_asked(each.path, keeps_parents=step.keeps_parents) for each in step.sources],
            "exclude": [(pattern.pattern, leaves_out) for pattern, leaves_out in Patterns(step.exclude).rules],
            "keeps_parents": step.keeps_parents,
        }
        async with self._box(step, self.layers_of(step.origin), working_directory="/") as source:
            packer = await source.spawn(_program(question))

            async def read(_size: int) -> bytes:
                try:
                    return await packer.stdout.receive(CHUNK_BYTES)
                except anyio.EndOfStream:
                    pass
                words = bytearray()
                await collect(packer.stderr, words, _SHOWN_CHARS)
                if await packer.wait() != 0:
                    raise StepFailed(f"{self.name(step)}: {words.decode(errors='replace').strip()}")
                return b""

            try:
                return await self._write(box, step, order, read)
            except BaseExceptionGroup as group:  # of the tasks that read and feed
                raise leaf(group) from None

    async def _write(
        self, box: Box, step: BuildStep, order: Mapping[str, Any], archive: IO[bytes] | ReadChunk
    ) -> Finished:
        """Have an archive put in place. Raises BuildFailed and BoxDied."""
        command = replace(_program(order), stdin=True)
        if callable(archive):
            finished = await self._within_limit(box, command, stdin=archive)
        else:
            with archive:
                finished = await self._within_limit(box, command, stdin=partial(run_sync, archive.read))
        if finished.status != 0:
            raise self._failure(step, finished, finished.output.strip() or self._why(finished))
        return finished

    async def _fetch(self, box: Box, step: FetchStep, settings: Settings) -> None:
        """Take an ADD of an address, which the box fetches itself. Raises BuildFailed and BoxDied."""
        order = {**_order(step), "mode": step.mode or "600", "url": step.url, "checksum": step.checksum}
        command = replace(_program(order), environment=settings.variables)
        finished = settings.masked(await self._within_limit(box, command))
        if finished.status != 0:
            raise BuildFailed(f"{self.name(step)}: {finished.output.strip() or self._why(finished)}")


def _apart(settings: Settings) -> list[str]:
    """Return the paths at which a box is shown settings: no layer has them."""
    return [MACHINE, *(bind.target for bind in settings.binds)]


def _order(step: CopyStep | FetchStep) -> dict[str, Any]:
    """Make what our program in a box is told of a copy."""
    return {
        "target": step.target,
        "owner": step.owner,
        "mode": step.mode,
        "is_linked": step.is_linked,
        "is_unpacking": step.is_unpacking,
    }


def _asked(path: str, *, keeps_parents: bool) -> tuple[str, str, str]:
    """Return a source in a stage or an image as our program in a box knows it: folder, path and pattern."""
    above, pivot, named = path.partition("/./") if keeps_parents else ("", "", path)
    folder, pattern = split_source(normal(named if pivot else path), keeps_parents=keeps_parents)
    return f"/{normal(above if pivot else '')}", folder, pattern.pattern if pattern else ""


class _Hashed:
    """A file that is read once, with the digest of what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _packed(
    folder: Path,
    files: Iterable[tuple[str, Node, bool]],
    texts: Iterable[TextFile],
    digests: Mapping[str, str],
) -> IO[bytes]:
    """Return an archive, as our program in a box reads it, in a file that has no name; the third says what was named.

    Files have the `digests` that the layer's key was made of, and one time, for theirs are no part of it: each checkout
    has others. Raises BoxStartFailed for one that was changed since, and OSError.
    """
    with ExitStack() as opened:
        packed = opened.enter_context(TemporaryFile(dir=folder))
        archive = opened.enter_context(tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT))
        for name, node, is_source in files:
            entry = node.archived(name)
            entry.mtime = _FILE_TIME_S
            if node.kind != "file":
                archive.addfile(entry)
                continue
            entry.pax_headers = {FILE: "1"} if is_source else {}
            with open_file(node.place) as file:
                entry.size = os.fstat(file.fileno()).st_size
                hashed = _Hashed(file)
                archive.addfile(entry, cast("IO[bytes]", hashed))
            if hashed.digest.hexdigest() != digests[node.place]:
                raise BoxStartFailed(f"{node.path} was changed while the image was built: try again")
        for text in texts:
            entry = tarfile.TarInfo(text.name)
            data = text.text.encode()
            entry.mode, entry.mtime, entry.size, entry.pax_headers = 0o644, _FILE_TIME_S, len(data), {FILE: "1"}
            archive.addfile(entry, BytesIO(data))
        archive.close()
        packed.seek(0)
        opened.pop_all()  # its reader closes it
    return packed


@cache
def _writer() -> str:
    """Return the text of our program in a box, read once."""
    return _WRITER.read_text()


def _program(order: Mapping[str, Any]) -> Command:
    """Make the command for our program in a box."""
    words = (PROGRAM, "-I", "-S", "-c", _writer(), orjson.dumps(order).decode())
    return Command(argv=words, cwd="/", is_plain=True)
