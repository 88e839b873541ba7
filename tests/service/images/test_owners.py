"""Root, and an ordinary user who is lent ids, keep images with all their owners, and can remove what is not theirs.

For an ordinary user it is run by `tests/sandbox/test_ordinary_user.py`.
"""

import os
import stat
import traceback
from pathlib import Path

import anyio
import pytest

from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.image_store import ImageStore
from orchestrator.service.environments.images.manifest import BadImage, ours
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.images.registry import Registries
from orchestrator.service.sandbox.user_namespace import IdMap, UserNamespace

from .layers import entry, layer
from .test_archive import saved_image

pytestmark = pytest.mark.root
LOWER = layer(
    entry(".", "d", mode=0o700), entry("srv", "d", mode=0o700, owner=33), entry("srv/kept", data=b"1", owner=33)
)
UPPER = layer(entry("srv/new", data=b"2", owner=7), entry("srv/.wh.kept"))


@pytest.mark.skipif(not IdMap.own().is_whole, reason="this user has one id")
def test_images_have_their_owners_in_the_ids_of_this_user_and_can_be_removed(tmp_path: Path) -> None:
    home = tmp_path
    good = saved_image(home / "good.tar", "good:1", LOWER, UPPER)
    bad = saved_image(home / "bad.tar", "bad:1", LOWER, layer(entry("x", data=b"x"), entry("a", "h", to="b")))

    async def work() -> None:
        namespace = await UserNamespace.make(IdMap.own())
        assert namespace.ids.is_whole
        async with Registries.open() as registries:
            store = ImageStore(cache=home / "cache", registries=registries, namespace=namespace)
            found = await store.pull(Reference.parse("good:1"), source=Archive.read(good, ours()))
            status = found.layers[1].lstat()
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (namespace.ids.user, 0o755)
            assert (found.layers[1] / "srv").lstat().st_uid == namespace.ids.user + 33
            with pytest.raises(BadImage, match="hard link to 'b'"):
                await store.pull(Reference.parse("bad:1"), source=Archive.read(bad, ours()))
            other = ImageStore(cache=home / "cache", registries=registries, namespace=namespace)
            assert other.remove(Reference.parse("good:1")) is False, "it is in use"
        layers = home / "cache/images/layers"
        assert len([*layers.glob("*/l"), *layers.glob("*/making")]) == 2, "nothing of the bad layer is left"

    async def remove() -> None:
        namespace = await UserNamespace.make(IdMap.own())
        async with Registries.open() as registries:
            store = ImageStore(cache=home / "cache", registries=registries, namespace=namespace)
            assert store.prune() == []
        assert list((home / "cache/images/layers").iterdir()) == []

    for each in (work, remove):
        assert _in_a_process(each) == 0


def _in_a_process(work: object) -> int:
    """Run a coroutine function in a process of its own; returns its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        anyio.run(work)  # type: ignore[arg-type]
    except BaseException:  # noqa: BLE001 - pytest's own process goes on
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
