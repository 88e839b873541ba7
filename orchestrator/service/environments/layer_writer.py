"""Run as a program in a box, by the box's own Python: puts files into the box's file system, or packs some of it.

    layer_writer.py ORDER

ORDER is a JSON object. With a `folder`, that is made, with those above it. With `sources`, these are packed as a tar
archive on the standard output. With a `url`, what is there is fetched to `target`, if it has the `checksum`. Else the
archive on the standard input is put to `target`, as COPY and ADD do it, or with a `cover` of an owner and a mode as a
mount shows it.

In an archive, a name is the path below the target. A member with the header SWEEP.file was named as a source itself: it
may be the target, and with `unpack` its content goes to the target if it is an archive.

Its secret: it is root of a box and reads what strangers wrote, links and archives among it; what they lead to is in the
box. Standard library only.
"""

import errno
import json
import lzma
import os
import posixpath
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

FILE = "SWEEP.file"
#: Seconds that a server may be silent.
SILENCE_S = 60
#: What is said of a place where something of the box is mounted.
MOUNTED = (errno.EBUSY, errno.ENOTEMPTY, errno.EROFS)
#: Before the name of a file's attribute in an archive; and those that mean something in a box.
PAX = "SCHILY.xattr."
ATTRIBUTES = (f"{PAX}user.", f"{PAX}security.capability")
#: An image has the users and groups 0 to 65,535; an archive's others become this one.
IDS, NOBODY = 65_536, 65_534
#: What a damaged archive, and the disk, may raise.
DAMAGE = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)
_BITS = {"r": 4, "w": 2, "x": 1}
_SHIFTS = {"u": 6, "g": 3, "o": 0}


class RefusedError(Exception):
    """The order cannot be carried out; the message says why."""


def main() -> None:
    order = json.loads(sys.argv[1])
    try:
        if "sources" in order:
            pack(order)
        elif "folder" in order:
            Writer(order).make_folder(order["folder"])
        elif "url" in order:
            Writer(order).fetch(order["url"], order["checksum"])
        else:
            with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
                Writer(order).put_all(archive)
    except (RefusedError, *DAMAGE) as error:
        sys.exit(str(error))


