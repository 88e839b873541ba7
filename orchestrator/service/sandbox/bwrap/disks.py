"""Disks of boxes' own: a box that has one finds it full, as on a real machine, where others are ended by the watch.

Its secret: nothing is left of one. It is a sparse file with a file system, whose name is removed as soon as the kernel
has it as a loop device. The device goes with the last mount of it, and that is in the spawner's private view: when the
service dies, however that came about, the view dies too, and the kernel frees the file. Making a file system takes
longer than all the rest, so there is one of each size to copy from.

The reserve is room for us: an agent that has filled its disk is judged all the same, and tests write files. It is given
up when nothing of the agent's runs any more. Only root may have loop devices.
"""

import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Final

from orchestrator.service.sandbox.bwrap.overlay import (
    FSCONFIG,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSMOUNT,
    FSMOUNT_CLOEXEC,
    FSOPEN,
    FSOPEN_CLOEXEC,
    system_call,
)
from orchestrator.service.sandbox.safe_fs import ENTRY_BYTES, copy_file

RESERVE: Final = "reserve"
RESERVE_BYTES: Final = 64 << 20
RESERVE_FILES: Final = 1000
#: Of tables, beside those for the entries.
_TABLE_BYTES: Final = 8 << 20
_CONTROL: Final = "/dev/loop-control"
_MAKER: Final = "mkfs.ext4"
#: No journal, for nobody needs it after a crash; an entry for each block; and nothing that would fill the sparse file.
_OPTIONS: Final = (
    *("-q", "-F", "-b", str(ENTRY_BYTES), "-i", str(ENTRY_BYTES), "-m", "0"),
    *("-O", "^has_journal,^resize_inode", "-E", "nodiscard,lazy_itable_init=1,root_owner=0:0"),
)
_LIMIT_S: Final = 60.0
#: Calls of a loop device, a flag of it, and what it is told: a file, the size of a block, flags (<linux/loop.h>).
_CONFIGURE, _GET_FREE, _AUTOCLEAR = 0x4C0A, 0x4C82, 4
_CONFIG: Final = "=II40x12xI176x64x"
#: Free devices that others may take before we do.
_MOST_TRIES: Final = 100
_NOSUID, _NODEV = 2, 4
_TRIAL_BYTES: Final = 1 << 20


class Disks:
    """Makes disks; their files are in the folder `place` until the kernel has them."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._making = Lock()

    def open(self, name: str, size: int) -> int:
        """Return an empty disk on which a box can write `size` bytes, mounted and not attached yet.

        Blocking. Raises OSError, with what this machine lacks.
        """
        empty, disk = self._place / f"size-{size}", self._place / f"disk-{name}"
        with self._making:
            if not empty.exists():
                self._make(empty, size)
        copy_file(self._place, empty.name, disk)
        try:
            return _mount(disk)
        finally:
            disk.unlink()

    def check(self) -> None:
        """Open a small disk, and close it. Blocking. Raises OSError, with what this machine lacks."""
        os.close(self.open("trial", _TRIAL_BYTES))

    def _make(self, place: Path, size: int) -> None:
        """Make what all disks of a size are copied from. Raises OSError."""
        maker = shutil.which(_MAKER, path="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
        if maker is None:
            raise FileNotFoundError(errno.ENOENT, f"it lacks {_MAKER}")
        self._place.mkdir(mode=0o700, exist_ok=True)
        fresh = place.with_suffix(".new")
        with fresh.open("wb") as file:
            file.truncate(size + size // 14 + RESERVE_BYTES + _TABLE_BYTES)
        words = [maker, *_OPTIONS, os.fspath(fresh)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        if done.returncode:
            raise OSError(errno.EIO, f"{_MAKER}: {done.stderr.strip()[-1000:]}")

        mount = _mount(fresh)
        try:
            os.mkdir(RESERVE, 0o700, dir_fd=mount)
            for number in range(RESERVE_FILES):
                os.close(os.open(f"{RESERVE}/{number}", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=mount))
            first = os.open(f"{RESERVE}/0", os.O_WRONLY, dir_fd=mount)
            try:
                os.posix_fallocate(first, 0, RESERVE_BYTES)
            finally:
                os.close(first)
        finally:
            os.close(mount)
        fresh.rename(place)


def what_mends(error: OSError) -> str:
    """Return what an administrator can do where there are no disks."""
    if error.errno == errno.ENOENT:
        return "install e2fsprogs" if _MAKER in str(error) else "`modprobe loop`, or start the container --privileged"
    return "start as root of the machine, in a container with --privileged"


def _mount(file: Path) -> int:
    """Mount a file with a file system, not attached yet. Raises OSError."""
    with ExitStack() as opened:

        def held(fd: int) -> int:
            opened.callback(os.close, fd)
            return fd

        control = held(os.open(_CONTROL, os.O_RDWR))
        source = held(os.open(file, os.O_RDWR))
        device = _loop(control, source, held)
        fs = held(system_call(FSOPEN, b"ext4", FSOPEN_CLOEXEC))
        system_call(FSCONFIG, fs, FSCONFIG_SET_STRING, b"source", device.encode(), 0)
        for flag in (b"noinit_itable", b"nobarrier"):
            system_call(FSCONFIG, fs, FSCONFIG_SET_FLAG, flag, None, 0)
        system_call(FSCONFIG, fs, FSCONFIG_CMD_CREATE, None, None, 0)
        return system_call(FSMOUNT, fs, FSMOUNT_CLOEXEC, _NOSUID | _NODEV)


def _loop(control: int, source: int, held: Callable[[int], int]) -> str:
    """Make an open file a loop device, and return its path; who mounts it keeps it. Raises OSError."""
    for tries_left in reversed(range(_MOST_TRIES)):
        path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
        try:
            fcntl.ioctl(
                held(os.open(path, os.O_RDWR)), _CONFIGURE, struct.pack(_CONFIG, source, ENTRY_BYTES, _AUTOCLEAR)
            )
        except OSError as error:
            if error.errno != errno.EBUSY or not tries_left:  # another process has just taken it
                raise
        else:
            return path
    raise AssertionError
