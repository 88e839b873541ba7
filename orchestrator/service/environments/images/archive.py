"""Images in a file: what `docker save`, `podman save` and tools of the OCI layout write, packed or not.

Its secret: the two layouts. An OCI layout has `index.json` and its blobs by digest. Docker's older one has
`manifest.json`, which lists files; its layers are plain archives, so their digests are those of the configuration. A
newer `docker save` writes both, and the older description is complete in each, so it is read first.
"""

import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Final, Self

from anyio.to_thread import run_sync
from msgspec import Struct

from orchestrator.service.environments.images import manifest as documents
from orchestrator.service.environments.images.manifest import (
    BadImage,
    Descriptor,
    ImageConfig,
    ImageError,
    Manifest,
    Platform,
)
from orchestrator.service.environments.images.reference import BadReference, Reference
from orchestrator.service.environments.images.registry import NoSuchImage, Tell

#: Names of an image in an OCI layout: containerd's whole one, then the tag alone that the specification has.
_NAMES: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


class _Saved(Struct, frozen=True, kw_only=True, rename="pascal"):
    """One image of Docker's own layout."""

    config: str
    layers: Sequence[str]
    repo_tags: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedImage:
    """An image in an archive, under a name that it has there or is given."""

    reference: Reference
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """The images of one file; a source of images as a registry is. `members` are the file's parts by digest."""

    file: Path
    images: tuple[SavedImage, ...]
    members: Mapping[str, str]

    @classmethod
    def read(cls, file: Path, platform: Platform) -> Self:
        """Read what is in a file; images without a name get the file's. Blocking. Raises ImageError and OSError."""
        try:
            with tarfile.open(file) as archive:
                names = set(archive.getnames())
                if "manifest.json" in names:
                    found = list(_of_docker(archive))
                elif "index.json" in names:
                    found = list(_of_layout(archive, platform, str(file)))
                else:
                    raise BadImage(f"{file} has neither manifest.json nor index.json: it is no archive of images")
        except (tarfile.TarError, EOFError) as error:
            raise BadImage(f"{file} is no archive of images: {error}") from error
        images: list[SavedImage] = []
        members: dict[str, str] = {}
        for tags, manifest, parts in found:
            members |= parts
            for tag in tags or ("",):
                is_whole = "/" in tag or ":" in tag
                try:
                    name = Reference.parse(tag if is_whole else f"{file.name.split('.')[0].lower()}:{tag or 'latest'}")
                except BadReference as error:
                    raise ImageError(f"{file}: {error}") from error
                images.append(SavedImage(reference=name, manifest=manifest))
        return cls(file=file, images=tuple(images), members=members)

    async def manifest(self, reference: Reference, platform: Platform) -> tuple[str, Manifest]:
        """Return the digest and the manifest of an image. Raises NoSuchImage."""
        for image in self.images:
            if image.reference == reference:
                return image.manifest.config.digest, image.manifest
        there = ", ".join(str(image.reference) for image in self.images)
        raise NoSuchImage(f"{self.file} has no {reference} for {platform}; there are: {there}")

    async def document(self, reference: Reference, blob: Descriptor) -> bytes:
        """Return a small part, such as a configuration. Raises BadImage and OSError."""

        def read() -> bytes:
            with tarfile.open(self.file) as archive:
                return _document(archive, self.members[blob.digest])

        data = await run_sync(read)
        documents.check_digest(data, blob.digest, f"{reference} in {self.file}")
        return data

    async def download(
        self,
        reference: Reference,  # noqa: ARG002 - a registry needs it
        blob: Descriptor,
        target: Path,
        tell: Tell = lambda _: None,
    ) -> None:
        """Make `target` the blob. Raises BadImage and OSError."""

        def copy() -> None:
            part = target.with_name(f"{target.name}.part")
            with tarfile.open(self.file) as archive, part.open("wb") as sink:
                shutil.copyfileobj(_part(archive, self.members[blob.digest]), sink, 1 << 20)
            part.replace(target)

        await run_sync(copy)
        tell(blob.size)


def _of_docker(archive: tarfile.TarFile) -> Iterator[tuple[Sequence[str], Manifest, dict[str, str]]]:
    saved = documents.read(_document(archive, "manifest.json"), list[_Saved], "manifest.json")
    for image in saved:
        data = _document(archive, image.config)
        config = documents.read(data, ImageConfig, image.config)
        digest = f"sha256:{sha256(data).hexdigest()}"
        if len(image.layers) != len(config.rootfs.diff_ids):
            raise BadImage(f"manifest.json is damaged: {image.config} describes another number of layers")
        layers = [
            Descriptor(digest=diff_id, size=archive.getmember(name).size)
            for name, diff_id in zip(image.layers, config.rootfs.diff_ids, strict=True)
        ]
        manifest = Manifest(config=Descriptor(digest=digest, size=len(data)), layers=layers)
        parts = {digest: image.config} | dict(zip(config.rootfs.diff_ids, image.layers, strict=True))
        yield image.repo_tags or (), manifest, parts


def _of_layout(
    archive: tarfile.TarFile, platform: Platform, what: str
) -> Iterator[tuple[Sequence[str], Manifest, dict[str, str]]]:
    index = documents.read(_document(archive, "index.json"), documents.ImageIndex, "index.json")
    for entry in index.manifests:
        found = entry
        if found.media_type in documents.INDEX_TYPES:
            inner = documents.read(_document(archive, _place(found)), documents.ImageIndex, found.digest)
            found = documents.select(inner, platform, what)
        data = _document(archive, _place(found))
        documents.check_digest(data, found.digest, what)
        manifest = documents.read(data, Manifest, found.digest)
        names = [entry.annotations[key] for key in _NAMES if key in entry.annotations]
        yield names[:1], manifest, {each.digest: _place(each) for each in (manifest.config, *manifest.layers)}


def _place(blob: Descriptor) -> str:
    return f"blobs/{blob.digest.replace(':', '/')}"


def _document(archive: tarfile.TarFile, name: str) -> bytes:
    part = _part(archive, name)
    data = part.read(documents.MAX_DOCUMENT_BYTES + 1)
    if len(data) > documents.MAX_DOCUMENT_BYTES:
        raise BadImage(f"{name} is longer than a document of an image can be")
    return data


def _part(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    """Open a file of the archive; a link leads to another file of it. Raises BadImage."""
    try:
        part = archive.extractfile(name)
    except KeyError:
        part = None
    if part is None:
        raise BadImage(f"the archive has no file {name!r}, which it describes")
    return part
