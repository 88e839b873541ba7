"""The copies that this user has of benchmarks from elsewhere: below the cache folder, by what they were made from."""

import os
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from shutil import copytree
from typing import Final

import anyio
import msgspec
import structlog
from anyio.to_thread import run_sync

from orchestrator.common.cache_folder import cache_folder
from orchestrator.core.errors import Unavailable, UsageError
from orchestrator.core.printable import counted
from orchestrator.service.definitions.sets import git
from orchestrator.service.definitions.sets.benchmark_registry import (
    PUBLIC,
    ListedBenchmark,
    Registry,
    newest,
    nothing_like,
    read_registry,
)
from orchestrator.service.definitions.sets.source import ArchiveFile, GitAddress, RegistryName
from orchestrator.service.definitions.task_toml import FILE as TASK
from orchestrator.service.sandbox.build_cache import Built, UserCache, lock_folder
from orchestrator.service.sandbox.safe_fs import remove

#: The folder of a repository that is a benchmark, where no other is named.
_USUAL: Final = "tasks"
_POLL_S: Final = 0.2
#: Says what is being done.
Tell = Callable[[str], None]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Folders of one commit of a repository: `folders` has their places in it by the names that they get here.

    The name "" is the benchmark itself.
    """

    url: str
    commit: str
    folders: dict[str, str]

    def __post_init__(self) -> None:
        """Raises ValueError for what would be written or read elsewhere."""
        for name, place in self.folders.items():
            if name and not _is_plain(name):
                raise ValueError(f"{name!r} is no name of a folder")
            if not git.is_commit(self.commit) or place.startswith("/") or ".." in place.split("/"):
                raise ValueError(f"{place!r} at {self.commit!r} is no folder of a commit")


class CopyOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy was made from: enough to make the same again.

    `name` is the folder's, and so the benchmark's where its benchmark.toml gives none. A copy of an archive has that
    file's path and SHA-256, another one its parts.
    """

    name: str
    parts: tuple[Part, ...] = ()
    archive: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if not _is_plain(self.name):
            raise ValueError(f"{self.name!r} is no name of a folder")

    @property
    def key(self) -> str:
        known = msgspec.structs.replace(self, archive="")  # wherever the file lies
        return sha256(msgspec.json.encode(known, order="sorted")).hexdigest()[:24]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCopy:
    """A copy that is here. `size` is in bytes, `fetched_at` in seconds since 1970."""

    key: str
    origin: CopyOrigin
    scenarios: int
    size: int
    fetched_at: float


