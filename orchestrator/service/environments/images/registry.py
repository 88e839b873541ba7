"""Asks registries for manifests and blobs, by the OCI distribution protocol.

Its secret: nobody on the way is trusted. What comes must have the digest and the size that were asked for, and is
broken off when it is longer. A login is sent to the registry that it is for, and to the token server that this one
names, by TLS; never along a redirection. A registry of the internet may not lead us to an address of this site. A
download that broke off is continued where it was, in this process or a later one.

A name with mirrors is asked for there first, then at its own registry; what a mirror does not have is no error.
"""

import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from hashlib import new
from itertools import count
from pathlib import Path
from random import uniform
from time import time
from typing import Final, TypeVar
from urllib.parse import urlsplit

import anyio
import httpx
import structlog
from anyio.to_thread import run_sync

from orchestrator.core.protocol import Mirror
from orchestrator.service.environments.images import manifest as documents
from orchestrator.service.environments.images.credentials import Credentials, Login
from orchestrator.service.environments.images.manifest import BadImage, Descriptor, ImageError, Manifest, Platform
from orchestrator.service.environments.images.reference import DOCKER_HUB, Reference, base_url, is_loopback
from orchestrator.service.sandbox.egress.addresses import Resolver, is_public, looked_up

T = TypeVar("T")
#: Given the bytes that came since the last call.
Tell = Callable[[int], None]

MAX_CONNECTIONS: Final = 16
CONNECT_TIMEOUT_S: Final = 20.0
#: Without a byte for so long, a connection counts as broken.
READ_TIMEOUT_S: Final = 60.0
#: A request is made so many times in all while nothing comes; a byte that comes starts the count again.
TRIES: Final = 6
#: The longest time that a registry is waited for when it asks to be (Retry-After).
MAX_WAIT_S: Final = 900.0
_CHUNK_BYTES: Final = 1 << 20
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_LOOKUPS: Final = 8
#: One parameter of a challenge (RFC 9110, 11.2).
_PARAMETER: Final = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))')


class _TroubleError(Exception):
    """A request failed in a way that another try may mend; `wait` is how long the registry asks to wait, in seconds."""

    def __init__(self, words: str, wait: float | None = None) -> None:
        super().__init__(words)
        self.wait = wait


class NoSuchImage(ImageError):
    """No place that was asked has it."""


class Unavailable(ImageError):
    """A registry cannot be reached, is busy, or broke off each time; another try may succeed."""


class Refused(ImageError):
    """A registry wants a login, or another one than it got."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where one repository can be asked for; `login` is the registry whose login is for it."""

    url: str
    login: str
    repository: str

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def is_plain(self) -> bool:
        return self.url.startswith("http:")


