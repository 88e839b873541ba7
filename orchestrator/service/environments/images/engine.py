"""Images that a container engine of this machine has: Docker or Podman, asked over its socket by HTTP.

Its secret: the two routes that both engines have, and that neither is trusted to answer. An engine has a few seconds to
say whether it has an image, so that a socket without a living engine delays nothing; what it says of the image is
checked before its archive comes. The archive is a file of `docker save`, which `archive` reads.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx
import structlog
from anyio.to_thread import run_sync
from msgspec import Struct

from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.manifest import BadImage, ImageConfig, ImageError, ours, read
from orchestrator.service.environments.images.reference import Reference

#: The time in which an engine must say whether it has an image.
ANSWER_S: Final = 3.0
#: An engine may write a whole archive to its disk before the first byte comes.
_SILENCE_S: Final = 300.0


class _Inspected(Struct, frozen=True, kw_only=True, rename="pascal"):
    """What an engine says of an image."""

    os: str
    architecture: str
    repo_digests: Sequence[str] | None = None


def sockets() -> Sequence[Path]:
    """Return the sockets of engines that are there for this user, his own choice first. Maybe nobody listens there."""
    chosen = urlsplit(os.environ.get("DOCKER_HOST", ""))
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    places = [chosen.path if chosen.scheme == "unix" else "", "" if chosen.scheme else "/var/run/docker.sock"]
    places += [f"{runtime}/podman/podman.sock" if runtime else "", "/run/podman/podman.sock"]
    found: dict[Path, Path] = {}
    for place in map(Path, filter(None, places)):
        if os.access(place, os.R_OK | os.W_OK) and place.is_socket():
            found.setdefault(place.resolve(), place)
    return list(found.values())


async def is_alive(socket: Path) -> bool:
    """Tell whether an engine answers at a socket."""
    try:
        with anyio.fail_after(ANSWER_S):
            async with _client(socket) as http:
                return (await http.get("/_ping")).is_success
    except (httpx.HTTPError, TimeoutError):
        return False


async def save(socket: Path, reference: Reference, file: Path) -> Archive | None:
    """Have an engine save an image to `file`; None if it does not, or has another one than this machine needs.

    Raises OSError of the disk.
    """
    version = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
    path = f"/images/{reference.registry}/{reference.repository}{version}"
    log = structlog.get_logger().bind(reference=str(reference), engine=str(socket))
    try:
        async with _client(socket) as http:
            with anyio.fail_after(ANSWER_S):
                answer = await http.get(f"{path}/json")
            if not answer.is_success:
                return None
            found = read(answer.content, _Inspected, f"what {socket} says of {reference}")
            digests = {each.partition("@")[2] for each in found.repo_digests or ()}
            if (found.os, found.architecture) != (ours().os, ours().architecture):
                log.info("image.engine_other_platform", platform=f"{found.os}/{found.architecture}")
                return None
            if reference.digest and reference.digest not in digests:
                log.info("image.engine_other_digest", digests=sorted(digests))
                return None
            async with http.stream("GET", f"{path}/get") as stream, await anyio.open_file(file, "wb") as target:
                stream.raise_for_status()
                async for piece in stream.aiter_raw(1 << 20):
                    await target.write(piece)
        return await _chosen(await run_sync(Archive.read, file, ours()), reference)
    except (httpx.TransportError, TimeoutError) as error:
        log.info("image.engine_silent", error=str(error) or type(error).__name__)
    except (httpx.HTTPError, ImageError) as error:
        log.warning("image.engine_failed", error=str(error))
    return None


async def _chosen(archive: Archive, reference: Reference) -> Archive:
    """Return an archive with the image for this machine alone, under the name that was asked for. Raises ImageError."""
    for image in archive.images:
        data = await archive.document(reference, image.manifest.config)
        config = read(data, ImageConfig, f"the configuration of {reference}")
        if (config.os, config.architecture) == (ours().os, ours().architecture):
            return replace(archive, images=(replace(image, reference=reference),))
    raise BadImage(f"its archive has no image for {ours()}")


def _client(socket: Path) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=os.fspath(socket))
    timeout = httpx.Timeout(_SILENCE_S, connect=ANSWER_S)
    return httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=timeout, trust_env=False)
