"""Registries: files that list benchmarks by name and version, in the form that Harbor gave them.

A registry is a JSON array of {"name", "version", "description", "tasks"}; each task is {"name", "git_url",
"git_commit_id", "path"}. Without git_url its path is a folder beside the file. Other keys are ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import anyio
import httpx
import msgspec
import structlog
from anyio.to_thread import run_sync
from packaging.version import InvalidVersion, Version

from orchestrator.core.errors import Unavailable, UsageError
from orchestrator.service.diagnostics import hint

#: What Harbor publishes.
PUBLIC: Final = ("https://raw.githubusercontent.com/laude-institute/harbor/main/registry.json",)
#: The version that is taken if none is named, where there is one of this name.
HEAD: Final = "head"
_LIMIT_S: Final = 60.0
_MAX_BYTES: Final = 256 << 20


class ListedTask(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario folder somewhere."""

    path: str
    name: str = ""
    git_url: str | None = None
    git_commit_id: str | None = None


class ListedBenchmark(msgspec.Struct, frozen=True, kw_only=True):
    """A benchmark of a registry, in one version."""

    name: str
    version: str = ""
    description: str = ""
    tasks: tuple[ListedTask, ...]

    @property
    def words(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """What a registry lists. `place` is its address, or the path of its file."""

    place: str
    benchmarks: tuple[ListedBenchmark, ...]


async def read_registry(place: str, cache: Path, *, is_fresh: bool = False) -> Registry:
    """Read a registry. One at an address is kept in the folder `cache`, and asked for again only if it `is_fresh`.

    Raises UsageError for a file that is none, and Unavailable.
    """
    if place.startswith(("https://", "http://")):
        kept = cache / f"{sha256(place.encode()).hexdigest()[:20]}.json"
        if is_fresh or not await anyio.Path(kept).is_file():
            return await _download(place, kept)
        return _decoded(place, await anyio.Path(kept).read_bytes())
    try:
        return _decoded(place, await run_sync(lambda: Path(place).expanduser().read_bytes()))
    except OSError as error:
        raise UsageError(f"{place}: the registry cannot be read: {error.strerror}.") from None


async def _download(place: str, kept: Path) -> Registry:
    try:
        async with httpx.AsyncClient(timeout=_LIMIT_S, follow_redirects=True) as http, http.stream("GET", place) as got:
            got.raise_for_status()
            content = bytearray()
            async for piece in got.aiter_bytes():
                content += piece
                if len(content) > _MAX_BYTES:
                    raise UsageError(f"{place} is no registry: it has more than {_MAX_BYTES >> 20} MiB.")
    except httpx.HTTPError as error:
        if await anyio.Path(kept).is_file():
            structlog.get_logger().warning("registry.old", registry=place, error=str(error) or repr(error))
            return _decoded(place, await anyio.Path(kept).read_bytes())
        raise Unavailable(f"{place}: the registry cannot be had: {str(error) or repr(error)}.") from None
    found = _decoded(place, bytes(content))

    def keep() -> None:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = kept.with_suffix(".new")
        draft.write_bytes(content)
        draft.replace(kept)

    await run_sync(keep)
    return found


def _decoded(place: str, content: bytes) -> Registry:
    try:
        return Registry(place=place, benchmarks=msgspec.json.decode(content, type=tuple[ListedBenchmark, ...]))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise UsageError(
            f"{place} is no registry: {error}. A JSON array of objects with name, version and tasks was expected."
        ) from None


def newest(registries: Sequence[Registry], name: str, version: str = "") -> tuple[Registry, ListedBenchmark] | None:
    """Find a benchmark in the first registry that has the name; None if none has it.

    Without a version it is HEAD, or else the highest. Raises UsageError naming the versions there are.
    """
    for registry in registries:
        named = [each for each in registry.benchmarks if each.name == name]
        if not named:
            continue
        if not version:
            head = [each for each in named if each.version == HEAD]
            return registry, head[0] if head else max(named, key=lambda each: _order(each.version))
        if exact := [each for each in named if each.version == version]:
            return registry, exact[0]
        versions = sorted((each.version for each in named), key=_order)
        raise UsageError(f"{registry.place} has no {name}@{version}, but {', '.join(versions)}.")
    return None


def nothing_like(registries: Sequence[Registry], name: str) -> str:
    """Say that no registry has this name, and what is like it."""
    names = sorted({each.name for registry in registries for each in registry.benchmarks})
    places = ", ".join(registry.place for registry in registries)
    words = hint(name, names, "`sweep benchmarks search` lists what there is")
    return f"No benchmark is called {name}: {words} (asked: {places})."


def _order(version: str) -> tuple[int, Version, str]:
    """The order of versions; words that are none come first."""
    try:
        return 1, Version(version), version
    except InvalidVersion:
        return 0, Version("0"), version
