"""What a registry or an archive says of an image: indexes, manifests and configurations, checked while they are read.

Its secret: the two dialects. Docker's and OCI's documents have the same fields under different media types, so one
record reads both; what differs is judged here. Written by strangers, so every field that is used has a type and a
bound. Field names are those of the OCI image specification (image-spec, `manifest.md`, `config.md`).
"""

import platform
from collections.abc import Sequence
from hashlib import new
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from orchestrator.service.environments.images.reference import DIGEST
from orchestrator.service.errors import SandboxError

T = TypeVar("T")

INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
#: Documents are read whole; real ones have some kilobytes, those of images with a hundred layers some ten.
MAX_DOCUMENT_BYTES: Final = 4 << 20
#: Above 400 no overlay of ours was measured.
MAX_LAYERS: Final = 400
#: Machine names of `uname -m`, as images spell them.
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}

Digest = Annotated[str, Meta(pattern=f"^(?:{DIGEST.pattern})$")]
Size = Annotated[int, Meta(ge=0)]


class ImageError(SandboxError):
    """An image cannot be had or used; the message says which, why, and what to do."""


class BadImage(ImageError):
    """An image, or a part of it, is not what its description says, or breaks a rule of the format."""


class Platform(Struct, frozen=True, kw_only=True):
    """An operating system and an architecture, such as linux/arm64/v8."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


class Descriptor(Struct, frozen=True, kw_only=True, rename="camel"):
    """A document or blob by its digest; `size` in bytes."""

    digest: Digest
    size: Size
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] = field(default_factory=dict)


class ImageIndex(Struct, frozen=True, kw_only=True):
    """One image for several platforms."""

    manifests: Sequence[Descriptor]


class Manifest(Struct, frozen=True, kw_only=True):
    """One image: its configuration, and its layers from the lowest up."""

    config: Descriptor
    layers: Annotated[Sequence[Descriptor], Meta(max_length=MAX_LAYERS)]


class Defaults(Struct, frozen=True, kw_only=True, rename="pascal"):
    """How a container of the image starts; the field `config` of a configuration."""

    env: Sequence[str] | None = None
    user: str = ""
    working_dir: str = ""
    entrypoint: Sequence[str] | None = None
    cmd: Sequence[str] | None = None
    shell: Sequence[str] | None = None
    volumes: dict[str, object] | None = None
    labels: dict[str, str] | None = None
    exposed_ports: dict[str, object] | None = None
    stop_signal: str = ""
    on_build: Sequence[str] | None = None


class RootFS(Struct, frozen=True, kw_only=True):
    """Digests of the uncompressed layers, from the lowest up."""

    diff_ids: Annotated[Sequence[Digest], Meta(max_length=MAX_LAYERS)] = ()


class ImageConfig(Struct, frozen=True, kw_only=True):
    """The configuration of an image."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""
    config: Defaults | None = None
    rootfs: RootFS = RootFS()

    @property
    def platform(self) -> Platform:
        return Platform(os=self.os, architecture=self.architecture, variant=self.variant)


def read(data: bytes, kind: type[T], what: str) -> T:
    """Decode a document; `what` names it in the message. Raises BadImage."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadImage(f"{what} is damaged: {error}") from error


def check_digest(data: bytes, digest: str, what: str) -> None:
    """Raise BadImage for a document that is not the one of this digest."""
    algorithm, _, expected = digest.partition(":")
    if new(algorithm, data, usedforsecurity=False).hexdigest() != expected:
        raise BadImage(f"{what} is not what was asked for: its digest is not {digest}")


def ours() -> Platform:
    """Return the platform that boxes of this machine run."""
    machine = platform.machine()
    return Platform(architecture=_ARCHITECTURES.get(machine, machine))


def select(index: ImageIndex, wanted: Platform, what: str) -> Descriptor:
    """Return the entry of an index for a platform; without a wanted variant, the first of the architecture.

    Raises ImageError with the platforms that there are.
    """
    images = [each for each in index.manifests if each.platform is not None and each.platform.os != "unknown"]
    for entry in images:
        assert entry.platform is not None
        is_variant = not wanted.variant or entry.platform.variant == wanted.variant
        if (entry.platform.os, entry.platform.architecture) == (wanted.os, wanted.architecture) and is_variant:
            return entry
    if len(index.manifests) == 1 and index.manifests[0].platform is None:
        return index.manifests[0]
    there = ", ".join(dict.fromkeys(str(each.platform) for each in images)) or "none"
    raise ImageError(f"{what} has no image for {wanted}, which this machine needs; there are: {there}")


def check_layers(manifest: Manifest, config: ImageConfig, what: str) -> None:
    """Raise BadImage unless the configuration describes each layer of the manifest."""
    if len(manifest.layers) != len(config.rootfs.diff_ids):
        raise BadImage(
            f"{what} is damaged: {len(manifest.layers)} layers, and {len(config.rootfs.diff_ids)} in its configuration"
        )
