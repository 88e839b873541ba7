"""Copies, measures and removes folders in which hostile programs have written, or still write.

Its secret: every step down is an open of one name, relative to the folder above, that refuses symbolic links; a path is
never resolved twice. So a box that swaps a folder for a link while we walk shows us at most an error, and never another
place of the host. shutil.copytree resolves paths at every level; `cp` and `du` need permissions that a box can take
away from an ordinary user's service. Blocking; call from a worker thread.
"""

import errno
import fcntl
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

#: Folders nested deeper than this are refused: each level costs an open file and a stack frame of ours.
MAX_DEPTH = 400
#: Set-user-id bits never travel: in a copy they would speak for another user.
MODE_BITS = 0o1777
CHUNK_BYTES = 1 << 20
#: Disk taken by an entry at least: an empty file takes no block, but an inode, of which there is one for so many bytes.
ENTRY_BYTES = 4096
FICLONE = 0x40049409
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class TooDeep(OSError):
    """The folders nest deeper than MAX_DEPTH."""

    def __init__(self) -> None:
        super().__init__(errno.ELOOP, f"folders nest deeper than {MAX_DEPTH}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Copier:
    """Copies trees: folders, files (holes stay holes) and symbolic links, with modes and times; nothing else.

    The copy belongs to user and group `owner`, None meaning this process's own. Paths in `skip` (relative, such as
    "home/user/x") are left out; with a path `only`, nothing else is copied but the folders above it. If it `replaces`,
    files and links that are in the way give way; else, and for folders, that is an error.
    """

    owner: int | None = None
    skip: frozenset[str] = frozenset()
    only: str = ""
    replaces: bool = False

    def copy(self, source: Path, target: Path) -> None:
        """Copy the content of folder `source` into folder `target`, which exists. Raises OSError."""
        with _opened(os.open(source, os.O_RDONLY | os.O_DIRECTORY)) as a, _opened(os.open(target, FOLDER)) as b:
            self._folder(a, b, "", 0)

    def _folder(self, source: int, target: int, path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise TooDeep
        for name in _names(source):
            below = f"{path}/{name}" if path else name
            is_asked = not self.only or f"{below}/".startswith(f"{self.only}/") or self.only.startswith(f"{below}/")
            if below not in self.skip and is_asked:
                with suppress(FileNotFoundError):  # removed while we looked
                    self._entry(source, target, name, below, depth)

    def _entry(self, source: int, target: int, name: str, path: str, depth: int) -> None:
        found = os.lstat(name, dir_fd=source)
        if stat.S_ISDIR(found.st_mode):
            try:
                os.mkdir(name, 0o700, dir_fd=target)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=target).st_mode):
                    raise
            with _entered(name, FOLDER, source) as a, _opened(os.open(name, FOLDER, dir_fd=target)) as b:
                self._folder(a, b, path, depth + 1)
                _dress(b, found, self.owner, self.owner)
        elif stat.S_ISREG(found.st_mode):
            with _entered(name, FILE, source) as a:
                if stat.S_ISREG(os.fstat(a).st_mode):
                    self._make_way(target, name)
                    with _opened(os.open(name, NEW, 0o600, dir_fd=target)) as b:
                        _copy_bytes(a, b)
                        _dress(b, found, self.owner, self.owner)
        elif stat.S_ISLNK(found.st_mode):
            self._make_way(target, name)
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            if self.owner is not None:
                os.chown(name, self.owner, self.owner, dir_fd=target, follow_symlinks=False)

    def _make_way(self, target: int, name: str) -> None:
        if self.replaces:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=target)


def mirror(source: Path, target: Path) -> None:
    """Make `target` what `source` is: a folder, file or link, owners included.

    What is neither is left out, and so is what nests deeper than MAX_DEPTH.

    A file whose number and times are the same at both places is one file, which both are views of, and stays. The
    folders above them exist; no program writes in either meanwhile. Raises OSError.
    """
    with _opened(os.open(source.parent, FOLDER)) as a, _opened(os.open(target.parent, FOLDER)) as b:
        _mirror(a, source.name, b, target.name, 0)


