"""Processes that get, load, remove and prune the same images at once, on a disk that fills, and are killed now and
then: what one of them was given stays whole while it is used, and nothing is left of the others.
"""

import itertools
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path
from typing import Final

import anyio
import pytest
from anyio.to_thread import run_sync

from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.image_store import DiskFull, ImageStore, open_images
from orchestrator.service.environments.images.manifest import ImageError, ours
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.images.registry import NoSuchImage
from orchestrator.service.environments.images.room import NoRoom, NoRoomYet
from tests.images.base_images import base_image
from tests.images.debian_registry import debian_registry
from tests.images.packing import PackedImage
from tests.service.images.layers import entry, layer

SECONDS: Final = 15.0
WORKERS: Final = 4
IMAGES: Final = 4
#: All images take more, and two of them less.
DISK_BYTES: Final = 16_000_000
WORKER: Final = "import sys; from tests.crash.test_image_store_attacked import attack; attack(*sys.argv[1:])"


def files(number: int) -> dict[str, bytes]:
    """What the upper layer of an image has."""
    many = {f"many-{number}/{each}": b"%d %d" % (number, each) for each in range(200)}
    return {**many, f"big-{number}": random.Random(number).randbytes(2_000_000)}


def attack(cache: str, host: str, seed: str, seconds: str) -> None:
    """Be one of the processes, for so many seconds; prints what went wrong."""
    anyio.run(_attack, Path(cache), host, int(seed), float(seconds))


async def _attack(cache: Path, host: str, seed: int, seconds: float) -> None:
    async with open_images(cache) as store, anyio.create_task_group() as tasks:
        for task in range(2):
            tasks.start_soon(_act, store, host, random.Random(2 * seed + task), anyio.current_time() + seconds)


async def _act(store: ImageStore, host: str, dice: random.Random, end: float) -> None:
    while anyio.current_time() < end:
        number, deed = dice.randrange(IMAGES), dice.random()
        reference = Reference.parse(f"{host}/image-{number}:1")
        try:
            if deed < 0.8:
                await _use(store, reference, number, dice)
            elif deed < 0.9:
                await run_sync(store.prune)
            else:
                await run_sync(store.remove, reference)
        except (NoRoom, NoRoomYet, DiskFull, NoSuchImage):
            pass
        except (ImageError, OSError) as error:
            if getattr(error, "errno", None) != ENOSPC:
                print(f"PROBLEM {error!r}", flush=True)  # noqa: T201 - read by the test


async def _use(store: ImageStore, reference: Reference, number: int, dice: random.Random) -> None:
    """Get an image in one way or another, and look at it twice."""
    lease = store.lease()
    try:
        match dice.choice(("get", "pull", "load")):
            case "get":
                got = await store.get(reference, lease=lease)
            case "pull":
                got = await store.pull(reference, lease=lease)
            case _:
                archive = Archive.read(store.cache.parent.parent / f"image-{number}.tar", ours())
                got = await store.pull(reference, source=archive, lease=lease)
        for _ in range(2):
            base, top = got.layers
            if not (base / "bin/busybox").exists() or any(
                (top / name).read_bytes() != data for name, data in files(number).items()
            ):
                print(f"PROBLEM {reference} is torn", flush=True)  # noqa: T201 - as above
            await anyio.sleep(dice.random() / 10)
        print("USED", flush=True)  # noqa: T201 - as above
    finally:
        lease.end(lease)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "none", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.slow
@pytest.mark.root
def test_what_a_process_was_given_stays_whole_and_nothing_is_left_of_those_that_were_killed(
    disk: Path, tmp_path: Path
) -> None:
    dice, cache, outputs = random.Random(), disk / "cache", []
    with debian_registry(tmp_path / "registry") as registry:
        for number in range(IMAGES):
            image = PackedImage.of(base_image("busybox"), layer(*(entry(*each) for each in _entries(number))))
            reference = registry.push(f"image-{number}:1", image)
            image.save(tmp_path / f"image-{number}.tar", str(reference))
        end, seeds = time.monotonic() + SECONDS, itertools.count(dice.randrange(1 << 20))

        def start() -> "subprocess.Popen[bytes]":
            seed, left = next(seeds), max(1.0, end - time.monotonic())
            outputs.append(tmp_path / f"output-{seed}")
            with outputs[-1].open("wb") as out:
                command = [sys.executable, "-c", WORKER, str(cache), registry.host, str(seed), f"{left}"]
                return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=out, stderr=out)

        living = [start() for _ in range(WORKERS)]
        filler = disk / "filler"
        while time.monotonic() < end:
            time.sleep(dice.random())
            if dice.random() < 0.5:
                _fill(filler, dice.randrange(DISK_BYTES))
            else:
                filler.unlink(missing_ok=True)
            if dice.random() < 0.4:
                victim = living.pop(dice.randrange(WORKERS))
                victim.kill()
                victim.wait()
                living.append(start())
        filler.unlink(missing_ok=True)
        statuses = [each.wait(60) for each in living]

    said = "\n".join(output.read_text() for output in outputs)
    assert statuses == [0] * WORKERS, said
    assert "PROBLEM" not in said
    assert "Traceback" not in said, said
    assert said.count("USED") > WORKERS
    anyio.run(_prune, cache)
    for folder in ("layers", "blobs", "names"):
        assert list((cache / "images" / folder).iterdir()) == []
    assert [file.name for file in (cache / "images/notes").iterdir()] == ["lock"]


async def _prune(cache: Path) -> None:
    async with open_images(cache) as store:
        assert store.prune() == []


def _entries(number: int) -> Iterator[tuple[str, str, bytes]]:
    return ((name, "f", data) for name, data in files(number).items())


def _fill(file: Path, size: int) -> None:
    """Take so many bytes of a disk, or all that it has."""
    with file.open("wb", buffering=0) as filler, suppress(OSError):
        filler.write(bytes(size))
