"""Names of images, as people write them everywhere: `python:3.12-slim`, `host:5000/team/x@sha256:…`.

Its secret: the grammar of the distribution project (`reference.go`), with docker.io as the registry of names that begin
with no host, `library/` before those of one word, and the tag `latest` where neither tag nor digest is given.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Self
from urllib.parse import urlsplit

DOCKER_HUB: Final = "docker.io"
#: Where docker.io answers; its name is the address of a page for people.
_HUB_HOST: Final = "registry-1.docker.io"
_MAX_NAME_CHARS: Final = 255
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:[0-9]+)?")
_WORD: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_WORD}(?:/{_WORD})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class BadReference(ValueError):
    """A text that names no image; the message says why, and shows how one is written."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(f"{text!r} names no image: {why}; write it as `python:3.12-slim` or `host:5000/team/name:tag`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The name of one image.

    `repository` has no host and is whole (`library/python`). With a `digest`, the tag is for people only.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a name. Raises BadReference."""
        name, _, digest = text.partition("@")
        if "@" in text and not DIGEST.fullmatch(digest):
            raise BadReference(text, "its digest is not `sha256:` and 64 hexadecimal digits")
        head, slash, tail = name.partition("/")
        # A first word is a host if it cannot be one of a repository's, or is this machine's name for itself.
        is_host = slash and (set(head) & set(".:[") or head == "localhost" or head != head.lower())
        registry, path = (head, tail) if is_host else (DOCKER_HUB, name)
        repository, colon, tag = path.partition(":")
        if is_host and not _HOST.fullmatch(registry):
            raise BadReference(text, f"{registry!r} is no host")
        if not _REPOSITORY.fullmatch(repository):
            what = "has capital letters" if repository != repository.lower() else "is not one"
            raise BadReference(text, f"its repository {repository!r} {what}")
        if colon and not _TAG.fullmatch(tag):
            raise BadReference(text, f"its tag {tag!r} is not one")
        if registry in {DOCKER_HUB, f"index.{DOCKER_HUB}"}:
            registry = DOCKER_HUB
            repository = repository if "/" in repository else f"library/{repository}"
        if len(f"{registry}/{repository}") > _MAX_NAME_CHARS:
            raise BadReference(text, f"it is longer than {_MAX_NAME_CHARS} characters")
        return cls(
            registry=registry,
            repository=repository,
            tag=tag or (None if digest else "latest"),
            digest=digest or None,
        )

    @property
    def version(self) -> str:
        """The digest if there is one, else the tag: what a registry is asked for."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        """Return the shortest name that means the same."""
        name = f"{self.registry}/{self.repository}"
        if self.registry == DOCKER_HUB:
            name = self.repository.removeprefix("library/")
        tag = f":{self.tag}" if self.tag is not None else ""
        return f"{name}{tag}{f'@{self.digest}' if self.digest else ''}"


def base_url(registry: str) -> str:
    """Return the address of a registry: plain HTTP for this machine's own loopback, TLS for all others."""
    host = _HUB_HOST if registry == DOCKER_HUB else registry
    return f"{'http' if is_loopback(urlsplit(f'//{host}').hostname or '') else 'https'}://{host}"


def is_loopback(host: str) -> bool:
    """Tell whether a host, without its port, is this machine."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