def _mirror(source: int, name: str, target: int, target_name: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        return
    found, is_folder = os.lstat(name, dir_fd=source), False
    with suppress(FileNotFoundError):
        there = os.lstat(target_name, dir_fd=target)
        is_folder = stat.S_ISDIR(there.st_mode) and stat.S_ISDIR(found.st_mode)
        if not is_folder:
            if _identity(there) == _identity(found):
                return
            _remove_entry(target, target_name)
    if stat.S_ISDIR(found.st_mode):
        if not is_folder:
            os.mkdir(target_name, 0o700, dir_fd=target)
        with _entered(name, FOLDER, source) as a, _opened(os.open(target_name, FOLDER, dir_fd=target)) as b:
            names = _names(a)
            for gone in set(_names(b)) - set(names):
                _remove_entry(b, gone)
            for each in names:
                _mirror(a, each, b, each, depth + 1)
            _dress(b, found, found.st_uid, found.st_gid)
    elif stat.S_ISREG(found.st_mode):
        with _entered(name, FILE, source) as a, _opened(os.open(target_name, NEW, 0o600, dir_fd=target)) as b:
            _copy_bytes(a, b)
            _dress(b, found, found.st_uid, found.st_gid)
    elif stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), target_name, dir_fd=target)
        os.chown(target_name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_uid, found.st_gid


def _remove_entry(folder: int, name: str) -> None:
    if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
        remove(Path(f"/proc/self/fd/{folder}/{name}"))
    else:
        os.unlink(name, dir_fd=folder)


def _dress(fd: int, like: os.stat_result, user: int | None, group: int | None) -> None:
    if user is not None and group is not None:
        os.fchown(fd, user, group)
    os.fchmod(fd, like.st_mode & MODE_BITS)
    os.utime(fd, ns=(like.st_atime_ns, like.st_mtime_ns))


def disk_usage(root: Path) -> int:
    """Bytes that `root` takes on the disk, each entry counting as ENTRY_BYTES at least. Raises TooDeep.

    Entries that vanish meanwhile are not counted.
    """
    try:
        with _opened(os.open(root, FOLDER)) as fd:
            return _usage(fd, 0)
    except FileNotFoundError:
        return 0


def _usage(folder: int, depth: int) -> int:
    if depth > MAX_DEPTH:
        raise TooDeep
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
                total += max(found.st_blocks * 512, ENTRY_BYTES)
                if stat.S_ISDIR(found.st_mode):
                    with _entered(entry.name, FOLDER, folder) as below:
                        total += _usage(below, depth + 1)
            except TooDeep:
                raise
            except OSError:
                continue
    return total


def amount(root: Path) -> list[int]:
    """Count a tree of our own: [number of entries, bytes of its files]."""
    count = size = 0
    for folder, folders, files in os.walk(root):
        count += len(folders) + len(files)
        size += sum(os.lstat(f"{folder}/{name}").st_size for name in files)
    return [count, size]


def remove(root: Path) -> None:
    """Remove the folder `root` with everything in it, however deep it is and whatever its modes. Raises OSError.

    No process may still write in it. Sub-folders are moved up before they are emptied, so that depth costs nothing;
    those of an overlay's lower layers, which cannot be moved, are emptied where they are.
    """
    if not root.is_dir():
        return
    _unlock(os.fspath(root), None)
    with _opened(os.open(root, FOLDER)) as top:
        number = time.time_ns()
        for name in _names(top):
            if stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
                _unlock(name, top)
        while names := _names(top):
            for name in names:
                number = _dissolve(top, name, top, number)
    root.rmdir()


def _dissolve(place: int, name: str, top: int, number: int) -> int:
    """Remove one entry of `place`; its sub-folders become open entries of `top`, named by numbers above `number`."""
    if not stat.S_ISDIR(os.lstat(name, dir_fd=place).st_mode):
        os.unlink(name, dir_fd=place)
        return number
    with _opened(os.open(name, FOLDER, dir_fd=place)) as folder:
        for child in _names(folder):
            mode = os.lstat(child, dir_fd=folder).st_mode
            if not stat.S_ISDIR(mode):
                os.unlink(child, dir_fd=folder)
                continue
            number += 1
            if mode & 0o700 != 0o700:
                _unlock(child, folder)
            try:
                os.rename(child, f".removed-{number}", src_dir_fd=folder, dst_dir_fd=top)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                number = _dissolve(folder, child, top, number)
    os.rmdir(name, dir_fd=place)
    return number


def _unlock(name: str, folder: int | None) -> None:
    with _opened(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)) as place:
        Path(f"/proc/self/fd/{place}").chmod(0o700)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _entered(name: str, flags: int, folder: int | None) -> Iterator[int]:
    """Open without following links; an entry whose owner took its permissions away is given them meanwhile."""
    try:
        fd, mode = os.open(name, flags, dir_fd=folder), None
    except PermissionError:
        with _opened(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)) as place:
            mode = os.fstat(place).st_mode
            if stat.S_ISLNK(mode):
                raise
            Path(f"/proc/self/fd/{place}").chmod(stat.S_IMODE(mode) | (0o700 if stat.S_ISDIR(mode) else 0o400))
        fd = os.open(name, flags, dir_fd=folder)
    with _opened(fd):
        try:
            yield fd
        finally:
            if mode is not None:
                os.fchmod(fd, stat.S_IMODE(mode))


