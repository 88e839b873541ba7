"""Unpacks an archive from a devbox on this machine: nothing in it is trusted.

Only regular files come out, as new files below one folder: no link, no device, no owner, no mode, no path that climbs
or begins at the root. They have no secrets, not in their names either, stay within the limits, and have no name that
makes a program take them for its settings.

Blocking; call from a worker thread. Archives are read by a reader of our own, a block at a time: the standard library's
keeps every member, and reads extended headers whole and believes them, whatever they say.
"""

import errno
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import IO, Final
from unicodedata import category, normalize

from orchestrator.engine.redact import Redactor

_PIECE_BYTES: Final = 1 << 20
_MAX_NAME_BYTES: Final = 255
_MAX_PATH: Final = 2048
_MAX_DEPTH: Final = 64
_BLOCK_BYTES: Final = 512
#: The size of a header that has a name in it; longer ones are an attack.
_MAX_HEADER_BYTES: Final = 64 << 10
#: Lines on files left out, and on files renamed, for one archive; the rest is counted.
MAX_LINES: Final = 1000
#: Errors of a file system for a name that it cannot have.
_UNFIT: Final = frozenset(
    {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ELOOP}
)

#: Names that a program takes for its settings.
_SETTINGS: Final = frozenset(
    """
    .git .gitmodules .gitattributes .hg .svn .bzr .jj .sl .pijul _darcs head
    .envrc .direnv .env .autoenv .autoenv.zsh .mise .mise.toml .mise.local.toml mise.toml mise.local.toml .rtx.toml
    .tool-versions .rvmrc .sdkmanrc .venv .devenv .flox
    .vscode .idea .vs .fleet .zed .nova .helix .devcontainer .devcontainer.json .exrc .vimrc .nvimrc .nvim.lua
    .lvimrc .local.vimrc .dir-locals.el .dir-locals-2.el .cursor .mcp.json .aider.conf.yml .continue .windsurf
    .gdbinit .lldbinit .pdbrc .ghci .ocamlinit .rprofile .renviron .irbrc .pryrc .iex.exs .npmrc .yarnrc .yarnrc.yml
    .claude .gemini .codex .clinerules .aider .ycm_extra_conf.py .eslintrc.js .eslintrc.cjs .prettierrc.js
    .pnp.cjs .cargo .bundle .mvn .github .gitlab
    desktop.ini autorun.inf .directory
    """.split()  # noqa: SIM905 - a line for each kind
)
#: The same as DOS would call it: at most six letters, and a number.
_SHORT: Final = frozenset(name.lstrip(".")[:6] for name in _SETTINGS)
_SHORTENED: Final = re.compile(r"(.{1,6})~\d+(\..{0,3})?")


@dataclass(slots=True, kw_only=True)
class ArchiveLimits:
    """ArchiveLimits for one attempt, in bytes; `room` and `files` are the rest, and shrink. Folders count as files."""

    file: int = 64 << 20
    room: int = 256 << 20
    files: int = 10_000


@dataclass(slots=True)
class Lines:
    """Lines, of which only the first are kept, each once."""

    kept: dict[str, None] = field(default_factory=dict)
    more: int = 0

    def add(self, line: str) -> None:
        """Add a line, once."""
        if len(self.kept) < MAX_LINES:
            self.kept[line] = None
        elif line not in self.kept:
            self.more += 1

    def __iter__(self) -> Iterator[str]:
        yield from self.kept
        if self.more:
            yield f"… and {self.more:,} more"

    def __len__(self) -> int:
        return len(self.kept)