class Writer:
    """Puts the members of one archive below one target."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.target: str = order.get("target", "/")
        self.mode: str = order.get("mode", "")
        self.is_linked: bool = order.get("is_linked", False)
        self.is_unpacking: bool = order.get("is_unpacking", False)
        self.cover: dict[str, str] | None = order.get("cover")
        self.owner = find_owner(order.get("owner", ""))
        self.folder_times: dict[str, float] = {}

    def put_all(self, archive: tarfile.TarFile) -> None:
        if self.target.endswith("/"):
            self.make_folder(self.target)
        first = archive.next()
        if self.cover is not None:
            self.clear(is_folder=first is None or FILE not in first.pax_headers, **self.cover)
        for entry in members(archive, first):
            source = archive.extractfile(entry) if entry.isfile() else None
            if entry.pax_headers.get(FILE) and source is not None:
                self.put_source(entry, source)
            else:
                self.put(posixpath.join(self.target, entry.name), entry, source, self.mode)
        self.set_folder_times()

    def set_folder_times(self) -> None:
        """Set the times of folders, at the end: what is put into them changes these."""
        for place, when in self.folder_times.items():
            set_time(place, when)

    def clear(self, *, is_folder: bool, owner: str, mode: str) -> None:
        """Cover what is at the target, links followed, by an empty folder or by nothing, and say where that is."""
        self.target = os.path.realpath(self.target)
        os.write(sys.stdout.fileno(), os.fsencode(self.target))
        if not is_folder or not os.path.isdir(self.target):
            remove(self.target)
        if not is_folder:
            return
        self.make_folder(self.target)
        os.chown(self.target, *(find_owner(owner) or (0, 0)))
        os.chmod(self.target, int(mode, 8))
        for above, folders, files in os.walk(self.target, topdown=False):
            for place in (posixpath.join(above, each) for each in (*files, *folders)):
                try:
                    (os.rmdir if os.path.isdir(place) and not os.path.islink(place) else os.unlink)(place)
                except OSError as error:
                    if error.errno not in MOUNTED:
                        raise

    def fetch(self, url: str, checksum: str) -> None:
        """Put what is at an address to the target, under the last name of its path."""
        import hashlib
        from email.utils import mktime_tz, parsedate_tz
        from http.client import HTTPException
        from urllib.parse import unquote, urlsplit
        from urllib.request import urlopen

        algorithm, _, expected = checksum.partition(":")
        digest = hashlib.new(algorithm or "sha256", usedforsecurity=False)
        with tempfile.TemporaryFile(dir="/tmp") as copy:
            try:
                entry = tarfile.TarInfo(posixpath.basename(unquote(urlsplit(url).path)) or "index.html")
                with urlopen(url, timeout=SILENCE_S) as answer:  # noqa: S310 - http and https by the plan
                    while piece := answer.read(1 << 18):
                        digest.update(piece)
                        copy.write(piece)
                    if answer.length:  # what is left to come, where it said how much
                        raise RefusedError("it broke off while it was fetched")
            except (HTTPException, ValueError) as error:
                raise RefusedError(f"it cannot be fetched: {error}") from None
            if expected and digest.hexdigest() != expected:
                raise RefusedError(f"its checksum is {algorithm}:{digest.hexdigest()}")
            entry.mtime = time.time()
            with suppress(ValueError, OverflowError, TypeError):  # it says none, or one that is no time
                entry.mtime = mktime_tz(parsedate_tz(answer.headers["Last-Modified"]))
            copy.seek(0)
            self.put_source(entry, copy)
        self.set_folder_times()

    def put_source(self, entry: tarfile.TarInfo, source: IO[bytes]) -> None:
        is_target = not self.target.endswith("/") and not os.path.isdir(self.target)
        place = self.target if is_target else posixpath.join(self.target, entry.name)
        if is_target and not self.is_linked:
            place = os.path.realpath(place)
        if not self.is_unpacking:
            self.put(place, entry, source, self.mode)
            return
        with tempfile.TemporaryFile(dir="/tmp") as copy:
            shutil.copyfileobj(source, copy)
            copy.seek(0)
            try:
                unpacked = tarfile.open(fileobj=copy, mode="r:*")  # noqa: SIM115
                first = unpacked.next()
            except DAMAGE:
                first = None
            if first is None:  # it is no archive, or an empty one, such as a file of zeros
                copy.seek(0)
                self.put(place, entry, copy, self.mode)
            else:
                self.unpack(unpacked, first)

    def unpack(self, archive: tarfile.TarFile, first: tarfile.TarInfo) -> None:
        """Unpack an archive whose `first` member was read; members take the place of all that is in their way."""
        self.make_folder(self.target)
        for entry in members(archive, first):
            if name := below(entry.name):
                place = posixpath.join(self.target, name)
                if not entry.isdir() or os.path.islink(place) or not os.path.isdir(place):
                    remove(place)
                self.put(place, entry, archive.extractfile(entry) if entry.isfile() else None)
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise RefusedError("the archive is damaged: what follows its last member is none")

    def put(self, place: str, entry: tarfile.TarInfo, source: IO[bytes] | None, change: str = "") -> None:
        """Put one file, folder or link; `change` is of its mode. Others, which are devices, are left out.

        A folder that is there stays, with the new one's owner, mode and time.
        """
        if entry.isdir():
            self.make_folder(place)
        else:
            self.make_folder(posixpath.dirname(place))
            if os.path.isdir(place) and not os.path.islink(place):
                raise RefusedError(f"{place} is a folder, and a file is to be put there")
            remove(place)
            if source is not None:
                with open(place, "xb") as file:
                    shutil.copyfileobj(source, file)
            elif entry.issym():
                os.symlink(entry.linkname, place)
            elif entry.isfifo():
                os.mkfifo(place)
            elif entry.islnk():
                os.link(posixpath.join(self.target, below(entry.linkname)), place, follow_symlinks=False)
                return
            else:
                return
        user, group = self.owner or (each if 0 <= each < IDS else NOBODY for each in (entry.uid, entry.gid))
        os.chown(place, user, group, follow_symlinks=entry.isdir())
        for key, value in entry.pax_headers.items():
            if key.startswith(ATTRIBUTES):
                with suppress(OSError):  # of a kind that a box's files do not have
                    data = value.encode("utf-8", "surrogateescape")
                    os.setxattr(place, key.removeprefix(PAX), data, follow_symlinks=entry.isdir())
        if not entry.issym():
            os.chmod(place, changed_mode(entry.mode & 0o7777, change, is_folder=entry.isdir()))
        if entry.isdir():
            self.folder_times[place] = entry.mtime
        else:
            set_time(place, entry.mtime)

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it, unless they are there; a link to nowhere gets its folder there."""
        place = "/"
        for name in filter(None, (path if self.is_linked else os.path.realpath(path)).split("/")):
            place = posixpath.join(place, name)
            if self.is_linked and os.path.islink(place):
                os.unlink(place)
            if os.path.isdir(place):
                continue
            if os.path.lexists(place):
                raise RefusedError(f"{place} is no folder, and {path} is to be one")
            os.mkdir(place)
            os.chmod(place, 0o755)  # noqa: S103
            if self.owner is not None:
                os.chown(place, *self.owner)


