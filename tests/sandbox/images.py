"""Unpacked images for tests of boxes: a base image with layers above that have what these tests look for."""

import os
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from threading import Thread

import anyio

from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.image_store import ImageStore
from orchestrator.service.environments.images.manifest import ours
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.images.registry import Registries
from orchestrator.service.sandbox.closure import PROGRAM
from orchestrator.service.sandbox.own_ids import STATE
from orchestrator.service.sandbox.provider import ImageRoot
from orchestrator.service.sandbox.user_namespace import IdMap, UserNamespace
from tests.images.base_images import base_image
from tests.images.packing import PackedImage


def make_image(name: str, place: Path) -> ImageRoot:
    """Make an image in the folder `place`: a base image, a layer with Python and files, and one that changes those."""
    base = base_root(name)
    lower, upper = place / "lower", place / "upper"
    for folder in ("usr/bin", "opt/old", "var/www"):
        (lower / folder).mkdir(parents=True)
    (lower / "usr/bin/python3").symlink_to(PROGRAM)
    (lower / "opt/old/file").write_text("old\n")
    (lower / "opt/kept").write_text("lower\n")
    (lower / "var/www/page").write_text("page\n")

    (upper / "opt").mkdir(parents=True)
    (upper / "opt/kept").write_text("upper\n")
    os.mknod(upper / "opt/old", 0o600 | 0o020000, 0)  # how overlayfs marks what a layer removes
    ids = IdMap.own()
    give(lower, upper)
    if ids.is_whole:
        os.chown(lower / "var/www/page", ids.user + 33, ids.group + 33)
    return ImageRoot(layers=(*base.layers, lower, upper))


def give(*layers: Path) -> None:
    """Give layers to the root of images."""
    ids = IdMap.own()
    for layer in layers:
        for each in (layer, *layer.rglob("*")):
            os.chown(each, ids.user, ids.group, follow_symlinks=False)


def base_root(name: str) -> ImageRoot:
    """Return a base image with the ids that this process's user has; skip the test where there is none."""
    return base_image(name).root if STATE.user is None or name == "empty" else _own_copy(name)


def pack_images(place: Path, *names: str) -> None:
    """Leave base images in a folder for `base_root` in the processes of an ordinary user whose home that is."""
    for name in names:
        PackedImage.of(base_image(name)).save(place / f"{name}.tar", f"{name}:1")


@cache
def _own_copy(name: str) -> ImageRoot:
    """Unpack an image for an ordinary user."""
    file, found = Path.home() / f"{name}.tar", list[ImageRoot]()

    async def unpack() -> None:
        namespace = await UserNamespace.make(IdMap.own())
        async with Registries.open() as registries:
            store = ImageStore(cache=Path(mkdtemp()), registries=registries, namespace=namespace)
            unpacked = await store.pull(Reference.parse(f"{name}:1"), source=Archive.read(file, ours()))
        found.append(ImageRoot(layers=unpacked.layers))

    thread = Thread(target=anyio.run, args=(unpack,))  # the caller may be in an event loop
    thread.start()
    thread.join()
    return found[0]
