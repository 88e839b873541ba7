"""Run as a program: unpacks the layer on its standard input into the folder `fs` of the current folder.

    unpack.py NAMESPACE IDS LIMIT LOWER…

NAMESPACE is an open user namespace of so many IDS, LIMIT the bytes that the layer may take, each LOWER an open folder
of a lower layer, the lowest first. It enters the namespace, becomes its root and makes the new layer its own root
folder before it reads a byte: a hostile layer finds nothing to lead to. What it says on its standard output is one JSON
object: `entries`, `bytes`, and `notes`, a count for
each rule that was applied. It ends with status 1 and a line of reason where a layer cannot be one, and with status 2
where the disk is full.

Its secret: the rules of layers (image-spec, `layer.md`) as a kernel overlay reads them. A whiteout is a character
device 0:0, an opaque folder has the attribute `user.overlay.opaque`. A path through a folder that only a lower layer
has takes that folder's mode and owner, and one through a link of a lower layer goes where the link goes. A hard link to
a lower layer's file is a copy of it. Ids that no namespace has become "nobody". Devices are left out.

Standard library only, and every module is loaded before the first byte of the layer.
"""

import ctypes
import errno
import json
import os
import resource
import stat
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWUSER = 0x20000, 0x8000000, 0x40000000, 0x10000000
OPAQUE = "user.overlay.opaque"
WHITEOUT, OPAQUE_MARK, AUFS = ".wh.", ".wh..wh..opq", ".wh..wh."
NOBODY = 65_534
#: Memory for an archive's own descriptions: paths and attributes may be as long as a hostile one likes.
MEMORY_BYTES = 1 << 30
MAX_ENTRIES = 5_000_000
MAX_LINKS = 40
CHUNK_BYTES = 1 << 18
#: Attributes that a layer may give its files; no other one means anything in a box.
GOOD_ATTRIBUTES = ("user.", "security.capability")
PAX_ATTRIBUTE = "SCHILY.xattr."
#: Exit status for a full disk, and the errors that mean one.
NO_ROOM, FULL = 2, (errno.ENOSPC, errno.EDQUOT)
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class BadLayerError(Exception):
    """The layer breaks a rule that it cannot be unpacked without."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of a lower layer: the open folder that it is in, its name there, and its status."""

    folder: int
    name: str
    status: os.stat_result


@dataclass(slots=True)
class Lowers:
    """The layers below, the highest first, as a kernel overlay shows them."""

    roots: Sequence[int]

    def find(self, path: str) -> Found | None:
        """Look a path up without following links; None if it is not there. The caller closes `folder`."""
        for root in self.roots:
            folder, names, is_hidden = os.dup(root), path.split("/"), False
            try:
                for position, name in enumerate(names):
                    status = os.lstat(name, dir_fd=folder)
                    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                        return None
                    if position == len(names) - 1:
                        result, folder = Found(folder, name, status), -1
                        return result
                    below = os.open(name, FOLDER, dir_fd=folder)
                    os.close(folder)
                    folder = below
                    is_hidden |= _is_opaque(folder)
            except NotADirectoryError:
                return None
            except OSError as error:
                if error.errno == errno.ELOOP:  # a link where a folder would be
                    return None
                if error.errno != errno.ENOENT:
                    raise
                if is_hidden:
                    return None
            finally:
                if folder >= 0:
                    os.close(folder)
        return None


def _is_opaque(folder: int) -> bool:
    with suppress(OSError):
        return os.getxattr(folder, OPAQUE) == b"y"
    return False


