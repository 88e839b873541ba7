"""Images come from files too: from what `docker save` wrote once and writes now, and from OCI layouts."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.image_store import ImageStore
from orchestrator.service.environments.images.manifest import BadImage, ImageError, Platform, ours
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.images.registry import NoSuchImage

from .layers import entry, layer, packed
from .registry_server import INDEX, MANIFEST, digest_of

pytestmark = pytest.mark.anyio
LINUX = Platform(architecture="amd64")
LAYER = layer(entry("srv/one", data=b"1"))
CONFIG = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [digest_of(LAYER)]}}).encode()


def written(path: Path, files: dict[str, bytes], how: str = "w") -> Path:
    with tarfile.open(path, how) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def saved(tags: list[str] | None) -> dict[str, bytes]:
    """What `docker save` wrote until version 24."""
    described = [{"Config": "config.json", "RepoTags": tags, "Layers": ["a/layer.tar"]}]
    return {"config.json": CONFIG, "a/layer.tar": LAYER, "manifest.json": json.dumps(described).encode()}


def saved_image(path: Path, tag: str, *layers: bytes) -> Path:
    """An archive of `docker save` with one image."""
    rootfs = {"diff_ids": [digest_of(each) for each in layers]}
    config = {"os": "linux", "architecture": ours().architecture, "rootfs": rootfs}
    files = {f"{number}.tar": each for number, each in enumerate(layers)}
    described = [{"Config": "config.json", "RepoTags": [tag], "Layers": list(files)}]
    documents = {"config.json": config, "manifest.json": described}
    return written(path, files | {name: json.dumps(document).encode() for name, document in documents.items()})


def layout(**annotations: str) -> dict[str, bytes]:
    """An OCI layout with an index in its index, as newer tools write it."""
    blob = packed(LAYER, "gzip")
    parts = {digest_of(data): data for data in (blob, CONFIG)}

    def described(data: bytes, kind: str) -> dict[str, object]:
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}

    manifest = json.dumps({"config": described(CONFIG, ""), "layers": [described(blob, "")]}).encode()
    platform = {"os": "linux", "architecture": "amd64"}
    inner = json.dumps({"manifests": [{**described(manifest, MANIFEST), "platform": platform}]}).encode()
    parts |= {digest_of(data): data for data in (manifest, inner)}
    index = {"manifests": [{**described(inner, INDEX), "annotations": annotations}]}
    files = {f"blobs/{digest.replace(':', '/')}": data for digest, data in parts.items()}
    return {"oci-layout": b"{}", "index.json": json.dumps(index).encode(), **files}


@pytest.mark.parametrize("how", ["w", "w:gz"])
def test_an_archive_of_docker_has_its_images_by_their_tags(tmp_path: Path, how: str) -> None:
    archive = Archive.read(written(tmp_path / "x.tar", saved(["team/x:1", "y:2"]), how), LINUX)
    assert [str(image.reference) for image in archive.images] == ["team/x:1", "y:2"]


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({"io.containerd.image.name": "docker.io/team/x:1"}, "team/x:1"),
        ({"org.opencontainers.image.ref.name": "v2"}, "my-image:v2"),
        ({}, "my-image:latest"),
    ],
)
def test_an_image_of_a_layout_has_its_own_name_or_that_of_its_file(
    tmp_path: Path, annotations: dict[str, str], name: str
) -> None:
    archive = Archive.read(written(tmp_path / "My-Image.tar", layout(**annotations)), LINUX)
    assert [str(image.reference) for image in archive.images] == [name]


@pytest.mark.root
@pytest.mark.parametrize(
    "files", [saved(["x:1"]), layout(**{"io.containerd.image.name": "x:1"})], ids=["docker", "oci"]
)
async def test_an_image_of_an_archive_is_unpacked_as_one_of_a_registry(
    tmp_path: Path, store: ImageStore, files: dict[str, bytes]
) -> None:
    archive = Archive.read(written(tmp_path / "x.tar", files), LINUX)
    found = await store.pull(Reference.parse("x:1"), source=archive)
    assert (found.layers[0] / "srv/one").read_bytes() == b"1"
    assert await store.get(Reference.parse("x:1")) == found


async def test_what_an_archive_does_not_have_is_named_with_what_it_has(tmp_path: Path) -> None:
    archive = Archive.read(written(tmp_path / "x.tar", saved(["x:1"])), LINUX)
    with pytest.raises(NoSuchImage, match=r"has no x:2 .* there are: x:1"):
        await archive.manifest(Reference.parse("x:2"), LINUX)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"a": b""}, "neither manifest.json nor index.json"),
        ({**saved(None), "manifest.json": b"{"}, "manifest.json is damaged"),
        ({"manifest.json": saved(None)["manifest.json"]}, "no file 'config.json'"),
        (saved(["team/UPPER:1"]), "capital letters"),
        ({**layout(), "index.json": b'{"manifests": [{"digest": "sha256:x", "size": 0}]}'}, "damaged"),
    ],
)
def test_an_archive_that_is_damaged_is_named_with_the_reason(tmp_path: Path, files: dict[str, bytes], why: str) -> None:
    with pytest.raises(ImageError, match=why):
        Archive.read(written(tmp_path / "Up.tar", files), LINUX)


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no archive")
    with pytest.raises(BadImage, match="no archive of images"):
        Archive.read(tmp_path / "x", LINUX)