@dataclass(slots=True)
class Account:
    """Differences from the devbox: files left out and why, new names, and masked values by file and variable.

    Names are those on this machine, relative to the target folder, and may be hostile.
    """

    left_out: Lines = field(default_factory=Lines)
    renamed: Lines = field(default_factory=Lines)
    masked: dict[str, Counter[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    name: bytes
    is_file: bool
    is_folder: bool
    size: int
    mtime: int


def unpack(archive: IO[bytes], folder: Path, limits: ArchiveLimits, redactor: Redactor) -> Account:
    """Unpack a tar archive, whole or torn; overwrites nothing. Raises OSError if nothing can be written."""
    account = Account()
    try:
        for member in _members(archive):
            if not member.is_folder:
                _take(archive, member, folder, limits, redactor, account)
    except (ValueError, EOFError):
        account.left_out.add("the archive is torn, and what came after is missing")
    return account


def _members(archive: IO[bytes]) -> Iterator[_Member]:
    """Yield each member, with the archive at the beginning of its content. Raises ValueError and EOFError for damage.

    Of the extensions only the long names of GNU and POSIX tar are known; others are no regular file.
    """
    end, at, name, is_plain = archive.seek(0, os.SEEK_END), 0, b"", True
    while True:
        archive.seek(at)
        head = archive.read(_BLOCK_BYTES)
        if len(head) == _BLOCK_BYTES and not any(head):
            return
        member, kind = _header(head)
        at += _BLOCK_BYTES + -(-member.size // _BLOCK_BYTES) * _BLOCK_BYTES
        if kind in b"LKxg" and member.size > _MAX_HEADER_BYTES:
            raise ValueError("a header that is too long")
        if kind == b"L":
            name = archive.read(member.size).rstrip(b"\0")
        elif kind == b"x":
            records = dict(_records(archive.read(member.size)))
            name = records.get(b"path", name)
            is_plain = not any(key.startswith(b"GNU.sparse") or key == b"size" for key in records)
        elif kind not in b"Kg":
            yield _Member(
                name=name or member.name,
                is_file=member.is_file and is_plain,
                is_folder=member.is_folder,
                size=member.size,
                mtime=member.mtime,
            )
            name, is_plain = b"", True
            if at > end:
                raise EOFError


def _header(head: bytes) -> tuple[_Member, bytes]:
    """Read a member and its kind from its header block. Raises ValueError if it is no header."""
    if len(head) < _BLOCK_BYTES:
        raise EOFError
    if _number(head[148:156]) != sum(head) - sum(head[148:156]) + 8 * ord(" "):
        raise ValueError("no header")
    name, kind = head[:100].partition(b"\0")[0], head[156:157]
    if head[257:263] == b"ustar\0" and head[345] != 0:
        name = head[345:500].partition(b"\0")[0] + b"/" + name
    size, is_folder = _number(head[124:136]), kind == b"5"
    if size < 0:
        raise ValueError("a size below nothing")
    return (
        _Member(
            name=name,
            is_file=kind in {b"0", b"\0", b"7"},
            is_folder=is_folder,
            size=0 if is_folder else size,
            mtime=_number(head[136:148]),
        ),
        kind,
    )


def _number(digits: bytes) -> int:
    """Read octal digits, or a binary number if the first bit is set. Raises ValueError."""
    if digits[0] & 0x80:
        return int.from_bytes(digits, signed=True) + (1 << 8 * len(digits) - 1)
    return int(digits.strip(b" \0") or b"0", 8)


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Read the records of a POSIX header: `LENGTH KEY=VALUE`, a line each. Raises ValueError."""
    at = 0
    while at < len(data) and data[at] != 0:
        length, _, _ = data[at : at + 20].partition(b" ")
        record = data[at : at + int(length)]
        if int(length) <= len(length) + 1:
            raise ValueError("a record without an end")
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        yield key, value
        at += int(length)


def _take(
    archive: IO[bytes], member: _Member, folder: Path, limits: ArchiveLimits, redactor: Redactor, account: Account
) -> None:
    """Unpack one member, or add the reason against it to the account."""
    masked = Counter[str]()
    name = redactor.mask(member.name, masked).decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if reason := _refusal(member, parts, limits):
        account.left_out.add(f"{name[:_MAX_PATH]}: {reason}")
        return
    renamed = [harmless(part) for part in parts]
    path = folder.joinpath(*renamed)
    try:
        missing = sum(1 for _ in takewhile(lambda folder: not folder.is_dir(), path.parents))
        path.parent.mkdir(parents=True, exist_ok=True)
        limits.files -= 1 + missing
        with path.open("xb") as target:
            _copy(archive, member.size, target, limits, redactor, masked)
    except OSError as error:
        if error.errno not in _UNFIT:
            raise
        account.left_out.add(f"{name}: {error.strerror} here")
        return
    for depth, (old, new) in enumerate(zip(parts, renamed, strict=True), 1):
        if old != new:
            account.renamed.add(f"{'/'.join([*renamed[: depth - 1], old])} is {'/'.join(renamed[:depth])}")
    if masked and len(account.masked) < MAX_LINES:
        account.masked["/".join(renamed)] = masked
    with suppress(OSError, OverflowError):  # a time that no clock can show
        os.utime(path, (member.mtime, member.mtime))


def _refusal(member: _Member, parts: Sequence[str], limits: ArchiveLimits) -> str:
    """The reason why a member is not unpacked; empty if it is."""
    if not member.is_file:
        return "no regular file"
    if not parts or ".." in parts or len(parts) > _MAX_DEPTH or sum(map(len, parts)) > _MAX_PATH:
        return "no fit name for a file here"
    if any("\0" in part or len(part.encode("utf-8", "replace")) > _MAX_NAME_BYTES for part in parts):
        return "no fit name for a file here"
    if member.size > limits.file:
        return f"{member.size:,} bytes, and {limits.file:,} is the limit for one file"
    if member.size > limits.room:
        return f"{member.size:,} bytes, and there is room for {limits.room:,} more"
    return "" if limits.files > 0 else "there are too many files"


def _copy(
    source: IO[bytes], size: int, target: IO[bytes], limits: ArchiveLimits, redactor: Redactor, masked: Counter[str]
) -> None:
    stream = redactor.stream(masked)
    while size > 0 and (piece := source.read(min(size, _PIECE_BYTES))):
        size -= len(piece)
        limits.room -= len(piece)
        target.write(stream.feed(piece))
    target.write(stream.finish())


def join(source: IO[bytes], target: Path, limits: ArchiveLimits, redactor: Redactor) -> Account:
    """Write one file that is no archive. Raises OSError."""
    account, masked = Account(), Counter[str]()
    with target.open("wb") as file:
        _copy(source, min(limits.file, limits.room), file, limits, redactor, masked)
    if masked:
        account.masked[""] = masked
    if source.read(1):
        account.left_out.add("too large, its beginning is here")
    return account


def shown_before(patch: IO[bytes], redactor: Redactor) -> set[str]:
    """The variables whose values stand in lines that a patch removes or keeps: in files from before the agent began.

    Raises OSError.
    """
    shown, is_before = set[str](), False
    patch.seek(0)
    is_begun = True
    while line := patch.readline(_PIECE_BYTES):
        if is_begun:
            is_before = line[:1] in {b" ", b"-"}
        is_begun = line.endswith(b"\n")
        if is_before:
            shown |= redactor.shown(line)
    patch.seek(0)
    return shown


def clear(path: Path) -> None:
    """Remove a file or folder that an earlier process may have collected. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def harmless(name: str) -> str:
    """A name for a file or folder on this machine that no program takes for its settings; most names are unchanged.

    Shells, editors, version control and file managers take files of certain names for settings, wherever they find
    them, and settings can have commands. `.git` becomes `dot-git`, `HEAD` becomes `not-HEAD`: no program knows that
    name, and people see the original. Without HEAD no folder is a repository, whatever its name.
    """
    visible = "".join(each for each in name if category(each) not in {"Cf", "Cc", "Cs", "Mn"} or each in "\t\n\r")
    bare = visible.partition(":")[0].rstrip(". \t\n\r") or name  # as file systems take it, without streams
    known = normalize("NFKC", bare).casefold()
    short = _SHORTENED.fullmatch(known)
    if "\\" in name:  # where it separates folders, every part would have to be looked at
        return harmless(name.replace("\\", "_"))
    if known not in _SETTINGS and not (short and short[1] in _SHORT):
        return name
    return f"dot-{bare[1:]}" if known.startswith(".") and bare.startswith(".") else f"not-{bare}"
