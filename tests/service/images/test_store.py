"""Layers are unpacked once, as a kernel overlay reads them, by a program that a hostile layer cannot lead anywhere."""

import os
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from orchestrator.service.environments.images.image_store import ImageStore, Unpacked
from orchestrator.service.environments.images.manifest import BadImage
from orchestrator.service.environments.images.reference import Reference
from tests.waiting import until

from .layers import entry, layer, packed
from .registry_server import FakeRegistry, digest_of

pytestmark = [pytest.mark.anyio, pytest.mark.root]
BASE = layer(
    entry("srv", "d", mode=0o750, owner=33),
    entry("srv/a", "d"),
    entry("srv/a/one", data=b"1"),
    entry("srv/a/two", data=b"2", owner=33),
    entry("srv/b", "d"),
    entry("srv/b/old", data=b"old"),
    entry("srv/c", data=b"c" * 100_000, mode=0o4755, owner=7),
    entry("usr", "d"),
    entry("usr/lib", "d", mode=0o700, owner=5),
    entry("lib", "l", to="usr/lib"),
    entry("opt", "d"),
    entry("opt/x", data=b"x"),
)


async def pulled(registry: FakeRegistry, store: ImageStore, *layers: bytes, how: str = "gzip") -> Unpacked:
    registry.add_image("x", "1", *layers, how=how)
    return await store.get(Reference.parse(f"{registry.host}/x:1"))


def names(folder: Path) -> list[str]:
    return sorted(place.name for place in folder.iterdir())


def contents(blobs: Path) -> list[bytes]:
    return [file.read_bytes() for file in blobs.glob("*/blob*")]


@contextmanager
def mounted(layers: Sequence[Path], place: Path) -> Iterator[Path]:
    """The layers as an overlay of the kernel shows them."""
    root, spare = place / "root", place / "spare"
    root.mkdir()
    spare.mkdir()
    lowers = ":".join(map(str, (*layers[::-1], spare)))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"ro,userxattr,lowerdir={lowers}", root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", root], check=True)


@pytest.mark.parametrize("how", ["gzip", "zstd", "plain"])
async def test_a_layer_is_unpacked_with_owners_modes_and_times_however_it_is_packed(
    registry: FakeRegistry, store: ImageStore, how: str
) -> None:
    image = await pulled(registry, store, BASE, how=how)
    (low,) = image.layers
    found = {name: (low / name).lstat() for name in ("srv", "srv/a/two", "srv/c")}
    assert {name: (status.st_uid, stat.S_IMODE(status.st_mode)) for name, status in found.items()} == {
        "srv": (33, 0o750),
        "srv/a/two": (33, 0o644),
        "srv/c": (7, 0o4755),
    }
    assert {status.st_mtime for status in found.values()} == {1_000_000_000}
    assert image.image.config.config is not None


async def test_what_a_layer_takes_away_or_replaces_is_gone_in_the_overlay(
    registry: FakeRegistry, store: ImageStore, tmp_path: Path
) -> None:
    second = layer(
        entry("srv/a/.wh.one"),
        entry("srv/b", "d"),
        entry("srv/b/.wh..wh..opq"),
        entry("srv/b/new", data=b"new"),
        entry(".wh.opt"),
        entry("srv/c", "d"),
        entry("srv/c/in", data=b"in"),
    )
    image = await pulled(registry, store, BASE, second)
    with mounted(image.layers, tmp_path) as root:
        assert names(root) == ["lib", "srv", "usr"]
        assert names(root / "srv/a") == ["two"]
        assert names(root / "srv/b") == ["new"]
        assert (root / "srv/c/in").read_bytes() == b"in"


