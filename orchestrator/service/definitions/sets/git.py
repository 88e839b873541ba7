"""Folders of git repositories, at one commit each, without the rest and without the history.

A repository here is bare and partial: of a commit it has the names of all files, and the content of those that were
asked for. Content comes in pieces that stay, so a fetch that was killed goes on where it was. Nothing in a repository
is run.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from re import fullmatch
from typing import Final

import anyio
from anyio.to_thread import run_sync

from orchestrator.core.errors import Unavailable, UsageError
from orchestrator.service.diagnostics import hint

#: Files whose content is asked for at once.
_PIECE: Final = 1000
#: A server that sends less than this many bytes a second for so many seconds is given up.
_SLOWEST: Final = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60")
_OPTIONS: Final = ("-c", "core.hooksPath=/dev/null", "-c", "core.autocrlf=false", "-c", "protocol.ext.allow=never")
#: Variables that would lead git to another repository, as in its hooks.
_ELSEWHERE: Final = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE"}
_COMMIT: Final = r"[0-9a-f]{40}([0-9a-f]{24})?"
_KEPT: Final = "refs/sweep/"


class _Failed(Unavailable):
    """A git command did not end well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """The repository at an address, with what is here of it in the folder `place`, for one process at a time.

    The file `lock` is locked for it. A git that outlives a killed process has that file open too, and keeps the lock.
    """

    url: str
    place: Path
    lock: int

    async def open(self) -> None:
        """Make it, if it is not there. Raises UsageError where there is no git."""

        def unlock() -> None:
            for left in self.place.rglob("*.lock"):  # of a git that was killed
                left.unlink()

        await run_sync(unlock)
        if not await anyio.Path(self.place / "HEAD").exists():
            await self._git("init", "--quiet", "--bare")
        settings = {
            "remote.origin.url": self.url,
            "remote.origin.promisor": "true",
            "remote.origin.partialclonefilter": "blob:none",
            "core.repositoryformatversion": "1",
            "extensions.partialClone": "origin",
        }
        for name, value in settings.items():
            await self._git("config", name, value)

    async def fetch(self, commit: str) -> None:
        """Get a commit with the names of its files. Raises Unavailable, also for a commit that is not there."""
        if await self._has(commit):
            return
        common = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--filter=blob:none")
        try:
            await self._git(*common, "--depth=1", "origin", f"+{commit}:{_KEPT}{commit}")
        except _Failed as error:  # some servers give only what a branch or a tag leads to
            await self._git(*common, "origin", "+refs/heads/*:refs/all/heads/*", "+refs/tags/*:refs/all/tags/*")
            try:
                await self._git("update-ref", f"{_KEPT}{commit}", f"{commit}^{{commit}}")
            except _Failed:
                raise Unavailable(f"{self.url} has no commit {commit}: {error.message}") from None

    async def _has(self, commit: str) -> bool:
        try:
            await self._git("rev-parse", "--quiet", "--verify", f"{_KEPT}{commit}")
        except _Failed:
            return False
        return True

    async def folders(self, commit: str, folder: str) -> Sequence[str]:
        """Return the names of the folders in a folder of a commit that is here. Raises UsageError if that is none."""
        try:
            said = await self._git("ls-tree", "-z", "-d", "--name-only", f"{commit}:{folder}")
        except _Failed:
            parent, _, last = folder.rpartition("/")
            words = hint(last, await self.folders(commit, parent) if parent else await self.folders(commit, ""), "")
            fix = f" ({words})" if words else ""
            raise UsageError(f"{self.url} has no folder {folder} at {commit[:12]}{fix}.") from None
        return said.decode(errors="surrogateescape").rstrip("\0").split("\0") if said else []

    async def has(self, commit: str, paths: Sequence[str], *, are_folders: bool = False) -> Collection[str]:
        """Return those of these paths that a commit has, which is here; with `are_folders` no files and no links."""
        kinds = ("-d",) if are_folders else ()
        said = await self._git("ls-tree", "-z", "--name-only", *kinds, commit, "--", *paths) if paths else b""
        return set(said.decode(errors="surrogateescape").split("\0"))

    async def check_out(self, commit: str, paths: Sequence[str], tree: Path, tell: Callable[[int, int], None]) -> None:
        """Write folders of a commit that is here into the folder `tree`, as they are in the repository.

        Tells how many of the files that had to come are here. Raises Unavailable.
        """
        wanted = [path for path in paths if path]  # none: all of it
        said = await self._git("rev-list", "--objects", "--missing=print", "--no-object-names", commit, "--", *wanted)
        missing = [line[1:] for line in said.decode().splitlines() if line.startswith("?")]
        for start in range(0, len(missing), _PIECE):
            tell(start, len(missing))
            piece = "\n".join(missing[start : start + _PIECE]).encode()
            await self._git(
                *("-c", "fetch.negotiationAlgorithm=noop", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head"),
                *("--recurse-submodules=no", "--filter=blob:none", "--stdin", "origin"),
                given=piece,
            )
        tell(len(missing), len(missing))
        await self._git(
            *(f"--work-tree={tree}", "checkout", "--quiet", "--force", commit),
            *("--pathspec-from-file=-", "--pathspec-file-nul"),
            given="\0".join(wanted or ["."]).encode(errors="surrogateescape"),
            environment={"GIT_INDEX_FILE": str(tree.with_name(f"{tree.name}.index")), "GIT_LITERAL_PATHSPECS": "1"},
        )

    async def _git(self, *words: str, given: bytes = b"", environment: Mapping[str, str] | None = None) -> bytes:
        words = (f"--git-dir={self.place}", *words)
        return await _git(self.url, *words, given=given, environment=environment or {}, pass_fds=(self.lock,))


async def refs_of(url: str) -> Mapping[str, str]:
    """Ask a repository for its branches and tags: commits by the full names of refs, HEAD among them.

    Raises Unavailable.
    """
    said = await _git(url, "ls-remote", "--", url, "HEAD", "refs/heads/*", "refs/tags/*")
    found: dict[str, str] = {}
    for line in said.decode(errors="replace").splitlines():
        commit, _, name = line.partition("\t")
        found[name.removesuffix("^{}")] = commit  # the commit of a tag comes after the tag
    return found


def is_commit(ref: str) -> bool:
    """Tell whether a ref is a whole commit id."""
    return fullmatch(_COMMIT, ref) is not None


def commit_of(url: str, refs: Mapping[str, str], ref: str) -> str:
    """Return the commit that a ref leads to; without one, that of the usual branch. Raises UsageError."""
    if is_commit(ref):
        return ref
    names = ("HEAD",) if not ref else (f"refs/tags/{ref}", f"refs/heads/{ref}", ref)
    for name in names:
        if name in refs:
            return refs[name]
    known = [name.removeprefix("refs/heads/").removeprefix("refs/tags/") for name in refs]
    otherwise = "give a branch, a tag, or all 40 digits of a commit" if ref else "it is empty"
    raise UsageError(f"{url} has no {ref or 'commit'}: {hint(ref, known, otherwise)}.")


def split(url: str, refs: Mapping[str, str], tree: str) -> tuple[str, str]:
    """Part a ref, which may have slashes, from the folder after it; the longest ref wins. Raises UsageError."""
    parts = tree.split("/")
    for count in range(len(parts), 0, -1):
        ref = "/".join(parts[:count])
        if f"refs/heads/{ref}" in refs or f"refs/tags/{ref}" in refs:
            return refs.get(f"refs/tags/{ref}") or refs[f"refs/heads/{ref}"], "/".join(parts[count:])
    return commit_of(url, refs, parts[0]), "/".join(parts[1:])


async def _git(
    url: str,
    *words: str,
    given: bytes = b"",
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> bytes:
    """Run git, which asks nobody for a password; returns what it printed. Raises UsageError and Unavailable."""
    around = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    around = {"GIT_SSH_COMMAND": "ssh -oBatchMode=yes", **around, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", *_OPTIONS, *_SLOWEST, *words]
    try:
        around |= environment or {}
        done = await anyio.run_process(command, input=given, check=False, env=around, pass_fds=pass_fds)
    except FileNotFoundError:
        raise UsageError("git is not installed, which fetches benchmarks: `apt-get install git`.") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"git ended with {done.returncode}"]
        raise _Failed(f"{url}: {next((each for each in lines if each.startswith('fatal: ')), lines[-1])}")
    return done.stdout
