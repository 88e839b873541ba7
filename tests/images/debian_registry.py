"""A real registry: Debian's docker-registry on a free port of loopback, with a folder of its own."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from orchestrator.service.environments.images.reference import Reference
from tests.images.packing import MANIFEST, PackedImage
from tests.images.token_server import ISSUER, SERVICE, TokenServer
from tests.waiting import wait_until


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianRegistry:
    """A running one; `tokens` if it wants tokens. Its log is in the file `log`."""

    host: str
    log: Path
    tokens: TokenServer | None = None

    def push(self, name: str, image: PackedImage) -> Reference:
        """Push an image under the name `REPOSITORY:TAG`, and return its whole one. Blocking."""
        repository, _, tag = name.rpartition(":")
        token = self.tokens.token(repository, "pull", "push") if self.tokens else ""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        with httpx.Client(base_url=f"http://{self.host}/v2/{repository}/", headers=headers, trust_env=False) as http:
            for digest, data in image.blobs.items():
                place = http.post("blobs/uploads/").raise_for_status().headers["location"]
                put = http.put(httpx.URL(place).copy_merge_params({"digest": digest}), content=data)
                put.raise_for_status()
            kind = {"content-type": MANIFEST}
            http.put(f"manifests/{tag}", content=image.manifest, headers=kind).raise_for_status()
        return Reference.parse(f"{self.host}/{name}")

    def answered(self, digest: str) -> Sequence[int]:
        """Return the status of each answer so far to a request for a blob."""
        return [
            int(status) for status in re.findall(rf'"GET /v2/\S+/blobs/{digest} [^"]*" (\d+)', self.log.read_text())
        ]


@contextmanager
def debian_registry(place: Path, *, tokens: TokenServer | None = None, realm: str = "") -> Iterator[DebianRegistry]:
    """Run one in the folder `place`; with `tokens`, visitors get theirs at `realm`. Skips where it is not installed."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("a real registry needs docker-registry (Debian package docker-registry)")
    place.mkdir()
    settings: dict[str, object] = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(place / "files")}},
        "http": {"addr": "127.0.0.1:0", "secret": "of the tests"},
    }
    if tokens is not None:
        trust = {"service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(tokens.certificate)}
        settings["auth"] = {"token": {"realm": realm, **trust}}
    (place / "config.yml").write_text(json.dumps(settings))  # YAML has JSON in it
    log = place / "log"
    with log.open("wb") as file:
        command = [program, "serve", str(place / "config.yml")]
        process = subprocess.Popen(command, env={}, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        listening = wait_until(
            lambda: re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text()) or process.poll() is not None,
            log.read_text,
        )
        assert isinstance(listening, re.Match), log.read_text()
        yield DebianRegistry(host=listening[1], log=log, tokens=tokens)
    finally:
        process.kill()
        process.wait()