@pytest.mark.parametrize(
    "entries",
    [
        [entry("srv/.wh.a"), entry("srv/a", "d"), entry("srv/a/new", data=b"n")],
        [entry("srv/a", "d"), entry("srv/a/new", data=b"n"), entry("srv/.wh.a")],
        [entry("srv/.wh.a"), entry("srv/a/new", data=b"n")],
        [entry("srv/a", data=b"for a moment"), entry("srv/a", "d"), entry("srv/a/new", data=b"n")],
    ],
    ids=["before", "after", "unlisted", "by a file"],
)
async def test_a_folder_that_a_layer_takes_away_and_makes_anew_has_only_what_is_new(
    registry: FakeRegistry, store: ImageStore, tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    image = await pulled(registry, store, BASE, layer(*entries))
    with mounted(image.layers, tmp_path) as root:
        assert names(root / "srv/a") == ["new"]


async def test_a_layer_that_was_bad_once_is_asked_for_again(registry: FakeRegistry, store: ImageStore) -> None:
    good = layer(entry("one", data=b"1"))
    bad = packed(good, "gzip")[:-9] + b"x" * 9
    registry.add_image("x", "1", good)
    (blob,) = [digest for digest, data in registry.blobs.items() if data == good]
    registry.manifests = {
        key: (data.replace(blob.encode(), digest_of(bad).encode()).replace(b"%d" % len(good), b"%d" % len(bad)), kind)
        for key, (data, kind) in registry.manifests.items()
    }
    registry.add_blob(bad)
    reference = Reference.parse(f"{registry.host}/x:1")
    with pytest.raises(BadImage):
        await store.get(reference)
    registry.add_image("x", "1", good, how="gzip")
    assert (await store.get(reference)).layers


async def test_a_layer_that_does_not_list_a_folder_takes_it_as_it_was(
    registry: FakeRegistry, store: ImageStore, tmp_path: Path
) -> None:
    image = await pulled(registry, store, BASE, layer(entry("srv/deep/er", data=b"1"), entry("lib/new", data=b"2")))
    with mounted(image.layers, tmp_path) as root:
        assert ((root / "srv").stat().st_uid, stat.S_IMODE((root / "srv").stat().st_mode)) == (33, 0o750)
        assert (root / "lib").is_symlink()
        assert (root / "usr/lib/new").read_bytes() == b"2"
        assert stat.S_IMODE((root / "usr/lib").stat().st_mode) == 0o700
        assert (root / "srv/a/one").read_bytes() == b"1"


async def test_hard_links_are_one_file_within_a_layer_and_a_copy_across_layers(
    registry: FakeRegistry, store: ImageStore
) -> None:
    second = layer(entry("h1", data=b"hard"), entry("h2", "h", to="h1"), entry("hc", "h", to="/srv/c"))
    _, high = (await pulled(registry, store, BASE, second)).layers
    assert (high / "h1").stat().st_ino == (high / "h2").stat().st_ino
    copy = (high / "hc").stat()
    assert (copy.st_size, copy.st_uid, stat.S_IMODE(copy.st_mode)) == (100_000, 7, 0o4755)


async def test_a_hostile_layer_leads_nowhere(registry: FakeRegistry, store: ImageStore, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    hostile = layer(
        entry("../../../../../../../../etc/passwd-of-ours", data=b"1"),
        entry("out", "l", to=str(victim)),
        entry("out/file", data=b"2"),
        entry("up", "l", to="../../../../../../.."),
        entry("up/tmp/file", data=b"3"),
        entry("null", "c", device=(1, 3)),
        entry("fake", "c", device=(0, 0)),
        entry("much", data=b"4", owner=1_234_567),
        entry("marked", "d", pax={"SCHILY.xattr.user.overlay.redirect": "/etc", "SCHILY.xattr.user.note": "hello"}),
    )
    (low,) = (await pulled(registry, store, hostile)).layers
    assert "passwd-of-ours" not in names(Path("/etc"))
    assert names(victim) == []
    assert (low / "etc/passwd-of-ours").read_bytes() == b"1"
    assert (low / str(victim).lstrip("/") / "file").read_bytes() == b"2"
    assert (low / "tmp/file").read_bytes() == b"3"
    assert not (low / "null").exists()
    assert not (low / "fake").exists()
    assert (low / "much").stat().st_uid == 65_534
    assert os.listxattr(low / "marked") == ["user.note"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"", "empty file"),
        (b"no archive at all" * 100, "invalid header|truncated"),
        (layer(entry("a", "h", to="b")), "hard link to 'b', which is no file"),
        (layer(entry("a", "l", to="a"), entry("a/b", data=b"")), "too many links"),
        (layer(entry("x" * 300, data=b"")), "File name too long"),
    ],
)
async def test_a_layer_that_is_none_is_refused_with_its_reason_and_nothing_is_kept(
    registry: FakeRegistry, store: ImageStore, bad: bytes, why: str
) -> None:
    with pytest.raises(BadImage, match=why):
        await pulled(registry, store, bad)
    assert not list((store.cache / "images/layers").glob("*/layer.json"))


async def test_images_that_begin_alike_share_their_layers_and_none_comes_twice(
    registry: FakeRegistry, store: ImageStore
) -> None:
    registry.add_image("x", "1", BASE, layer(entry("one", data=b"1")))
    registry.add_image("y", "1", BASE, layer(entry("two", data=b"2")))
    wanted = [Reference.parse(f"{registry.host}/{name}:1") for name in ("x", "y", "x")]
    found = [await store.get(reference) for reference in wanted]
    assert found[0].layers[0] == found[1].layers[0]
    assert found[0] == found[2]
    assert len({*found[0].layers, *found[1].layers}) == 3
    assert len(registry.asked("blobs")) == 5  # three layers and two configurations


async def test_the_blob_of_an_upper_layer_is_not_pruned_while_a_lower_one_comes(
    registry: FakeRegistry, store: ImageStore
) -> None:
    upper, may_come = layer(entry("upper", data=b"upper")), anyio.Event()

    async def late() -> AsyncIterator[bytes]:
        await may_come.wait()
        yield BASE

    def fault(request: Request) -> Response | None:
        return StreamingResponse(late()) if request.url.path.endswith(digest_of(BASE)) else None

    registry.fault = fault
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(pulled, registry, store, BASE, upper, how="plain"))
        blobs = store.cache / "images/blobs"
        await until(lambda: upper in contents(blobs), "the upper one does not come")
        await run_sync(store.prune)
        assert upper in contents(blobs)
        may_come.set()
    assert not list(blobs.iterdir())


async def test_tasks_that_want_one_image_at_once_get_it_once(registry: FakeRegistry, store: ImageStore) -> None:
    blobs = [BASE, layer(entry("one", data=b"1"))]
    registry.add_image("x", "1", *blobs)
    found: list[Unpacked] = []

    async def get() -> None:
        found.append(await store.get(Reference.parse(f"{registry.host}/x:1")))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(get)
    assert len({each.layers for each in found}) == 1
    assert [len(registry.asked(digest_of(blob))) for blob in blobs] == [1, 1]