@dataclass(slots=True)
class Registries:
    """All registries, asked by one HTTP client; `mirrors` in their order."""

    http: httpx.AsyncClient
    credentials: Credentials = field(default_factory=Credentials)
    mirrors: Sequence[Mirror] = ()
    resolve: Resolver = field(default_factory=lambda: looked_up(_LOOKUPS))
    #: Length of the first pause before another try; each later one is twice as long.
    pause_s: float = 0.5
    _authorizations: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, mirrors: Sequence[Mirror] = (), credentials: Credentials | None = None
    ) -> AsyncIterator["Registries"]:
        """Open with a client of its own, which follows this machine's settings of proxies and certificates."""
        limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=None)
        direct = {f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")}
        async with httpx.AsyncClient(limits=limits, timeout=timeout, mounts=direct) as http:
            yield cls(http, mirrors=mirrors, credentials=credentials or Credentials())

    async def manifest(self, reference: Reference, platform: Platform) -> tuple[str, Manifest]:
        """Return the digest and the manifest of an image for one platform. Raises ImageError."""
        accept = ", ".join((*documents.INDEX_TYPES, *documents.MANIFEST_TYPES))

        async def fetch(place: Origin) -> tuple[str, Manifest]:
            version, what = reference.version, f"{reference} of {place.host}"
            while True:
                data, kind = await self._read(place, f"manifests/{version}", accept=accept)
                if ":" in version:
                    documents.check_digest(data, version, what)
                kind = kind or str(documents.read(data, dict, what).get("mediaType", ""))
                if kind in documents.MANIFEST_TYPES:
                    return f"sha256:{new('sha256', data).hexdigest()}", documents.read(data, Manifest, what)
                if kind not in documents.INDEX_TYPES or ":" in version != ":" in reference.version:
                    raise BadImage(f"{what} is of a kind that cannot be run: {kind or 'unknown'}")
                index = documents.read(data, documents.ImageIndex, what)
                version = documents.select(index, platform, str(reference)).digest

        return await self._at_each(reference, fetch)

    async def document(self, reference: Reference, blob: Descriptor) -> bytes:
        """Return a small blob, such as a configuration. Raises ImageError."""

        async def fetch(place: Origin) -> bytes:
            data, _ = await self._read(place, f"blobs/{blob.digest}")
            documents.check_digest(data, blob.digest, f"{reference}, blob {blob.digest}")
            return data

        return await self._at_each(reference, fetch)

    async def download(self, reference: Reference, blob: Descriptor, target: Path, tell: Tell = lambda _: None) -> None:
        """Make `target` the blob; goes on with `target.part` if there is one. Raises ImageError and OSError."""
        await self._at_each(reference, lambda place: self._download(place, blob, target, tell))

    async def _at_each(self, reference: Reference, ask: Callable[[Origin], Awaitable[T]]) -> T:
        """Ask the mirrors and the registry in turn; raises what the last one said, and what the others did."""
        failures: list[ImageError] = []
        for place in self._places(reference):
            try:
                return await ask(place)
            except ImageError as error:
                failures.append(error)
        last = failures[-1]
        said = "; ".join(dict.fromkeys(error.message for error in failures))
        raise type(last)(f"{reference}: {said}")

    def _places(self, reference: Reference) -> list[Origin]:
        mirrors = [each for each in self.mirrors if each.registry == reference.registry]
        own = Origin(url=base_url(reference.registry), login=reference.registry, repository=reference.repository)
        return [
            *(Origin(url=each.url, login=urlsplit(each.url).netloc, repository=own.repository) for each in mirrors),
            own,
        ]

    async def _read(self, place: Origin, path: str, **headers: str) -> tuple[bytes, str]:
        """Read a whole document; returns it and its media type."""
        for attempt in count():
            try:
                async with self._answer(place, path, headers) as answer:
                    data = bytearray()
                    async for piece in answer.aiter_raw():
                        data += piece
                        if len(data) > documents.MAX_DOCUMENT_BYTES:
                            raise BadImage(f"{place.host} sends more than a document of an image can have")
                    return bytes(data), answer.headers.get("content-type", "").partition(";")[0].strip()
            except _TroubleError as trouble:
                await self._pause(place, attempt, trouble)
        raise AssertionError

    async def _download(self, place: Origin, blob: Descriptor, target: Path, tell: Tell) -> None:
        part = target.with_name(f"{target.name}.part")
        attempt = 0
        while not await run_sync(target.exists):
            sink = await run_sync(_Sink, part, blob)
            before = sink.size
            try:
                if sink.size < blob.size:
                    headers = {"range": f"bytes={sink.size}-"} if sink.size else {}
                    async with self._answer(place, f"blobs/{blob.digest}", headers) as answer:
                        if answer.status_code != httpx.codes.PARTIAL_CONTENT and sink.size:
                            tell(-sink.size)
                            await run_sync(sink.restart)
                        async for piece in answer.aiter_raw():
                            await run_sync(sink.write, piece)
                            tell(len(piece))
                await run_sync(sink.finish, target)
            except _TroubleError as trouble:
                attempt = attempt + 1 if sink.size == before else 0
                await self._pause(place, attempt, trouble)
            finally:
                with anyio.CancelScope(shield=True):
                    await run_sync(sink.close)

    @asynccontextmanager
    async def _answer(self, place: Origin, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """Open the answer with what was asked for. Raises ImageError and _TroubleError, while it is read too."""
        url = f"{place.url}/v2/{place.repository}/{path}"
        key, given = (place.url, place.repository), {"accept-encoding": "identity", **headers}
        try:
            for is_second in (False, True):
                if key in self._authorizations:
                    given["authorization"] = self._authorizations[key]
                answer = await self._follow(place, url, given)
                try:
                    if answer.is_success:
                        yield answer
                        return
                    if answer.status_code in _BUSY:
                        raise _TroubleError(f"HTTP {answer.status_code}", _retry_after(answer))
                    if answer.status_code != httpx.codes.UNAUTHORIZED or is_second:
                        raise await _refusal(place, answer)
                    challenges = answer.headers.get_list("www-authenticate")
                finally:
                    await answer.aclose()
                self._authorizations[key] = await self._authorize(place, challenges)
        except httpx.TransportError as error:
            raise _TroubleError(str(error) or type(error).__name__) from error

    async def _follow(self, place: Origin, url: str, headers: dict[str, str]) -> httpx.Response:
        """Send a GET, and follow where the registry leads; returns an open answer."""
        for _ in range(_MAX_REDIRECTS):
            answer = await self.http.send(self.http.build_request("GET", url, headers=headers), stream=True)
            if answer.status_code not in _REDIRECTS:
                return answer
            await answer.aclose()
            target = httpx.URL(url).join(answer.headers.get("location", ""))
            await self._check_target(place, target)
            if (target.host, target.port) != (httpx.URL(url).host, httpx.URL(url).port):
                headers = {name: value for name, value in headers.items() if name != "authorization"}
            url = str(target)
        raise Unavailable(f"{place.host} leads on and on")

    async def _check_target(self, place: Origin, target: httpx.URL) -> None:
        """Raise BadImage for an address that a registry may not lead to: no TLS, or a neighbour of ours."""
        is_own = is_loopback(target.host) and is_loopback(urlsplit(place.url).hostname or "")
        if target.scheme != "https" and not (target.scheme == "http" and (is_own or place.is_plain)):
            raise BadImage(f"{place.host} leads to {target.scheme}://{target.host}, which is not secure")
        is_far = not is_own and await self._is_on_internet(urlsplit(place.url).hostname or "")
        if is_far and not await self._is_on_internet(target.host):
            raise BadImage(f"{place.host} leads to {target.host}, which is no address of the internet")

    async def _is_on_internet(self, host: str) -> bool:
        """Tell whether all addresses of a host are public; one that cannot be looked up here is a proxy's matter."""
        try:
            return all(is_public(address) for address in await self.resolve(host, 443))
        except OSError:
            return True

    async def _authorize(self, place: Origin, challenges: Sequence[str]) -> str:
        """Return the header that a registry asks for. Raises ImageError, and TransportError of httpx."""
        login = await self.credentials.of(place.login)
        for challenge in challenges:
            scheme, _, rest = challenge.partition(" ")
            asked = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(rest)}
            if scheme.lower() == "bearer" and asked.get("realm"):
                return f"Bearer {await self._token(place, asked, login)}"
            if scheme.lower() == "basic" and login is not None and not login.is_token:
                return httpx.BasicAuth(login.user, login.password)._auth_header  # noqa: SLF001
        raise Refused(f"{place.host} wants a login: {_how_to_log_in(place.login)}")

    async def _token(self, place: Origin, asked: Mapping[str, str], login: Login | None) -> str:
        realm = httpx.URL(asked["realm"])
        await self._check_target(place, realm)
        query = {"scope": asked.get("scope") or f"repository:{place.repository}:pull"}
        query |= {"service": asked["service"]} if asked.get("service") else {}
        if login is not None and login.is_token:
            form = {**query, "grant_type": "refresh_token", "client_id": "sweep", "refresh_token": login.password}
            answer = await self.http.post(realm, data=form)
        else:
            auth = None if login is None else httpx.BasicAuth(login.user, login.password)
            answer = await self.http.get(realm, params={**dict(realm.params), **query}, auth=auth)
        if answer.status_code in _BUSY:
            raise _TroubleError(f"HTTP {answer.status_code} for a token", _retry_after(answer))
        if answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise Refused(f"{place.host} refuses the login: {_how_to_log_in(place.login)}")
        found = documents.read(answer.content, dict, f"the token of {place.host}") if answer.is_success else {}
        token = found.get("token") or found.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise Unavailable(f"{place.host} gives no token (HTTP {answer.status_code})")
        return token

    async def _pause(self, place: Origin, attempt: int, trouble: _TroubleError) -> None:
        """Wait before the next try, as long as the registry asks. Raises Unavailable after the last one."""
        words = str(trouble)
        seconds = uniform(0.5, 1.0) * self.pause_s * 2**attempt if trouble.wait is None else trouble.wait  # noqa: S311
        if attempt >= TRIES - 1 or seconds > MAX_WAIT_S:
            asks = f", and asks to come back in {seconds:.0f} s" if seconds > MAX_WAIT_S else ""
            is_limit = words == "HTTP 429" and place.login == DOCKER_HUB
            limit = " (its limit for downloads; `docker login` raises it)" if is_limit else ""
            raise Unavailable(f"{place.host} cannot be had: {words}{limit}{asks}")
        structlog.get_logger().info("image.registry_wait", registry=place.host, seconds=round(seconds, 1), why=words)
        await anyio.sleep(seconds)


class _Sink:
    """The file that a blob is written to, hashed on the way. Blocking. Raises OSError and BadImage."""

    def __init__(self, part: Path, blob: Descriptor) -> None:
        self._blob = blob
        self._part = part
        self._file = part.open("a+b", buffering=0)
        self._hash = new(blob.digest.partition(":")[0])
        self._file.seek(0)
        while piece := self._file.read(_CHUNK_BYTES):
            self._hash.update(piece)
        self.size = self._file.tell()
        if self.size > blob.size:
            self.restart()

    def restart(self) -> None:
        self._file.truncate(0)
        self._hash = new(self._blob.digest.partition(":")[0])
        self.size = 0

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size > self._blob.size:
            self._part.unlink(missing_ok=True)
            raise BadImage(f"blob {self._blob.digest} is longer than the {self._blob.size:,} bytes it should have")
        self._file.write(piece)
        self._hash.update(piece)

    def finish(self, target: Path) -> None:
        """Give the file its name. Raises _TroubleError too, unless all of it has come."""
        if self.size < self._blob.size:
            raise _TroubleError(f"it broke off after {self.size:,} of {self._blob.size:,} bytes")
        if self._hash.hexdigest() != self._blob.digest.partition(":")[2]:
            self._part.unlink(missing_ok=True)
            raise BadImage(f"blob {self._blob.digest} is not what was asked for: its digest is another")
        os.fsync(self._file.fileno())
        self._part.replace(target)

    def close(self) -> None:
        self._file.close()


async def _refusal(place: Origin, answer: httpx.Response) -> ImageError:
    """Make the error of an answer that no further try will change, with the registry's own words."""
    words = b""
    async for piece in answer.aiter_raw():
        words = (words + piece)[:2000]
        break
    said = " ".join(re.findall(r'"message"\s*:\s*"([^"\\]{1,300})', words.decode(errors="replace"))[:2])
    end = f": {said}" if said else ""
    if answer.status_code == httpx.codes.NOT_FOUND:
        return NoSuchImage(f"{place.host} has no {place.repository} of this version{end}")
    if answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return Refused(f"{place.host} lets us not have {place.repository}{end}: {_how_to_log_in(place.login)}")
    return Unavailable(f"{place.host} answers HTTP {answer.status_code}{end}")


def _how_to_log_in(registry: str) -> str:
    command = "docker login" if registry == DOCKER_HUB else f"docker login {registry}"
    return f"check the name; if it is private, log in with `{command}`"


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds that the header asks to wait; a number or a date (RFC 9110, 10.2.3)."""
    text = answer.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text)) if text.isdecimal() else max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, TypeError):
        return None