@dataclass(slots=True)
class Layer:
    """The layer that is being made; the process's root folder is its own."""

    lowers: Lowers
    limit: int
    ids: int
    notes: Counter[str] = field(default_factory=Counter)
    entries: int = 0
    bytes: int = 0
    folders: dict[str, tarfile.TarInfo] = field(default_factory=dict)

    def add(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise BadLayerError(f"more than {MAX_ENTRIES:,} entries")
        folder, name = os.path.split(os.path.normpath(f"/{entry.name}"))
        if not name:
            if entry.isdir():
                self.folders["/"] = entry
            return
        folder = self.folder(folder)
        path = os.path.join(folder, name)
        if name == OPAQUE_MARK:
            os.setxattr(folder, OPAQUE, b"y")
        elif name.startswith(AUFS):
            self.notes["files of another file system left out"] += 1
        elif name.startswith(WHITEOUT):
            self.hide(os.path.join(folder, name.removeprefix(WHITEOUT)))
        elif entry.isdir():
            self.make_folder(path, 0o700)
            self.folders[path] = entry
        elif self.make(archive, entry, path):
            self.dress(path, entry)

    def folder(self, path: str) -> str:
        """Return where a folder of this path is, made as the lower layers have it if this layer lacks it."""
        done, todo, links = "/", [part for part in path.split("/") if part], 0
        while todo:
            place = os.path.join(done, todo.pop(0))
            try:
                mode, target = os.lstat(place).st_mode, ""
                if stat.S_ISLNK(mode):
                    target = os.readlink(place)
            except FileNotFoundError:
                found = self.lowers.find(place.lstrip("/"))
                mode = stat.S_IFDIR if found is None else found.status.st_mode
                target = os.readlink(found.name, dir_fd=found.folder) if found and stat.S_ISLNK(mode) else ""
                if not target:
                    self.copy_folder(place, found)
                if found is not None:
                    os.close(found.folder)
            if target:
                links += 1
                if links > MAX_LINKS:
                    raise BadLayerError(f"{path!r} leads through too many links") from None
                start = "/" if target.startswith("/") else done
                beyond = os.path.normpath(os.path.join(start, target)).split("/")
                done, todo = "/", [*filter(None, beyond), *todo]
            elif stat.S_ISDIR(mode):
                done = place
            else:
                self.make_folder(place, 0o755)
                done = place
        return done

    def hide(self, path: str) -> None:
        """Take away what lower layers have at the path; what this layer itself has there stays."""
        try:
            os.mknod(path, stat.S_IFCHR)
        except FileExistsError:
            if os.path.isdir(path) and not os.path.islink(path):
                os.setxattr(path, OPAQUE, b"y")

    def copy_folder(self, path: str, like: Found | None) -> None:
        os.mkdir(path, 0o755)
        if like is not None and stat.S_ISDIR(like.status.st_mode):
            self.own(path, like.status.st_uid, like.status.st_gid)
            os.chmod(path, stat.S_IMODE(like.status.st_mode))
            os.utime(path, ns=(like.status.st_atime_ns, like.status.st_mtime_ns))

    def make_folder(self, path: str, mode: int) -> None:
        """Make a folder unless there is one; it begins empty where something else, or a whiteout, was before."""
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                return
        except FileNotFoundError:
            os.mkdir(path, mode)
            return
        os.unlink(path)
        os.mkdir(path, mode)
        os.setxattr(path, OPAQUE, b"y")

    def make(self, archive: tarfile.TarFile, entry: tarfile.TarInfo, path: str) -> bool:
        """Make an entry that is no folder; returns whether it is one of its own, which is to be dressed."""
        if entry.islnk():
            return self.link(entry, path)
        if entry.isreg():
            self.replace(path)
            source = archive.extractfile(entry)
            assert source is not None
            with open(path, "xb", buffering=0) as file:
                while piece := source.read(CHUNK_BYTES):
                    self.count(len(piece))
                    file.write(piece)
        elif entry.issym():
            self.replace(path)
            os.symlink(entry.linkname, path)
        elif entry.isfifo():
            self.replace(path)
            os.mkfifo(path)
        else:
            self.notes["devices left out"] += 1
            return False
        return True

    def link(self, entry: tarfile.TarInfo, path: str) -> bool:
        folder, name = os.path.split(os.path.normpath(f"/{entry.linkname}"))
        target = os.path.join(self.folder(folder), name)
        if target == path:
            return False
        self.replace(path)
        try:
            os.link(target, path, follow_symlinks=False)
        except FileNotFoundError:
            found = self.lowers.find(target.lstrip("/"))
            if found is None or not stat.S_ISREG(found.status.st_mode):
                raise BadLayerError(f"{entry.name!r} is a hard link to {entry.linkname!r}, which is no file") from None
            self.notes["hard links to files of lower layers copied"] += 1
            self.copy(found, path)
        return False

    def copy(self, found: Found, path: str) -> None:
        source = os.open(found.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=found.folder)
        with open(source, "rb", buffering=0) as old, open(path, "xb", buffering=0) as new:
            while piece := old.read(CHUNK_BYTES):
                self.count(len(piece))
                new.write(piece)
            self.own(path, found.status.st_uid, found.status.st_gid)
            for name in os.listxattr(source):
                os.setxattr(path, name, os.getxattr(source, name))
        os.chmod(path, stat.S_IMODE(found.status.st_mode))
        os.utime(path, ns=(found.status.st_atime_ns, found.status.st_mtime_ns))
        os.close(found.folder)

    def replace(self, path: str) -> None:
        """Remove what this layer has at the path by now: a later entry wins."""
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                os.unlink(path)
                return
        except FileNotFoundError:
            return
        for folder, folders, files in os.walk(path, topdown=False):
            for name in files:
                os.unlink(os.path.join(folder, name))
            for name in folders:
                below = os.path.join(folder, name)
                (os.unlink if os.path.islink(below) else os.rmdir)(below)
        os.rmdir(path)
        for known in [each for each in self.folders if f"{each}/".startswith(f"{path}/")]:
            del self.folders[known]

    def dress(self, path: str, entry: tarfile.TarInfo) -> None:
        """Give an entry its owner, attributes, mode and time, in the order in which each keeps the next."""
        self.own(path, entry.uid, entry.gid)
        for key, value in entry.pax_headers.items():
            name = key.removeprefix(PAX_ATTRIBUTE)
            if name == key or not name.startswith(GOOD_ATTRIBUTES) or name.startswith("user.overlay."):
                continue
            try:
                os.setxattr(path, name, value.encode("utf-8", "surrogateescape"), follow_symlinks=False)
            except OSError:
                self.notes["attributes left out"] += 1
        if not entry.issym():
            os.chmod(path, entry.mode & 0o7777)
        with suppress(OSError, OverflowError):
            os.utime(path, (entry.mtime, entry.mtime), follow_symlinks=False)

    def own(self, path: str, user: int, group: int) -> None:
        if self.ids == 1:
            return
        if not 0 <= min(user, group) <= max(user, group) < self.ids:
            self.notes["owners that no box has"] += 1
        user, group = (each if 0 <= each < self.ids else NOBODY for each in (user, group))
        os.chown(path, user, group, follow_symlinks=False)

    def count(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self.limit:
            raise BadLayerError(f"more than {self.limit:,} bytes, which is all the room there is for it")

    def finish(self) -> None:
        """Dress the folders, the deepest first: nothing is written into them any more."""
        for path in sorted(self.folders, reverse=True):
            if os.path.isdir(path) and not os.path.islink(path):
                self.dress(path, self.folders[path])


def check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def enter(namespace: int, folder: int) -> None:
    """Become root of the namespace, with no network and the folder as root folder."""
    libc = ctypes.CDLL(None, use_errno=True)
    check(libc.setns(namespace, CLONE_NEWUSER))
    with suppress(PermissionError):  # a namespace of one id keeps them
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    check(libc.unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET))
    os.fchdir(folder)
    os.umask(0)
    os.mkdir("fs", 0o755)
    os.chroot("fs")
    os.chdir("/")


def main() -> None:
    namespace, ids, limit, *lowers = map(int, sys.argv[1:])
    folder = os.open(".", FOLDER)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        enter(namespace, folder)
        # Its root may read a folder of a layer that this user may not.
        opened = [os.open(".", FOLDER, dir_fd=lower) for lower in reversed(lowers)]
        layer = Layer(Lowers(opened), limit, ids)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|", bufsize=1 << 16, errorlevel=2) as archive:
            for entry in archive:
                layer.add(archive, entry)
                archive.members = []  # type: ignore[attr-defined]  # it would keep every entry
        while piece := sys.stdin.buffer.read(CHUNK_BYTES):
            layer.count(len(piece))
        layer.finish()
        check(libc.syncfs(os.open("/", FOLDER)))
    except MemoryError:
        sys.exit("its descriptions of files are too long")
    except (BadLayerError, OSError, tarfile.TarError, ValueError, RecursionError) as error:
        sys.stdout.write(str(error) or type(error).__name__)
        sys.exit(NO_ROOM if isinstance(error, OSError) and error.errno in FULL else 1)
    sys.stdout.write(json.dumps({"entries": layer.entries, "bytes": layer.bytes, "notes": layer.notes}))


if __name__ == "__main__":
    main()
