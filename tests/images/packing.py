"""Images as their documents and blobs, to be pushed to a registry or saved in an archive."""

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Self

from orchestrator.service.environments.images.manifest import ours
from tests.images.base_images import BaseImage

CONFIG: Final = "application/vnd.oci.image.config.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
PLAIN_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def digest_of(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedImage:
    """The manifest of an image, and what it names by digest: configuration and layers."""

    manifest: bytes
    blobs: Mapping[str, bytes]

    @classmethod
    def of(cls, image: BaseImage, *more: bytes) -> Self:
        """Pack a base image, with `more` layers on it that are plain archives."""
        layers = [(each.media_type, each.blob.read_bytes(), each.diff_id) for each in image.layers]
        layers += [(PLAIN_LAYER, data, digest_of(data)) for data in more]
        config = {
            "os": "linux",
            "architecture": ours().architecture,
            "config": {"Env": [PATH]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, _, diff_id in layers]},
        }
        blobs = [(CONFIG, json.dumps(config).encode()), *((kind, data) for kind, data, _ in layers)]
        described = [{"mediaType": kind, "digest": digest_of(data), "size": len(data)} for kind, data in blobs]
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}
        return cls(manifest=json.dumps(manifest).encode(), blobs={digest_of(data): data for _, data in blobs})

    def save(self, file: Path, name: str) -> None:
        """Write an archive with an OCI layout, which has the image under this name."""
        digest = digest_of(self.manifest)
        entry = {
            "mediaType": MANIFEST,
            "digest": digest,
            "size": len(self.manifest),
            "annotations": {"org.opencontainers.image.ref.name": name},
        }
        files = {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
        }
        files |= {f"blobs/{key.replace(':', '/')}": data for key, data in {**self.blobs, digest: self.manifest}.items()}
        with tarfile.open(file, "w") as archive:
            for path, data in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
