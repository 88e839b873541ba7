"""Base images for tests, made of Debian's packages once and kept in a cache folder of this user.

Its secret: that folder. `NAME-KEY` there has one image: its only layer unpacked, and the same as a packed archive. KEY
is a digest of what decides the content. One process makes an image, while others that need it wait for its lock.
"""

import fcntl
import gzip
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import IO, Final

import pytest
import zstandard

from orchestrator.service.sandbox.provider import ImageRoot
from tests.caches import shared_cache

MUSL_PROGRAM: Final = Path(__file__).with_name("musl_lookup.c")
#: Folders of Debian's that no program in a box needs.
_LEFT_OUT: Final = ("dev", "usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man", "var/lib/apt/lists")
_USERS: Final = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n"
_PIECE_BYTES: Final = 1 << 20
#: What a repository with tests in Python is worked on with.
_TESTBED: Final = ("git", "patch", "python3-pytest")


class ObstacleError(Exception):
    """Why an image cannot be made on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer, unpacked in `tree` and packed in `blob`; `diff_id` is the digest of the plain archive."""

    tree: Path
    blob: Path
    media_type: str
    diff_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImage:
    """An image; its layers from the lowest up."""

    name: str
    layers: tuple[Layer, ...] = ()

    @property
    def root(self) -> ImageRoot:
        return ImageRoot(layers=tuple(layer.tree for layer in self.layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the only layer of an image is made: `make` fills a folder, with what this machine has from `packages`."""

    packages: Sequence[str]
    make: Callable[[Path], None]
    packing: str


def base_image(name: str) -> BaseImage:
    """Return an image of `RECIPES`, or the one named `empty`; skip the test, with a reason, where there is none."""
    found = _found(name)
    if isinstance(found, str):
        pytest.skip(f"no image {name}: {found}")
    return found


@cache
def _found(name: str) -> BaseImage | str:
    if os.geteuid() != 0:
        return "so far only root's services boot images"
    if name == "empty":
        return BaseImage(name=name)
    try:
        return BaseImage(name=name, layers=(_layer(name, RECIPES[name]),))
    except ObstacleError as obstacle:
        return str(obstacle)


def _layer(name: str, recipe: Recipe) -> Layer:
    """Return the layer of an image, made now unless it is there."""
    place = shared_cache() / "base-images"
    place.mkdir(mode=0o700, exist_ok=True)
    place.chmod(0o700)  # files of an image may run as their owner, root
    folder = place / f"{name}-{_key(recipe)}"
    with (place / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            fresh = folder.with_suffix(".making")
            if fresh.exists():
                shutil.rmtree(fresh)
            (fresh / "tree").mkdir(parents=True)
            recipe.make(fresh / "tree")
            (fresh / "diff_id").write_text(_pack(fresh / "tree", fresh / "layer", recipe.packing))
            fresh.rename(folder)
    media_type = f"application/vnd.oci.image.layer.v1.tar+{recipe.packing}"
    diff_id = (folder / "diff_id").read_text()
    return Layer(tree=folder / "tree", blob=folder / "layer", media_type=media_type, diff_id=diff_id)


def _key(recipe: Recipe) -> str:
    """Return a digest of what decides the content: this file and the program, versions of packages, and the mirror."""
    try:
        versions = _said("dpkg-query", "--show", *recipe.packages)
    except ObstacleError:
        raise ObstacleError(f"this machine lacks one of Debian's {', '.join(recipe.packages)}") from None
    digest = sha256(f"{versions} {platform.machine()} {_archive()}".encode())
    for file in (Path(__file__), MUSL_PROGRAM):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@cache
def _archive() -> tuple[str, str]:
    """Return release and address of the archive that this machine's own system comes from, as apt knows it."""
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    listed = _said(
        *("apt-get", "indextargets", "--no-release-info", "--option", "APT::Get::IndexTargets::OnlyPresent=false"),
        *("--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"),
    )
    for found in map(str.split, listed.splitlines()):
        if found[0] == release:
            return release, found[1]
    raise ObstacleError(f"apt knows no archive of this machine's release {release}")


def _debian(tree: Path, *more: str) -> None:
    """The smallest Debian that apt works in, set up as apt is here, with `more` packages."""
    release, archive = _archive()
    wanted = [f"--include={','.join(more)}"] if more else []
    # In a namespace of its own no mount outlives it.
    _said("unshare", "--mount", "debootstrap", "--variant=minbase", *wanted, release, str(tree), archive)
    _said("chroot", str(tree), "apt-get", "clean")
    for name in _LEFT_OUT:
        shutil.rmtree(tree / name)
        (tree / name).mkdir()
    for name in ("hostname", "resolv.conf"):  # this machine's own
        (tree / "etc" / name).unlink(missing_ok=True)
    settings = _said("apt-config", "dump", "--format", '%f "%v";%n', "Acquire")
    (tree / "etc/apt/apt.conf.d/90acquire").write_text(settings)


def _busybox(tree: Path) -> None:
    """One static program under all its names, and who its users are."""
    for name in ("bin", "etc", "home", "root", "tmp", "usr/bin", "usr/sbin", "sbin", "var"):
        (tree / name).mkdir(parents=True)
    (tree / "tmp").chmod(0o1777)
    (tree / "etc/passwd").write_text(_USERS)
    (tree / "etc/group").write_text("root:x:0:\nwww-data:x:33:\n")
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    for name in _said("/bin/busybox", "--list-full").split():
        if name != "bin/busybox":
            (tree / name).symlink_to("/bin/busybox")


def _musl(tree: Path) -> None:
    """As _busybox, with musl as the only C library, and a program that is linked to it."""
    _busybox(tree)
    (tree / "lib").mkdir()
    (loader,) = Path("/lib").glob("ld-musl-*.so.1")
    shutil.copy(loader, tree / "lib" / loader.name)
    _said("musl-gcc", "-Wall", "-Werror", "-o", str(tree / "usr/bin/lookup"), str(MUSL_PROGRAM))


RECIPES: Final = {
    "debian": Recipe(packages=("debootstrap",), make=_debian, packing="gzip"),
    "testbed": Recipe(packages=("debootstrap",), make=lambda tree: _debian(tree, *_TESTBED), packing="gzip"),
    "busybox": Recipe(packages=("busybox-static",), make=_busybox, packing="zstd"),
    "musl": Recipe(packages=("busybox-static", "gcc", "musl-tools"), make=_musl, packing="gzip"),
}


def _pack(tree: Path, blob: Path, packing: str) -> str:
    """Make `blob` the packed archive of a folder; returns the digest of the plain one."""
    digest = sha256()
    how = ("--format=posix", "--numeric-owner", "--sort=name", "--xattrs")
    command = ["tar", "--create", *how, "--directory", str(tree), "."]
    with blob.open("wb") as file, _packer(file, packing) as packer:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
            assert tar.stdout is not None
            for piece in iter(partial(tar.stdout.read, _PIECE_BYTES), b""):
                digest.update(piece)
                packer.write(piece)
        assert tar.returncode == 0
    return f"sha256:{digest.hexdigest()}"


def _packer(file: IO[bytes], packing: str) -> "gzip.GzipFile | zstandard.ZstdCompressionWriter":
    if packing == "gzip":
        return gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1)
    return zstandard.ZstdCompressor(level=1).stream_writer(file, closefd=False)


def _said(*command: str) -> str:
    """Return what a program prints. Raises ObstacleError with its last line where it fails or is not there."""
    env = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=env)
    except FileNotFoundError as error:
        raise ObstacleError(f"this machine has no {command[0]}") from error
    if done.returncode != 0:
        words = (done.stdout + done.stderr).strip()
        raise ObstacleError(words.splitlines()[-1] if words else f"`{shlex.join(command)}` failed")
    return done.stdout
