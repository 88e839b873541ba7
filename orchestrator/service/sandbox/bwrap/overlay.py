"""Mounts of images: their layers with the ids of one box, below a layer that this box alone writes.

Its secret: the newer calls for mounts (fsopen(2), open_tree(2), mount_setattr(2)), which the C library of many machines
does not offer. Layers stay on the disk with the ids of the image, and each box sees them moved into its own range
(idmapped mounts). One such view of the folder that contains a layer serves all layers in it, since each mount costs
time. The views are never attached, so that nothing is left of them once the overlay holds its own copies. Only the
machine's root may make them; layers that have a box's ids already need none. Each layer is given by a call of its own:
mount(2) takes all its options on one page, room for few layers.

A box's layer is mounted `volatile`: nobody needs it after a crash of the machine, and fsync costs a fraction.
"""

import ctypes
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

#: Numbers of system calls, the same on every instruction set.
OPEN_TREE, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT, OPENAT2, MOUNT_SETATTR = 428, 429, 430, 431, 432, 437, 442
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
CLOEXEC_TREE, OPEN_TREE_CLONE, FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC = os.O_CLOEXEC, 1, 1, 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_IDMAP = 1, 0x00100000
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 2, 16
#: What an error says of a folder where no layer can be, and what mends it.
NESTED: Final = "no layer can lie on an overlay, such as a container's own files"
REMEDY: Final = "take a volume or a tmpfs"
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def system_call(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call. Raises OSError."""
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = _LIBC.syscall(ctypes.c_long(number), *given)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def open_overlay(layers: Sequence[Path], own: Path, namespace: int | None) -> int:
    """Return an overlay, not attached yet: `layers` from the lowest up, with the ids of the user namespace `namespace`.

    With None they keep their ids. The folder `own` holds the folders `files`, which is written, and `work`.
    Raises OSError, with the kernel's words.
    """
    with ExitStack() as opened:
        views: dict[Path, int] = {}
        for layer in layers:
            if layer.parent not in views:
                views[layer.parent] = _view(layer.parent, namespace)
                opened.callback(os.close, views[layer.parent])
        written = os.open(own, os.O_PATH | os.O_DIRECTORY)
        opened.callback(os.close, written)

        # Paths by open folders need no escapes, and the box's table of mounts shows none of the host.
        fs = system_call(FSOPEN, b"overlay", FSOPEN_CLOEXEC)
        opened.callback(os.close, fs)
        options = [("lowerdir+", f"/proc/self/fd/{views[layer.parent]}/{layer.name}") for layer in reversed(layers)]
        options += [
            (f"{kind}dir", f"/proc/self/fd/{written}/{name}") for kind, name in (("upper", "files"), ("work", "work"))
        ]
        try:
            for key, value in (("source", "devbox"), *options):
                system_call(FSCONFIG, fs, FSCONFIG_SET_STRING, key.encode(), os.fsencode(value), 0)
            for flag in (b"userxattr", b"volatile"):
                system_call(FSCONFIG, fs, FSCONFIG_SET_FLAG, flag, None, 0)
            system_call(FSCONFIG, fs, FSCONFIG_CMD_CREATE, None, None, 0)
        except OSError as error:
            raise OSError(error.errno, nested(own) or f"{error.strerror} ({_words(fs)})") from None
        return system_call(FSMOUNT, fs, FSMOUNT_CLOEXEC, 0)


def file_system(folder: Path) -> str:
    """Return the kind of a folder's file system, as the table of mounts names it."""
    device = folder.stat().st_dev
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        before, _, after = line.partition(" - ")
        if before.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            return after.split()[0]
    return "an unknown file system"


def nested(folder: Path) -> str:
    """Return why layers cannot be in the folder, and the fix, if it lies on an overlay itself; else ""."""
    return f"{NESTED}: {REMEDY} for {folder}" if file_system(folder) == "overlay" else ""


def flush(folder: Path) -> None:
    """Write all of a folder's file system to its disk (syncfs(2)). Raises OSError."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _LIBC.syncfs(opened):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), os.fspath(folder))
    finally:
        os.close(opened)


def attach(mount: int, place: str) -> None:
    """Attach a mount to the calling thread's folder `place`. Raises OSError."""
    system_call(MOVE_MOUNT, mount, b"", AT_FDCWD, os.fsencode(place), MOVE_MOUNT_F_EMPTY_PATH)


def clone_mount(folder: Path | str) -> int:
    """Return another mount of a folder that the calling thread sees, not attached yet. Raises OSError."""
    return system_call(OPEN_TREE, AT_FDCWD, os.fsencode(folder), OPEN_TREE_CLONE | CLOEXEC_TREE)


def open_inside(root: int, path: str) -> int:
    """Open the folder `path` of the file system at the open folder `root`, whose links lead nowhere else.

    Raises OSError.
    """
    how = struct.pack("=QQQ", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    return system_call(OPENAT2, root, os.fsencode(path), how, len(how))


def _view(folder: Path, namespace: int | None) -> int:
    """Return a read-only view of a folder with the ids of a user namespace. Raises OSError."""
    if namespace is None:
        return os.open(folder, os.O_PATH | os.O_DIRECTORY)
    tree = clone_mount(folder)
    try:
        attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_IDMAP, 0, 0, namespace)
        system_call(MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, len(attributes))
    except OSError as error:
        os.close(tree)
        need = "layers with the ids of a box need Linux 5.19 and a file system that has idmapped mounts"
        raise OSError(error.errno, nested(folder) or f"{error.strerror} ({need})", os.fspath(folder)) from None
    return tree


def _words(fs: int) -> str:
    """Return what the kernel has to say about a mount that failed."""
    with suppress(OSError):
        return os.read(fs, 4096).decode(errors="replace").strip()
    return "the kernel says no more"