def _copy_bytes(source: int, target: int) -> None:
    """Clone the file where the file system can; else copy its data, so that holes stay holes."""
    with suppress(OSError):
        fcntl.ioctl(target, FICLONE, source)
        return

    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    start = 0
    while start < size:
        try:
            start = os.lseek(source, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            data = os.read(source, min(CHUNK_BYTES, end - start))
            if not data:
                return
            start += len(data)
            while data:  # where the disk is nearly full, a part is written
                data = data[os.write(target, data) :]


def walk(root: Path, *, skip: frozenset[str] = frozenset()) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every entry below the folder `root` with its relative path, a folder before its content, down to MAX_DEPTH.

    Paths in `skip` (relative, such as "home/user/x") are left out with all below them, and so are entries that vanish
    meanwhile. Raises OSError for entries that cannot be read.
    """
    with _opened(os.open(root, FOLDER)) as top:
        yield from _walk(top, "", skip, 1)


def _walk(folder: int, prefix: str, skip: frozenset[str], depth: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:  # not as a list: there may be a million
        for entry in entries:
            path = prefix + entry.name
            if path in skip:
                continue
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield path, found
            if stat.S_ISDIR(found.st_mode) and depth < MAX_DEPTH:
                with suppress(FileNotFoundError, NotADirectoryError), _entered(entry.name, FOLDER, folder) as below:
                    yield from _walk(below, path + "/", skip, depth + 1)


def clone(source: Path, target: Path) -> None:
    """Copy a folder that nothing writes, with all that its file system keeps of it. Blocking. Raises OSError."""
    words = ["cp", "--archive", "--reflink=auto", os.fspath(source), os.fspath(target)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{source} could not be copied: {done.stderr.strip()[-1000:]}")


def copy_file(root: Path, path: str, target: Path) -> None:
    """Copy the file or link at `path`, relative to `root`, to `target`, without following a link on the way.

    The copy is executable if the file is for its owner; no other mode bit is kept. Raises OSError.
    """
    *folders, name = path.split("/")
    with ExitStack() as stack:
        folder = stack.enter_context(_opened(os.open(root, FOLDER)))
        for each in folders:
            folder = stack.enter_context(_entered(each, FOLDER, folder))
        mode = os.lstat(name, dir_fd=folder).st_mode
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISLNK(mode):
            target.symlink_to(os.readlink(name, dir_fd=folder))
            return
        source = stack.enter_context(_entered(name, FILE, folder))
        with _opened(os.open(target, NEW, 0o600)) as copy:
            _copy_bytes(source, copy)
            os.fchmod(copy, 0o755 if mode & 0o100 else 0o644)
