"""`sweep images`: lists, gets and removes the images that are kept on this machine."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.to_thread import run_sync

from orchestrator.commands.exit_codes import EXIT_FAILED, EXIT_OK
from orchestrator.common import logging_setup
from orchestrator.core.errors import SweepError, UsageError, WorldError, leaf
from orchestrator.core.printable import counted
from orchestrator.core.protocol import Mirror
from orchestrator.service.environments.build_cache import cache_folder
from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.image_store import ImageStore, Progress, Source, open_images
from orchestrator.service.environments.images.manifest import ours
from orchestrator.service.environments.images.reference import BadReference, Reference
from orchestrator.service.sandbox.own_ids import become_root
from orchestrator.view import console
from orchestrator.view.console import print_record, print_rows, say
from orchestrator.view.formats import Format

REDRAW_S: Final = 0.2
_MB: Final = 1_000_000
#: Columns without a terminal to measure.
_PLAIN_WIDTH: Final = 80


def be_root() -> None:
    """Let an ordinary user's images have the owners that his service's have; call it before there are threads."""
    become_root(cache_folder())


@asynccontextmanager
async def opened(mirrors: Sequence[str] = ()) -> AsyncIterator[ImageStore]:
    """Open this user's images. Raises SweepError, also for what the disk refuses."""
    if not structlog.is_configured():
        logging_setup.to_stream(level=30)
    async with open_images(cache_folder(), [Mirror.parse(each) for each in mirrors]) as store:
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
            sizes = {"size": _megabytes(each.size), "shared": _megabytes(each.shared)}
            when = used_at.astimezone().strftime("%Y-%m-%d %H:%M")
        rows.append({"reference": each.reference, **sizes, "last_used": when})
    print_rows(rows, output)
    return EXIT_OK


async def pull(references: Sequence[str], mirrors: Sequence[str], output: Format) -> int:
    """Get images from registries; one that fails does not keep the others away. Returns the exit code."""
    wanted = [_parsed(each) for each in references]
    async with opened(mirrors) as store:
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
        progress, began = Progress(origin="" if source is None else "the archive"), time.monotonic()
        try:
            async with _shown(str(reference), progress, output):
                with _explained(str(reference)):
                    got = await store.pull(reference, source=source, progress=progress)
        except SweepError as error:
            say(f"sweep: {error.message}", to_stderr=True)
            code = EXIT_FAILED
            continue
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
            came = f"{_megabytes(progress.came_bytes)} came from {progress.origin}"
            came = came if progress.came_bytes else "nothing had to come"
            say(f"{reference}: {counted(len(got.layers), 'layer')}, {came}, {seconds:.1f} s.")
    return code


@asynccontextmanager
async def _shown(reference: str, progress: Progress, output: Format) -> AsyncIterator[None]:
    """Show how far a pull has come, on a terminal."""

    async def draw() -> None:
        while True:
            sizes = f"{_megabytes(progress.came_bytes)} of {_megabytes(progress.expected_bytes)}"
            line = f"{reference}  {sizes}, {progress.ready} of {counted(progress.layers, 'layer')} unpacked"
            console.show([line[: console.Page(_PLAIN_WIDTH).width - 1]])
            await anyio.sleep(REDRAW_S)

    try:
        async with anyio.create_task_group() as tasks:
            if output.is_redrawn:
                tasks.start_soon(draw)
            yield
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise leaf(group) from None
    finally:
        console.show([])


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
    """Remove all images that no process uses."""
    with _explained():
        async with opened() as store:
            before = await run_sync(store.size)
            in_use = await run_sync(store.prune)
            after = await run_sync(store.size)
    say(f"{_megabytes(before - after)} removed, {_megabytes(after)} stay. In use: {', '.join(in_use) or 'none'}.")
    return EXIT_OK


def _parsed(text: str) -> Reference:
    """Raises UsageError."""
    try:
        return Reference.parse(text)
    except BadReference as error:
        raise UsageError(str(error)) from None


def _megabytes(size: int) -> str:
    return f"{size / _MB:,.1f} MB"
