"""Routes of files in devboxes. A relative path starts at the home of the devbox's user, as published."""

import math
from typing import ClassVar, Final

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from orchestrator.service.devboxes.boot import in_home
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.errors import BadRequest, Unwritable
from orchestrator.service.http import serialization as wire
from orchestrator.service.http.app import while_connected
from orchestrator.service.sandbox.commands import Download, read_file, write_file

#: Larger files are for download_file, says the published API.
MAX_TEXT_BYTES: Final = 100 << 20
#: What a devbox of the usual size has room for.
MAX_UPLOAD_BYTES: Final = 4 << 30
_MAX_FIELDS: Final = 16


class _ReadBody(wire.Body):
    file_path: str


class _WriteBody(wire.Body):
    limit: ClassVar[int] = wire.MAX_FILE_BODY_BYTES

    file_path: str
    contents: str


class _DownloadBody(wire.Body):
    path: str


def file_routes(fleet: Fleet) -> list[Route]:
    files = _Files(fleet)
    return [
        Route("/v1/devboxes/{id}/read_file_contents", files.read, methods=["POST"]),
        Route("/v1/devboxes/{id}/write_file_contents", files.write, methods=["POST"]),
        Route("/v1/devboxes/{id}/upload_file", files.upload, methods=["POST"]),
        Route("/v1/devboxes/{id}/download_file", files.download, methods=["POST"]),
    ]


class _Files:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def read(self, request: Request) -> Response:
        path = _path((await wire.parse(request, _ReadBody)).file_path, "file_path")
        with self._fleet.using(wire.path_id(request)) as box:
            data = await read_file(box, in_home(path), keep=MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise BadRequest(f"file_path: {path!r} is larger than {MAX_TEXT_BYTES} bytes; use download_file.")
        try:
            data.decode()
        except UnicodeDecodeError:
            raise BadRequest(f"file_path: {path!r} is not UTF-8 text; use download_file.") from None
        return Response(data, media_type="text/plain")

    async def write(self, request: Request) -> Response:
        body = await wire.parse(request, _WriteBody)
        with self._fleet.using(wire.path_id(request)) as box:
            path = in_home(_path(body.file_path, "file_path"))
            await write_file(box, path, body.contents.encode(), as_user=True)
        return wire.reply({"devbox_id": wire.path_id(request), "exit_status": 0, "stdout": "", "stderr": ""})

    async def upload(self, request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise BadRequest("The body is not valid: expected multipart/form-data.")
        try:
            form = await wire.bounded(request, MAX_UPLOAD_BYTES).form(max_files=1, max_fields=_MAX_FIELDS)
        except OSError as error:  # its files are on our disk meanwhile
            raise Unwritable(f"The file cannot be kept on its way to the devbox: {error}") from None
        try:
            path, file = form.get("path"), form.get("file")
            if not isinstance(path, str) or not isinstance(file, UploadFile):
                raise BadRequest("The body is not valid: expected the multipart fields 'path' (text) and 'file'.")
            with self._fleet.using(wire.path_id(request)) as box:
                place = in_home(_path(path, "path"))
                await write_file(box, place, file.read, timeout=math.inf, as_user=True)
        finally:
            await form.close()
        return wire.reply({})

    async def download(self, request: Request) -> Response:
        path = in_home(_path((await wire.parse(request, _DownloadBody)).path, "path"))
        devbox_id = wire.path_id(request)
        with self._fleet.using(devbox_id) as box:
            # The first byte may never come: a file of the agent's may be a pipe.
            opened = await while_connected(request, lambda: Download.open(box, path))
        return _Sent(self._fleet, devbox_id, opened)


class _Sent(StreamingResponse):
    """A file on its way to the client; its reading ends with the response, however that ends."""

    def __init__(self, fleet: Fleet, devbox_id: str, opened: Download) -> None:
        super().__init__(
            opened.pieces(), media_type="application/octet-stream", headers={"content-disposition": "attachment"}
        )
        self._fleet = fleet
        self._devbox_id = devbox_id
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._fleet.using(self._devbox_id):
                await super().__call__(scope, receive, send)
        finally:
            await self._opened.close()


def _path(path: str, key: str) -> str:
    if not path or "\0" in path:
        raise BadRequest(f"{key}: expected the path of a file, got {path!r}.")
    return path
