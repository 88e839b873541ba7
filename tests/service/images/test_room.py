"""Images in the room that they are given: what nobody uses goes, the least recently used first, and nothing else."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.service.environments.images.image_store import ImageStore
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.images.registry import Registries
from orchestrator.service.environments.images.room import NoRoom, NoRoomYet, Room
from orchestrator.service.sandbox.user_namespace import UserNamespace

from .layers import entry, layer
from .registry_server import FakeRegistry

pytestmark = [pytest.mark.anyio, pytest.mark.root]
MB = 1_000_000
BASE = layer(entry("base", data=b"b" * MB))
#: While an image comes, it may take twice its size.
BUDGET = 9 * MB
Open = Callable[[], ImageStore]


@pytest.fixture
def open_store(registries: Registries, namespace: UserNamespace, tmp_path: Path) -> Open:
    """Open a store as a process does; two have the same folder."""
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    return lambda: ImageStore(cache=cache, registries=registries, namespace=namespace, budget=BUDGET)


@pytest.fixture
def image(registry: FakeRegistry) -> Callable[..., Reference]:
    """Add an image of two million bytes, or so many, of which the first million is the same in all."""

    def add(name: str, size: int = 2 * MB) -> Reference:
        registry.add_image(name, "1", BASE, layer(entry(name, data=name[0].encode() * (size - MB))))
        return Reference.parse(f"{registry.host}/{name}:1")

    return add


def names(store: ImageStore) -> list[str]:
    return [usage.reference.partition("/")[2].removesuffix(":1") for usage in store.usages()]


async def got(store: ImageStore, reference: Reference) -> None:
    """Use an image for a moment."""
    lease = store.lease()
    await store.get(reference, lease=lease)
    lease.end(lease)


async def test_what_was_used_least_recently_goes_first(open_store: Open, image: Callable[..., Reference]) -> None:
    store = open_store()
    first, second, *others = [image(name, 3 * MB) for name in ("first", "second", "third")]
    await got(store, first)
    await got(store, second)
    await got(store, first)
    await got(store, *others)
    assert names(store) == ["first", "third"]
    assert store.size() <= BUDGET


async def test_what_is_used_stays_and_who_lacks_room_is_told_so(
    open_store: Open, image: Callable[..., Reference]
) -> None:
    store, theirs = open_store(), open_store()
    here, there, new = store.lease(), theirs.lease(), store.lease()
    first = await store.get(image("first", 4 * MB), lease=here)
    second = await theirs.get(image("second", 3 * MB), lease=there)
    with pytest.raises(NoRoomYet, match=r"third:1 needs about 4\.0 MB, and --image-cache 9\.0 MB has not that"):
        await store.get(image("third", 3 * MB), lease=new)
    assert (first.layers[1] / "first").stat().st_size == 3 * MB
    assert (second.layers[1] / "second").stat().st_size == 2 * MB
    there.end(there)
    third = await store.get(image("third", 3 * MB), lease=new)
    assert (first.layers[1] / "first").stat().st_size == 3 * MB
    assert (third.layers[1] / "third").stat().st_size == 2 * MB
    assert names(store) == ["first", "third"]


async def test_what_two_uses_have_stays_until_both_have_ended(
    open_store: Open, image: Callable[..., Reference]
) -> None:
    store, first = open_store(), image("first", 4 * MB)
    one, other = store.lease(), store.lease()
    await store.get(first, lease=one)
    await store.get(first, lease=other)
    one.end(one)
    assert not open_store().remove(first)
    other.end(other)
    assert open_store().remove(first)


async def test_an_image_larger_than_all_may_be_is_refused_by_name_and_number(
    open_store: Open, image: Callable[..., Reference]
) -> None:
    store = open_store()
    await got(store, image("small"))
    with pytest.raises(NoRoom, match=r"large:1 takes 10\.0 MB, and all images may take 9\.0 MB: raise --image"):
        await got(store, image("large", 10 * MB))
    assert names(store) == ["small"]


async def test_a_new_image_takes_the_place_of_a_larger_one_below_the_same_base(
    open_store: Open, image: Callable[..., Reference], registry: FakeRegistry
) -> None:
    store = open_store()
    await got(store, image("first", 6 * MB))
    await got(store, image("second", 4 * MB))
    assert names(store) == ["second"]
    assert len([path for path, _ in registry.requests if "/first/blobs/" in path]) == 3
    assert len([path for path, _ in registry.requests if "/second/blobs/" in path]) == 2  # the base was here


def test_what_a_killed_process_was_about_to_write_counts_no_more(tmp_path: Path) -> None:
    room = Room(folder=tmp_path, budget=BUDGET)
    script = f"""
from pathlib import Path
from orchestrator.service.environments.images.room import Room
room = Room(folder=Path({str(tmp_path)!r}), budget={BUDGET})
with room.deciding():
    note = room.noted(77)
    note.__enter__()
print("noted", flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"noted\n"
        with room.deciding(), room.noted(5):
            assert room.expected() == 82
        writer.kill()
    with room.deciding():
        assert room.expected() == 0
    assert [file.name for file in (tmp_path / "notes").iterdir()] == ["lock"]