class _CopyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The description of an entry: `amount` is the number of files, and their bytes."""

    origin: CopyOrigin
    amount: tuple[int, int]


class Copies:
    """The copies in the cache folder, which several processes may share.

    `registries` are asked for names; if none is given, those that are public.
    """

    def __init__(self, registries: Sequence[str], tell: Tell) -> None:
        self._cache = cache_folder()
        self._registries = registries or PUBLIC
        self._tell = tell
        self._kept = UserCache[Path](
            self._cache, "benchmarks", kind="benchmark", tree="copy", read=_folder_of, kept_days=float("inf")
        )

    async def find_origin(self, source: GitAddress | ArchiveFile | RegistryName) -> CopyOrigin:
        """Find out what the words lead to now. Raises UsageError and Unavailable."""
        match source:
            case ArchiveFile(file=file):
                if not await anyio.Path(file).is_file():
                    raise UsageError(f"{file}: there is no such file.")
                return CopyOrigin(name=source.name, archive=str(file), sha256=await run_sync(_sha256, file))
            case RegistryName():
                return await self._listed(source)
            case GitAddress(url=url):
                refs = {} if git.is_commit(source.ref) else await self._refs(url)
                if source.tree:
                    commit, folder = git.split(url, refs, source.tree)
                else:
                    commit, folder = git.commit_of(url, refs, source.ref), source.folder
                folder = folder or await self._usual_folder(url, commit)
                place = url.rstrip("/").removesuffix(".git") if folder in {"", _USUAL} else folder
                part = Part(url=url, commit=commit, folders={"": folder})
                return CopyOrigin(name=place.rpartition("/")[2], parts=(part,))

    async def _refs(self, url: str) -> Mapping[str, str]:
        """Ask a repository for its refs, or remember the last answer if it cannot be asked. Raises Unavailable."""
        self._tell(f"asking {url}")
        known = self._place_of(url) / "refs.json"
        try:
            refs = await git.refs_of(url)
        except Unavailable as error:
            try:
                found = msgspec.json.decode(await anyio.Path(known).read_bytes(), type=dict[str, str])
            except (OSError, msgspec.DecodeError):
                raise error from None
            structlog.get_logger().warning("repository.old_refs", error=error.message)
            return found

        def remember() -> None:
            known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = known.with_name(f".{os.getpid()}.json")
            draft.write_bytes(msgspec.json.encode(refs))
            draft.replace(known)

        await run_sync(remember)
        return refs

    def _place_of(self, url: str) -> Path:
        return self._cache / "repositories" / sha256(url.encode()).hexdigest()[:20]

    async def _usual_folder(self, url: str, commit: str) -> str:
        """Return the folder of the benchmark in a repository that names none."""
        async with self._repository(url) as repository:
            await repository.fetch(commit)
            folders = await repository.folders(commit, "")
            tasks = [TASK, *(f"{folder}/{TASK}" for folder in folders)]
            has_tasks = not {*tasks}.isdisjoint(await repository.has(commit, tasks))
            return _USUAL if _USUAL in folders and not has_tasks else ""

    async def _listed(self, source: RegistryName) -> CopyOrigin:
        """Find a benchmark in the registries; those at an address are asked unless the version is known already."""
        found, registries = None, list[Registry]()
        if source.version:
            registries = await self.registries(is_fresh=False)
            with_version = [each for each in registries if any(_is(source, every) for every in each.benchmarks)]
            found = newest(with_version, source.name, source.version)
        if found is None:
            registries = await self.registries(is_fresh=True)
            found = newest(registries, source.name, source.version)
        if found is None:
            raise UsageError(nothing_like(registries, source.name))
        return await self._origin_of(*found)

    async def registries(self, *, is_fresh: bool) -> list[Registry]:
        """Read the registries. Raises UsageError and Unavailable."""
        found = []
        for place in self._registries:
            self._tell(f"reading {place}")
            found.append(await read_registry(place, self._cache / "registries", is_fresh=is_fresh))
        return found

    async def _origin_of(self, registry: Registry, listed: ListedBenchmark) -> CopyOrigin:
        """Pin the commits of a listed benchmark. Raises UsageError naming the task that cannot be had."""
        parts: dict[tuple[str, str], dict[str, str]] = {}
        known: dict[str, Mapping[str, str]] = {}
        names = set[str]()
        for task in listed.tasks:
            name = task.name or task.path.rstrip("/").rpartition("/")[2]
            where = f"{registry.place}: {listed.words}: task {name}"
            if not _is_plain(name) or name in names:
                raise UsageError(f"{where}: its name is no folder's, or another task's.")
            if not task.git_url:
                raise UsageError(f"{where}: it has no git_url; give its folder itself instead.")
            if task.path.startswith("/") or ".." in task.path.split("/"):
                raise UsageError(f"{where}: {task.path} leaves the repository.")
            names.add(name)
            ref = "" if (task.git_commit_id or "").upper() == "HEAD" else task.git_commit_id or ""
            if not git.is_commit(ref) and task.git_url not in known:
                known[task.git_url] = await self._refs(task.git_url)
            commit = git.commit_of(task.git_url, known.get(task.git_url, {}), ref)
            parts.setdefault((task.git_url, commit), {})[name] = task.path.strip("/")
        return CopyOrigin(
            name=listed.words.replace("/", "--"),
            parts=tuple(Part(url=url, commit=commit, folders=those) for (url, commit), those in sorted(parts.items())),
        )

    async def get(self, origin: CopyOrigin) -> Path:
        """Return the folder of a benchmark, made now if it is not here; it stays until it is removed.

        Raises UsageError, Unavailable and OSError.
        """

        async def build(making: Path) -> Built:
            folder = making / "copy" / origin.name
            await run_sync(folder.parent.mkdir)
            if origin.archive:
                await run_sync(_unpack, Path(origin.archive), origin.sha256, folder)
            else:
                await self._check_out(origin, making, folder)
            return Built(tree=folder.parent, facts={"origin": msgspec.to_builtins(origin)})

        return await self._kept.get(origin.key, build)

    def kept(self) -> list[KeptCopy]:
        """Return the copies that are here, by name. Blocking. Raises OSError."""
        found = []
        for key in self._kept.names():
            try:
                facts = msgspec.convert(self._kept.facts(key), _CopyFacts)
            except msgspec.ValidationError:
                continue  # is being fetched, or was left by a process that was killed
            tree = self._kept.tree(key)
            folder = tree / facts.origin.name
            tasks = 1 if (folder / TASK).is_file() else sum(1 for _ in folder.glob(f"*/{TASK}"))
            size, at = facts.amount[1], tree.stat().st_mtime
            found.append(KeptCopy(key=key, origin=facts.origin, scenarios=tasks, size=size, fetched_at=at))
        return sorted(found, key=lambda each: (each.origin.name, each.fetched_at))

    def remove(self, copy: KeptCopy) -> bool:
        """Remove a copy, and what is here of repositories that no other copy is from; False if a process uses it.

        Blocking. Raises OSError.
        """
        if not self._kept.discard(copy.key):
            return False
        needed = {part.url for each in self.kept() for part in each.origin.parts}
        for url in {part.url for part in copy.origin.parts} - needed:
            place = self._place_of(url)
            if (lock := lock_folder(place, LOCK_EX) if place.is_dir() else None) is not None:
                try:
                    remove(place)
                finally:
                    os.close(lock)
        return True

    async def _check_out(self, origin: CopyOrigin, making: Path, folder: Path) -> None:
        for number, part in enumerate(origin.parts):
            tree = making / str(number)
            await run_sync(tree.mkdir)

            def tell(here: int, wanted: int, url: str = part.url) -> None:
                self._tell(f"{origin.name}: {counted(wanted, 'file')} from {url}, {here} here")

            async with self._repository(part.url) as repository:
                self._tell(f"{origin.name}: asking {part.url}")
                await repository.fetch(part.commit)
                wanted = [each for each in part.folders.values() if each]
                there = await repository.has(part.commit, wanted, are_folders=True)
                for each in sorted({*wanted}.difference(there)):
                    await repository.folders(part.commit, each)  # which says what is near
                await repository.check_out(part.commit, list(part.folders.values()), tree, tell)
            for name, place in part.folders.items():
                if name:  # copied, for two names may be of one folder
                    await run_sync(partial(copytree, tree / place, folder / name, symlinks=True))
                else:
                    await run_sync((tree / place).rename, folder)

    @asynccontextmanager
    async def _repository(self, url: str) -> AsyncIterator[git.Clone]:
        """Open a repository for this process alone; another one's turn is waited for."""
        place = self._place_of(url)
        await run_sync(lambda: place.parent.mkdir(mode=0o700, parents=True, exist_ok=True))
        while (lock := await run_sync(lock_folder, place, LOCK_EX)) is None:
            self._tell(f"waiting for another process, which fetches from {url}")
            await anyio.sleep(_POLL_S)
        try:
            repository = git.Clone(url=url, place=place / "git", lock=lock)
            await repository.open()
            yield repository
        finally:
            os.close(lock)


def _is_plain(name: str) -> bool:
    """Tell whether a word can be a folder's name."""
    return bool(name) and "/" not in name and "\0" not in name and name not in {".", ".."}


def _is(source: RegistryName, listed: ListedBenchmark) -> bool:
    return (source.name, source.version) == (listed.name, listed.version)


def _folder_of(built: Built) -> Path:
    return built.tree / str(built.facts["origin"]["name"])


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()


def _unpack(file: Path, digest: str, folder: Path) -> None:
    """Unpack an archive; of one folder that holds all the rest only what is in it. Raises UsageError."""
    if not file.is_file() or _sha256(file) != digest:
        raise UsageError(f"{file} is not the archive any more that it was; bring that back, or begin another sweep.")
    draft = folder.with_name(f"{folder.name}.new")
    try:
        with tarfile.open(file) as archive:
            archive.extractall(draft, filter="data")
    except tarfile.TarError as error:
        raise UsageError(f"{file} cannot be unpacked: {error}.") from None
    inside = list(draft.iterdir())
    is_wrapped = len(inside) == 1 and inside[0].is_dir() and not (inside[0] / TASK).is_file()
    (inside[0] if is_wrapped else draft).rename(folder)
    if is_wrapped:
        draft.rmdir()
