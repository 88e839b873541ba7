"""An ordinary user who is lent ids keeps images with all their owners, and can remove what is not his."""

import os
import pwd
import shutil
import stat
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.image_store import ImageStore
from orchestrator.service.environments.images.manifest import BadImage, ours
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.images.registry import Registries
from orchestrator.service.sandbox.user_namespace import IdMap, UserNamespace, lent_ids

from .layers import entry, layer
from .test_archive import saved_image

pytestmark = pytest.mark.root
#: The programs beside the store need the standard library only; ours may be in a folder that is closed to him.
SYSTEM_PYTHON = "/usr/bin/python3"
LOWER = layer(
    entry(".", "d", mode=0o700), entry("srv", "d", mode=0o700, owner=33), entry("srv/kept", data=b"1", owner=33)
)
UPPER = layer(entry("srv/new", data=b"2", owner=7), entry("srv/.wh.kept"))


@pytest.fixture
def user() -> pwd.struct_passwd:
    """A user of this machine who is lent ids."""
    found = [each for each in pwd.getpwall() if lent_ids(Path("/etc/subuid"), each.pw_name, each.pw_uid)]
    if not found:
        pytest.skip("no user of this machine is lent ids by /etc/subuid")
    if shutil.which("newuidmap") is None or not Path(SYSTEM_PYTHON).exists():
        pytest.skip(f"newuidmap (package uidmap) and {SYSTEM_PYTHON} are needed")
    return found[0]


@pytest.fixture
def home(user: pwd.struct_passwd) -> Iterator[Path]:
    """A folder of his, below folders that he may enter."""
    place = Path(tempfile.mkdtemp(prefix="sweep-images-"))
    os.chown(place, user.pw_uid, user.pw_gid)
    yield place
    shutil.rmtree(place)


def test_he_has_images_with_their_owners_and_removes_them(user: pwd.struct_passwd, home: Path) -> None:
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
        assert _as_user(user, each) == 0


def _as_user(user: pwd.struct_passwd, work: object) -> int:
    """Run a coroutine function in a process of this user; returns the process's exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.setgroups([])
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        sys.executable = SYSTEM_PYTHON
        os.chdir("/")
        anyio.run(work)  # type: ignore[arg-type]
    except BaseException:  # noqa: BLE001 - pytest's own process goes on
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
