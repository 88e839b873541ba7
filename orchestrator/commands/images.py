"""`sweep images`: lists, gets, builds and removes the images that are kept on this machine."""

import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import anyio
from anyio.to_thread import run_sync

from orchestrator.commands.endpoints import NO_IMAGES
from orchestrator.commands.exit_codes import EXIT_FAILED, EXIT_OK
from orchestrator.common import logging_setup
from orchestrator.common.cache_folder import cache_folder
from orchestrator.core.config import RegistryConfig
from orchestrator.core.errors import SweepError, UsageError, WorldError
from orchestrator.core.printable import byte_size, counted, printable_lines
from orchestrator.core.protocol import Isolation, Mirror
from orchestrator.service.definitions.task_file import IGNORE
from orchestrator.service.environments.build_context import BuildContext
from orchestrator.service.environments.environments import built_reference
from orchestrator.service.environments.image_builds import BuildSource, ImageBuilds
from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.image_store import ImageStore, Progress, Source, open_images
from orchestrator.service.environments.images.manifest import ours
from orchestrator.service.environments.images.reference import BadReference, Reference
from orchestrator.service.errors import SandboxError
from orchestrator.service.sandbox.build_cache import lock_folder
from orchestrator.service.sandbox.closure import Closures
from orchestrator.service.sandbox.own_ids import become_root
from orchestrator.service.sandbox.prepared import Preparation
from orchestrator.service.sandbox.provider import Provider, Resources
from orchestrator.service.sandbox.providers import open_provider
from orchestrator.view.console import print_record, print_rows, say
from orchestrator.view.formats import Format
from orchestrator.view.progress import shown

#: Seconds that the commands of a build may take.
BUILD_LIMIT_S: Final = 3600.0


def be_root() -> None:
    """Let an ordinary user's images have the owners that his service's have; call it before there are threads."""
    become_root(cache_folder())


@asynccontextmanager
async def opened(settings: RegistryConfig = NO_IMAGES) -> AsyncIterator[ImageStore]:
    """Open this user's images. Raises SweepError, also for what the disk refuses."""
    logging_setup.warn_only()
    mirrors = [Mirror.parse(each) for each in settings.registry_mirror]
    async with open_images(cache_folder(), mirrors, settings.image_cache) as store:
        yield store


@contextmanager
def _explained(reference: str = "") -> Iterator[None]:
    """Turn what the disk refuses into a failure that says so."""
    try:
        yield
    except OSError as error:
        place = str(error.filename or cache_folder())
        raise WorldError(f"{reference}{': ' if reference else ''}{place}: {error.strerror or error}") from error


async def list_images(output: Format) -> int:
    """List the images."""
    with _explained():
        async with opened() as store:
            usages = await run_sync(store.usages)
    if not usages and not output.is_for_programs:
        say("No image is here. `sweep images pull REF` gets one.")
        return EXIT_OK
    rows: list[dict[str, object]] = []
    for each in usages:
        used_at = datetime.fromtimestamp(each.used_at, UTC)
        if output.is_for_programs:
            sizes = {"digest": each.digest, "size_bytes": each.size, "shared_bytes": each.shared}
            when = used_at.isoformat(timespec="seconds")
        else:
            sizes = {"size": byte_size(each.size), "shared": byte_size(each.shared)}
            when = used_at.astimezone().strftime("%Y-%m-%d %H:%M")
        rows.append({"reference": each.reference, **sizes, "last_used": when})
    print_rows(rows, output)
    return EXIT_OK


async def pull(references: Sequence[str], settings: RegistryConfig, output: Format) -> int:
    """Get images from registries; one that fails does not keep the others away. Returns the exit code."""
    wanted = [_parsed(each) for each in references]
    async with opened(settings) as store:
        return await _get(store, wanted, None, output)


async def load(file: Path, output: Format) -> int:
    """Take in the images of an archive; returns the exit code."""
    if not await anyio.Path(file).is_file():
        raise UsageError(f"{file}: there is no such file.")
    with _explained():
        archive = await run_sync(Archive.read, file, ours())
    async with opened() as store:
        return await _get(store, [image.reference for image in archive.images], archive, output)


