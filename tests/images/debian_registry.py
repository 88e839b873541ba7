"""A real registry: Debian's docker-registry on a free port of loopback, with a folder of its own."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from orchestrator.service.environments.images.reference import Reference
from tests.images.packing import INDEX, MANIFEST, PackedImage, digest_of
from tests.waiting import wait_until


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianRegistry:
    """A running one. Its log is in the file `log`; `authorization` is ours to push to a repository."""

    host: str
    log: Path
    authorization: Callable[[str], str]
    _pushed: dict[str, str] = field(default_factory=dict)

    def push(self, name: str, image: PackedImage) -> Reference:
        """Push an image under the name `REPOSITORY:TAG`, and return its whole one. Blocking.

        A blob that another repository has comes from there, where everybody may read that one.
        """
        with self._client(name) as http:
            for digest, data in image.blobs.items():
                there = {"mount": digest, "from": self._pushed[digest]} if digest in self._pushed else {}
                asked = http.post("blobs/uploads/", params=there).raise_for_status()
                if asked.status_code != httpx.codes.CREATED:
                    place = httpx.URL(asked.headers["location"])
                    http.put(place.copy_merge_params({"digest": digest}), content=data).raise_for_status()
                if "authorization" not in http.headers:
                    self._pushed[digest] = name.rpartition(":")[0]
        return self._name(name, image.manifest, MANIFEST)

    def push_index(self, name: str, images: Mapping[str, PackedImage]) -> Reference:
        """Push images of several architectures under one name. Blocking."""
        entries = []
        for architecture, image in images.items():
            self.push(f"{name}-{architecture}", image)
            described = {"mediaType": MANIFEST, "digest": digest_of(image.manifest), "size": len(image.manifest)}
            entries.append({**described, "platform": {"os": "linux", "architecture": architecture}})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        return self._name(name, json.dumps(index).encode(), INDEX)

    def _name(self, name: str, document: bytes, kind: str) -> Reference:
        with self._client(name) as http:
            path = f"manifests/{name.rpartition(':')[2]}"
            http.put(path, content=document, headers={"content-type": kind}).raise_for_status()
        return Reference.parse(f"{self.host}/{name}")

    def _client(self, name: str) -> httpx.Client:
        repository = name.rpartition(":")[0]
        given = self.authorization(repository)
        headers = {"authorization": given} if given else {}
        return httpx.Client(base_url=f"http://{self.host}/v2/{repository}/", headers=headers, trust_env=False)

    def answered(self, digest: str) -> Sequence[int]:
        """Return the status of each answer so far to a request for a blob."""
        return [
            int(status) for status in re.findall(rf'"GET /v2/\S+/blobs/{digest} [^"]*" (\d+)', self.log.read_text())
        ]


@contextmanager
def debian_registry(
    place: Path, *, auth: Mapping[str, object] | None = None, authorization: Callable[[str], str] = lambda _: ""
) -> Iterator[DebianRegistry]:
    """Run one in the folder `place`, with this part of its configuration; skip the test where it is not installed."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("a real registry needs docker-registry (Debian package docker-registry)")
    place.mkdir()
    settings: dict[str, object] = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(place / "files")}},
        "http": {"addr": "127.0.0.1:0", "secret": "of the tests"},
    }
    if auth is not None:
        settings["auth"] = auth
    (place / "config.yml").write_text(json.dumps(settings))  # YAML has JSON in it
    log = place / "log"
    with log.open("wb") as file:
        command = ["setpriv", "--pdeathsig", "KILL", program, "serve", str(place / "config.yml")]
        process = subprocess.Popen(
            command, env={"PATH": os.defpath}, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        listening = wait_until(
            lambda: re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text()) or process.poll() is not None,
            log.read_text,
        )
        assert isinstance(listening, re.Match), log.read_text()
        yield DebianRegistry(host=listening[1], log=log, authorization=authorization)
    finally:
        process.kill()
        process.wait()