def members(archive: tarfile.TarFile, first: tarfile.TarInfo | None) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive whose first one was read."""
    entry = first
    while entry is not None:
        yield entry
        archive.members = []  # type: ignore[attr-defined]  # it would keep every one
        entry = archive.next()


def below(name: str) -> str:
    """Return the path below its target that a name in an archive means, "" for the target itself."""
    path = posixpath.normpath(name).lstrip("/")
    if path == ".." or path.startswith("../"):
        raise RefusedError(f"the archive has {name}, which leads out of its folder")
    return "" if path == "." else path


def remove(place: str) -> None:
    """Remove what is there, a folder with all that is in it."""
    if os.path.isdir(place) and not os.path.islink(place):
        shutil.rmtree(place)
    elif os.path.lexists(place):
        os.unlink(place)


def set_time(place: str, when: float) -> None:
    """Set when a file, folder or link was changed; a time that no file system has is left out."""
    with suppress(OverflowError):
        os.utime(place, (when, when), follow_symlinks=False)


def find_owner(words: str) -> tuple[int, int] | None:
    """Return the numbers of `user[:group]`, None if it is empty; the box's own files explain names, but not numbers.

    Without a group, a name has that of its user, and a number stands for the group too. Root is 0 without any file.
    """
    if not words:
        return None
    name, _, group_name = words.partition(":")
    user = group = _number(name)
    if user is None:
        row = _row("/etc/passwd", "user", name)
        user, group = int(row[2]), int(row[3])
    if group_name:
        group = _number(group_name)
        if group is None:
            group = int(_row("/etc/group", "group", group_name)[2])
    assert group is not None
    if not 0 <= max(user, group) < IDS:
        raise RefusedError(f"{words} is beyond the users and groups of an image, which are 0 to {IDS - 1:,}")
    return user, group


def _number(name: str) -> int | None:
    """Return the number that a user or group is named by, if it is."""
    if name in {"", "root"}:
        return 0
    return int(name) if name.isdecimal() else None


def _row(table: str, kind: str, name: str) -> list[str]:
    rows: list[list[str]] = []
    with suppress(FileNotFoundError), open(table, encoding="utf-8", errors="replace") as file:
        rows = [line.rstrip("\n").split(":") for line in file]
    for row in rows:
        if row[0] == name and len(row) >= 4:
            return row
    raise RefusedError(f"there is no {kind} {name} in {table}")


def changed_mode(mode: int, change: str, *, is_folder: bool) -> int:
    """Apply the value of --chmod: an octal mode, or changes as chmod(1) takes them."""
    if not change:
        return mode
    if change.isdigit():
        return int(change, 8)
    for clause in change.split(","):
        found = re.fullmatch(r"([ugoa]*)((?:[-+=][rwxXstugo]*)+)", clause)
        assert found is not None  # the plan has checked it
        who = found[1].replace("a", "ugo") or "ugo"
        for sign, letters in re.findall(r"([-+=])([rwxXstugo]*)", found[2]):
            bits = _bits(mode, who, letters, is_folder=is_folder)
            mask = sum(7 << _SHIFTS[each] for each in set(who))
            mode = mode & ~bits if sign == "-" else (mode | bits if sign == "+" else mode & ~mask | bits)
    return mode


def _bits(mode: int, who: str, letters: str, *, is_folder: bool) -> int:
    bits = 0
    for each in set(who):
        shift = _SHIFTS[each]
        for letter in letters:
            if letter in _BITS:
                bits |= _BITS[letter] << shift
            elif letter == "X" and (is_folder or mode & 0o111):
                bits |= 1 << shift
            elif letter in _SHIFTS:
                bits |= (mode >> _SHIFTS[letter] & 7) << shift
            elif letter == "s":
                bits |= {"u": stat.S_ISUID, "g": stat.S_ISGID, "o": 0}[each]
            elif letter == "t":
                bits |= stat.S_ISVTX
    return bits


def pack(order: dict[str, Any]) -> None:
    """Pack what the sources mean, patterns filled in and links that are named followed.

    A source is (folder, path below it, pattern below that); with `keeps_parents`, names in the archive begin with the
    path, or with what matches.
    """
    apart = [(re.compile(pattern, re.DOTALL), leaves_out) for pattern, leaves_out in order["exclude"]]
    keeps_parents = order["keeps_parents"]
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for folder, path, pattern in order["sources"]:
            top = posixpath.join(folder, path)
            matches = [path]
            if pattern:
                matches = [posixpath.join(path, name) for name in walk(top, re.compile(pattern, re.DOTALL))]
            elif not os.path.lexists(top):
                raise RefusedError(f"{top} is not there")
            for match in matches:
                real = os.path.realpath(posixpath.join(folder, match))
                is_folder = os.path.isdir(real)
                start = match if keeps_parents else "" if is_folder else posixpath.basename(match)
                names = {start: real} if start else {}
                names |= {posixpath.join(start, name): posixpath.join(real, name) for name in walk(real)}
                for name, place in names.items():
                    if not _is_left_out(name, apart):
                        _add(archive, place, name, {} if is_folder or keeps_parents else {FILE: "1"})


def walk(top: str, pattern: "re.Pattern[str] | None" = None) -> Iterator[str]:
    """Yield the paths below a folder; with a pattern those that match, without what is in them.

    What is mounted somewhere is of the box and not of its image, and left out.
    """
    for above, folders, files in os.walk(top):
        folders[:] = [each for each in folders if not os.path.ismount(posixpath.join(above, each))]
        for each in sorted((*folders, *files)):
            name = posixpath.relpath(posixpath.join(above, each), top)
            if pattern is None or pattern.fullmatch(name):
                yield name
                if pattern is not None and each in folders:
                    folders.remove(each)


def _is_left_out(name: str, apart: list[tuple[re.Pattern[str], bool]]) -> bool:
    verdict = False
    for pattern, leaves_out in apart:
        parts = name.split("/")
        if any(pattern.fullmatch("/".join(parts[:count])) for count in range(1, len(parts) + 1)):
            verdict = leaves_out
    return verdict


def _add(archive: tarfile.TarFile, path: str, name: str, headers: dict[str, str]) -> None:
    entry: tarfile.TarInfo | None = archive.gettarinfo(path, arcname=name)  # None for a socket
    if entry is None or (entry.isdev() and not entry.isfifo()):
        return
    if entry.islnk() and headers:  # one that is named itself may get another name
        entry.type, entry.size = tarfile.REGTYPE, os.stat(path).st_size
    entry.uname = entry.gname = ""
    attributes = [f"{PAX}{each}" for each in os.listxattr(path, follow_symlinks=False)]
    for key in (each for each in attributes if each.startswith(ATTRIBUTES)):
        value = os.getxattr(path, key.removeprefix(PAX), follow_symlinks=False)
        headers = {**headers, key: value.decode("utf-8", "surrogateescape")}
    entry.pax_headers = headers
    if entry.isfile():
        with open(path, "rb") as file:
            archive.addfile(entry, file)
    else:
        archive.addfile(entry)
    archive.members = []  # type: ignore[attr-defined]  # it would keep every one


if __name__ == "__main__":
    main()
