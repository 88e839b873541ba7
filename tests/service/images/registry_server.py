"""A registry on loopback, with images in memory, that asks for tokens and misbehaves as a test tells it to."""

import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.serving import serving

from .layers import packed

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
USER, PASSWORD, TOKEN = "ann", "pass:word", "a-token"


def digest_of(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


@dataclass(slots=True)
class FakeRegistry:
    """Blobs by digest and manifests by name, digest or tag; `log` has each request as "GET /v2/… headers".

    `fault` is asked before each answer, with the request; its answer, if it has one, is given instead.
    """

    url: str = ""
    private: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[bytes, str]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    fault: Callable[[Request], Response | None] = lambda _: None

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def add_blob(self, data: bytes) -> dict[str, object]:
        """Keep a blob; returns its descriptor."""
        self.blobs[digest_of(data)] = data
        return {"mediaType": "application/octet-stream", "digest": digest_of(data), "size": len(data)}

    def add_manifest(self, name: str, tag: str, document: object, kind: str = MANIFEST) -> dict[str, object]:
        data = json.dumps(document).encode()
        for version in (tag, digest_of(data)):
            self.manifests[name, version] = (data, kind)
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}

    def add_image(
        self, name: str, tag: str, *layers: bytes, architecture: str = "amd64", how: str = "plain"
    ) -> dict[str, object]:
        """Keep an image of layers, packed in one way; returns its descriptor."""
        config = {
            "os": "linux",
            "architecture": architecture,
            "config": {"Env": ["PATH=/bin"], "WorkingDir": "/srv"},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
        described = {
            "schemaVersion": 2,
            "config": self.add_blob(json.dumps(config).encode()),
            "layers": [self.add_blob(packed(layer, how)) for layer in layers],
        }
        return self.add_manifest(name, tag, described)

    def asked(self, part: str) -> list[dict[str, str]]:
        """The headers of each request whose path contains `part`."""
        return [headers for path, headers in self.requests if part in path]

    async def answer(self, request: Request) -> Response:
        self.requests.append((str(request.url.path), dict(request.headers)))
        if (given := self.fault(request)) is not None:
            return given
        if request.url.path == "/token":
            return self._token(request)
        if self.private and request.headers.get("authorization") != f"Bearer {TOKEN}":
            challenge = f'Bearer realm="{self.url}/token",service="ours",scope="repository:x:pull"'
            return JSONResponse({"errors": []}, 401, {"www-authenticate": challenge})
        name, kind, version = request.path_params["rest"].rsplit("/", 2)
        if kind == "manifests" and (name, version) in self.manifests:
            data, media_type = self.manifests[name, version]
            return Response(data, media_type=media_type)
        if kind == "blobs" and version in self.blobs:
            return self._blob(request, self.blobs[version])
        return JSONResponse({"errors": [{"code": "UNKNOWN", "message": "not known here"}]}, 404)

    @staticmethod
    def _token(request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Basic ")
        if given and b64decode(given).decode() != f"{USER}:{PASSWORD}":
            return JSONResponse({}, 401)
        return JSONResponse({"token": TOKEN} if given else {"token": "of-a-stranger"})

    @staticmethod
    def _blob(request: Request, data: bytes) -> Response:
        asked = request.headers.get("range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        status = 206 if asked else 200
        return Response(data[start:], status, media_type="application/octet-stream")


def broken_off(data: bytes, after: int, status: int, *, pause_s: float = 0.01) -> Response:
    """An answer that promises all of `data`, and ends a while after some of it."""

    async def some() -> AsyncIterator[bytes]:
        yield data[:after]
        await anyio.sleep(pause_s)
        raise ConnectionResetError

    return StreamingResponse(some(), status, headers={"content-length": str(len(data))})


@asynccontextmanager
async def served(registry: FakeRegistry) -> AsyncIterator[FakeRegistry]:
    app = Starlette(
        routes=[Route("/token", registry.answer, methods=["GET", "POST"]), Route("/v2/{rest:path}", registry.answer)]
    )
    async with serving(app) as registry.url:
        yield registry
