"""Unpacked images for tests of boxes: a base image with layers above that have what these tests look for."""

import os
from pathlib import Path

from orchestrator.service.sandbox.closure import PROGRAM
from orchestrator.service.sandbox.provider import ImageRoot
from tests.images.base_images import base_image


def make_image(name: str, place: Path) -> ImageRoot:
    """Make an image in the folder `place`: a base image, a layer with Python and files, and one that changes those."""
    base = base_image(name).root
    lower, upper = place / "lower", place / "upper"
    for folder in ("usr/bin", "opt/old", "var/www"):
        (lower / folder).mkdir(parents=True)
    (lower / "usr/bin/python3").symlink_to(PROGRAM)
    (lower / "opt/old/file").write_text("old\n")
    (lower / "opt/kept").write_text("lower\n")
    (lower / "var/www/page").write_text("page\n")
    os.chown(lower / "var/www/page", 33, 33)

    (upper / "opt").mkdir(parents=True)
    (upper / "opt/kept").write_text("upper\n")
    os.mknod(upper / "opt/old", 0o600 | 0o020000, 0)  # how overlayfs marks what a layer removes
    return ImageRoot(layers=(*base.layers, lower, upper))
