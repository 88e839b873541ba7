"""The /sys of a box of an image, as in a container: read-only, with the box's own network and limits.

Its secret: who may mount it, and when. A sysfs shows the network of the thread that mounts it, so a thread of ours
enters the box's network and then its mounts, when these stand and no program of a user has run yet. It can come back
from neither, and ends. An ordinary user's service may do this only where nothing covers a part of this machine's own
/sys (`mount_too_revealing` in the kernel), as container engines do; a box has none there.
"""

import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import structlog

from orchestrator.service.sandbox.bwrap.overlay import (
    AT_EMPTY_PATH,
    FSCONFIG,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_STRING,
    FSMOUNT,
    FSMOUNT_CLOEXEC,
    FSOPEN,
    FSOPEN_CLOEXEC,
    MOUNT_SETATTR,
    attach,
    clone_mount,
    system_call,
)
from orchestrator.service.sandbox.limits import CONTROLLERS
from orchestrator.service.sandbox.provider import Limit

CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
#: Read-only, no programs of other users, no devices, no programs at all.
SEALED: Final = 1 | 2 | 4 | 8
PLACE: Final = "/sys"
GROUPS: Final = f"{PLACE}/fs/cgroup"
#: What the firmware says of this machine, and what power it takes: covered by empty folders.
COVERED: Final = ("firmware", "devices/virtual/powercap")


def mount_sys(root: int, groups: Mapping[Limit, Path]) -> None:
    """Mount /sys in the box whose process 1 is `root`, with its control groups; nothing where the kernel forbids it.

    Blocking. Raises OSError; the box is not to be used then.
    """
    with ThreadPoolExecutor(1, "devbox-sys") as thread:
        thread.submit(_enter_and_mount, root, groups).result()


def _enter_and_mount(root: int, groups: Mapping[Limit, Path]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with ExitStack() as opened:

        def held(fd: int) -> int:
            opened.callback(os.close, fd)
            return fd

        def enter(namespace: int, kind: int) -> None:
            if libc.setns(namespace, kind):
                number = ctypes.get_errno()
                raise OSError(number, f"its namespaces cannot be entered: {os.strerror(number)}")

        network, mounts = (held(os.open(f"/proc/{root}/ns/{kind}", os.O_RDONLY)) for kind in ("net", "mnt"))
        libc.unshare(CLONE_NEWNS)  # for an ordinary user, whose service is not the root of the machine's mounts
        try:
            enter(network, CLONE_NEWNET)
            sysfs = held(_sealed("sysfs"))
        except PermissionError as error:
            structlog.get_logger().info("devbox.no_sys", error=str(error))
            return
        views = {CONTROLLERS[limit]: held(_sealed_view(folder)) for limit, folder in groups.items()}
        is_one_tree = any((folder / "cgroup.controllers").exists() for folder in groups.values())  # version 2
        enter(mounts, CLONE_NEWNS)
        attach(sysfs, PLACE)
        for name in COVERED:
            if Path(PLACE, name).is_dir():
                attach(held(_sealed("tmpfs")), f"{PLACE}/{name}")
        if is_one_tree:
            attach(next(iter(views.values())), GROUPS)
        elif views:
            attach(held(_sealed("tmpfs", folders=views)), GROUPS)
            for name, view in views.items():
                attach(view, f"{GROUPS}/{name}")


def _sealed(kind: str, folders: Iterable[str] = ()) -> int:
    """Return a new file system of a kind with empty `folders`, read-only and not attached yet. Raises OSError."""
    fs = system_call(FSOPEN, kind.encode(), FSOPEN_CLOEXEC)
    try:
        if kind == "tmpfs":
            system_call(FSCONFIG, fs, FSCONFIG_SET_STRING, b"mode", b"755", 0)
        system_call(FSCONFIG, fs, FSCONFIG_CMD_CREATE, None, None, 0)
        mount = system_call(FSMOUNT, fs, FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(fs)
    for name in folders:
        os.mkdir(name, dir_fd=mount)
        os.chmod(name, 0o755, dir_fd=mount)  # noqa: S103
    return _seal(mount)


def _sealed_view(folder: Path) -> int:
    """Return a read-only view of a folder, not attached yet. Raises OSError."""
    return _seal(clone_mount(folder))


def _seal(mount: int) -> int:
    try:
        attributes = struct.pack("=QQQQ", SEALED, 0, 0, 0)
        system_call(MOUNT_SETATTR, mount, b"", AT_EMPTY_PATH, attributes, len(attributes))
    except OSError:
        os.close(mount)
        raise
    return mount
