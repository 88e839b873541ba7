"""The words that name a benchmark somewhere else.

git+URL[@REF][#FOLDER]                   a git repository, at a branch, tag or commit; by default its usual branch
https://HOST/ORG/REPO[/tree/REF/FOLDER]  the same, as a browser shows it; the ref may have slashes
FILE.tar.gz                              an archive of a benchmark folder, also .tgz and .tar
NAME[@VERSION]                           an entry of a registry; without a version its newest
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from orchestrator.core.errors import UsageError

ARCHIVES: Final = (".tar.gz", ".tgz", ".tar")
_NAMED: Final = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<version>[\w.+-]+))?")
_GIT: Final = "git+"
_SHAPE: Final = "git+URL[@REF][#FOLDER]"


@dataclass(frozen=True, slots=True, kw_only=True)
class GitAddress:
    """A folder of a git repository. `tree` is a ref and then the folder, as one path; else `ref` and `folder` are."""

    url: str
    ref: str = ""
    folder: str = ""
    tree: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveFile:
    """A file with a benchmark folder in it."""

    file: Path

    @property
    def name(self) -> str:
        suffix = next(each for each in ARCHIVES if self.file.name.endswith(each))
        return self.file.name.removesuffix(suffix)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryName:
    """An entry of a registry; without a version its newest."""

    name: str
    version: str = ""


def parse_source(words: str) -> GitAddress | ArchiveFile | RegistryName | None:
    """Read what names a benchmark; None for what can only be a folder here. Raises UsageError."""
    if Path(words).expanduser().is_dir():
        return None
    if words.startswith((_GIT, "https://", "http://")):
        address = _repository(words.removeprefix(_GIT)) if words.startswith(_GIT) else _browsed(words)
        if urlsplit(address.url).password:
            raise UsageError(
                "An address with a password would be written to files: leave it out, and give it to git's credential "
                "helper (`git help credentials`)."
            )
        return address
    if words.endswith(ARCHIVES):
        return ArchiveFile(file=Path(words).expanduser().absolute())
    found = _NAMED.fullmatch(words)
    return RegistryName(name=found["name"], version=found["version"] or "") if found and words[0] != "." else None


def _repository(words: str) -> GitAddress:
    address, _, folder = words.partition("#")
    scheme, mark, rest = address.rpartition("://")
    place, at, ref = rest.rpartition("@")
    if not at or "/" not in place:  # what is before the @ is a user, or nothing
        place, ref = rest, ""
    if not place or place.startswith("-") or (mark and "/" not in place):
        raise UsageError(f"git+{words} is no address of a repository: {_SHAPE} was expected.")
    if at and not ref and "/" in rest.rpartition("@")[0]:
        raise UsageError(f"git+{words}: a branch, tag or commit was expected after the @.")
    return GitAddress(url=f"{scheme}{mark}{place}", ref=ref, folder=_inside(folder, words))


def _browsed(words: str) -> GitAddress:
    if words.endswith(ARCHIVES):
        raise UsageError(f"{words}: archives are read from this machine only: download it, and give the file.")
    address, is_tree, tree = words.partition("/tree/")
    address = address.removesuffix("/-").rstrip("/")  # some hosts have /-/tree/
    if is_tree:
        return GitAddress(url=address, tree=_inside(tree, words))
    place, at, ref = address.rpartition("@")
    if at and place.count("/") > 3:
        return GitAddress(url=place, ref=ref)
    if address.count("/") < 4:
        raise UsageError(f"{words} is no address of a repository: https://HOST/ORG/REPO was expected.")
    return GitAddress(url=address)


def _inside(folder: str, words: str) -> str:
    """Return a path without needless slashes. Raises UsageError for one that leaves its repository."""
    parts = [part for part in folder.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise UsageError(f"{words}: '..' leaves the repository.")
    return "/".join(parts)