async def _get(store: ImageStore, wanted: Sequence[Reference], source: Source | None, output: Format) -> int:
    code = EXIT_OK
    for reference in wanted:
        progress = Progress(origin="" if source is None else "the archive")
        began, lease = time.monotonic(), store.lease()
        try:
            async with shown(str(reference), partial(str, progress), output):
                with _explained(str(reference)):
                    got = await store.pull(reference, source=source, lease=lease, progress=progress)
        except SweepError as error:
            say(f"sweep: {error.message}", to_stderr=True)
            code = EXIT_FAILED
            continue
        finally:
            lease.end(lease)
        seconds = time.monotonic() - began
        if output.is_for_programs:
            record = {
                "reference": got.image.reference,
                "digest": got.image.digest,
                "layers": len(got.layers),
                "origin": progress.origin,
                "came_bytes": progress.came_bytes,
                "seconds": round(seconds, 3),
            }
            print_record(record, output)
        else:
            came = f"{byte_size(progress.came_bytes)} came from {progress.origin}"
            came = came if progress.came_bytes else "nothing had to come"
            say(f"{reference}: {counted(len(got.layers), 'layer')}, {came}, {seconds:.1f} s.")
    return code


async def build(folder: Path, settings: RegistryConfig, *, is_rebuilt: bool, output: Format) -> int:
    """Build the image of a Dockerfile, or of a scenario; returns the exit code. Raises UsageError."""
    began, preparation = time.monotonic(), Preparation()
    with _explained(), preparation.held:
        source = await run_sync(_source_of, folder)
        async with opened(settings) as store, _workshop() as provider:
            builds = ImageBuilds(store, provider, is_rebuilding=is_rebuilt)
            try:
                async with shown(str(source.reference), partial(_said, preparation), output):
                    built = await builds.build(source, preparation)
            except SandboxError as error:
                for line in printable_lines(f"sweep: {error.message}"):
                    say(line, to_stderr=True)
                return EXIT_FAILED
    seconds, layers = time.monotonic() - began, len(built.root.layers)
    if output.is_for_programs:
        print_record({"reference": str(source.reference), "layers": layers, "seconds": round(seconds, 3)}, output)
    else:
        say(f"{source.reference}: {counted(layers, 'layer')}, {seconds:.1f} s.")
    return EXIT_OK


def _source_of(folder: Path) -> BuildSource:
    """Read what is to be built. Blocking. Raises UsageError and OSError."""
    place = next((each for each in (folder, folder / "environment") if (each / "Dockerfile").is_file()), None)
    if place is None:
        raise UsageError(f"{folder} has no Dockerfile, and no environment/Dockerfile.")
    ignore = next((each for each in (place / f"Dockerfile{IGNORE}", place / IGNORE) if each.is_file()), None)
    try:
        return BuildSource(
            text=(place / "Dockerfile").read_text(),
            file=str(place / "Dockerfile"),
            reference=built_reference(folder.resolve().name, "latest"),
            context=BuildContext.read(place, ignore=ignore.read_text() if ignore else ""),
            resources=Resources(),
            timeout=BUILD_LIMIT_S,
            limit="the limit of a build",
        )
    except ValueError as error:  # no text, or a bad pattern
        raise UsageError(f"{place}: {error}.") from None


def _said(preparation: Preparation) -> str:
    return preparation.doing()


@asynccontextmanager
async def _workshop() -> AsyncIterator[Provider]:
    """Open a provider in the first folder for it that no other process has; what a killed one left there goes."""
    with ExitStack() as held:
        for number in count():
            folder = cache_folder() / "images/workshops" / str(number)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (lock := lock_folder(folder, fcntl.LOCK_EX)) is not None:
                held.callback(os.close, lock)
                break
        async with open_provider(Isolation.LOCAL, folder / "state", ()) as provider:
            yield provider


async def remove(references: Sequence[str]) -> int:
    """Remove images; returns the exit code."""
    code = EXIT_OK
    with _explained():
        async with opened() as store:
            for reference in [_parsed(each) for each in references]:
                is_gone = await run_sync(store.remove, reference)
                say(f"{reference}: {'removed' if is_gone else 'in use by a running process; it stays'}.")
                code = code if is_gone else EXIT_FAILED
    return code


async def prune() -> int:
    """Remove all images that no process uses, and our programs for devboxes of images."""
    with _explained():
        async with opened() as store:
            before = await run_sync(store.size)
            in_use = await run_sync(store.prune)
            after = await run_sync(store.size)
        programs = await run_sync(Closures(cache_folder()).prune)
    gone = byte_size(before - after + programs)
    say(f"{gone} removed, {byte_size(after)} stay. In use: {', '.join(in_use) or 'none'}.")
    return EXIT_OK


def _parsed(text: str) -> Reference:
    """Raises UsageError."""
    try:
        return Reference.parse(text)
    except BadReference as error:
        raise UsageError(str(error)) from None
