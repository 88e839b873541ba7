"""An ordinary user's service as the root of a user namespace of its own, with the ids that he is lent.

Its secret: after this there is no ordinary user's way. Boxes of images need mounts, maps of ids, and copies of files
that belong to strangers. In its own namespace the service may do all of that as root's service does, with the same
code, and to the host it is the same user as before. Root there is the user himself, and the ids from 1 on are those
that /etc/subuid and /etc/subgid lend him (`newuidmap`, `newgidmap`); without these, he has himself alone.

A process with threads cannot enter a namespace, and none can leave one. So a command does this before all else, and a
copy of the process tries it first: some machines grant the namespace and nothing in it (AppArmor).
"""

import ctypes
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from orchestrator.service.sandbox.bwrap.overlay import open_overlay
from orchestrator.service.sandbox.user_namespace import ID_COUNT

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
#: Runs outside the namespace, and maps ids into it once that is made.
_MAP: Final = 'read -r _ && newuidmap "$1" 0 "$2" 1 1 "$3" "$4" && newgidmap "$1" 0 "$5" 1 1 "$6" "$4"'


class NotPermitted(Exception):
    """The machine does not permit it; the message says what, in its own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """The first of the ID_COUNT users, and of the ID_COUNT groups, that this machine lends to its user."""

    user: int
    group: int

    @classmethod
    def find(cls) -> "Lent | str":
        """Return them, or what is missing and how to get it."""
        for helper in ("newuidmap", "newgidmap"):
            if shutil.which(helper) is None:
                return f"there is no {helper}; Debian's package uidmap has it"
        number, starts = os.getuid(), dict[str, int]()
        try:
            name = pwd.getpwuid(number).pw_name
        except KeyError:
            name = str(number)
        for file in ("subuid", "subgid"):
            start = lent_ids(Path("/etc", file), name, number)
            if start is None:
                return f"/etc/{file} has no line that lends {name} {ID_COUNT:,} ids, such as {name}:100000:{ID_COUNT}"
            starts[file] = start
        return cls(user=starts["subuid"], group=starts["subgid"])


def lent_ids(file: Path, name: str, user: int) -> int | None:
    """Return the first of ID_COUNT ids that subuid(5) or subgid(5) lends a user; None if there are not so many."""
    try:
        rows = [line.split(":") for line in file.read_text().splitlines()]
    except OSError:
        return None
    found = [row for row in rows if len(row) == 3 and row[0] in {name, str(user)} and row[1].isdigit()]
    return next((int(start) for _, start, count in found if count.isdigit() and int(count) >= ID_COUNT), None)


@dataclass(slots=True, kw_only=True)
class OwnIds:
    """What became of it: `obstacle` keeps boxes of images from here, `lack` leaves them one user only; "" if nothing.

    `user` is the user's id outside, None for a process that is root anyway.
    """

    obstacle: str = ""
    lack: str = ""
    user: int | None = None


#: This process's; credentials are a process's own too.
STATE: Final = OwnIds()


def shortcomings() -> Iterator[str]:
    """Yield a notice where boxes of images have one user."""
    if STATE.user is not None and STATE.lack:
        yield (
            "Devboxes of images have one user here, root. Installing packages works; programs that need another user "
            f"do not. For all users: {STATE.lack}."
        )


def become_root(place: Path) -> None:
    """Enter a namespace of this user's ids, if this machine permits boxes of images there; their folder is `place`.

    Root stays what it is. Call it before the process has threads.
    """
    if os.geteuid() == 0 or sys.platform != "linux":
        return
    found = Lent.find()
    lent = found if isinstance(found, Lent) else None
    STATE.lack = "" if lent else str(found)
    STATE.obstacle = _tried(lent, place)
    if lent is not None and STATE.obstacle:
        lent, STATE.lack, STATE.obstacle = None, STATE.obstacle, _tried(None, place)
    if not STATE.obstacle:
        STATE.user = os.geteuid()
        _enter(lent)


def _tried(lent: Lent | None, place: Path) -> str:
    """Try it in a copy of this process; returns what the machine says, "" if it permits it."""
    theirs, ours = os.pipe()
    child = os.fork()
    if child == 0:
        words = ""
        try:
            _enter(lent)
            _check_overlay(place)
        except BaseException as error:  # noqa: BLE001 - a copy must not return
            words = str(error) or type(error).__name__
        os.write(ours, words.encode())
        os._exit(0)
    os.close(ours)
    with os.fdopen(theirs, errors="replace") as said:
        words = said.read()
    os.waitpid(child, 0)
    return words


def _enter(lent: Lent | None) -> None:
    """Raises NotPermitted."""
    user, group, pid = os.geteuid(), os.getegid(), os.getpid()
    words = (
        ["sh", "-c", _MAP, "sh", *map(str, (pid, user, lent.user, ID_COUNT, group, lent.group))] if lent else ["true"]
    )
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as mapper:
        try:
            _check(ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER), "user namespaces")
            if lent is None:
                with suppress(OSError):
                    Path("/proc/self/setgroups").write_text("deny")
                for kind, own in (("uid", user), ("gid", group)):
                    Path(f"/proc/self/{kind}_map").write_text(f"0 {own} 1\n")
        except OSError as error:
            raise NotPermitted(str(error)) from None
        said = mapper.communicate("\n" if lent else None)[1]
    if mapper.returncode:
        raise NotPermitted(said.strip() or "its ids could not be mapped")


def _check_overlay(place: Path) -> None:
    """Mount a small overlay in the folder. Raises OSError."""
    _check(ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS), "mounts")
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    with TemporaryDirectory(dir=place) as trial:
        for name in ("lower", "files", "work"):
            Path(trial, name).mkdir()
        mount = open_overlay([Path(trial, "lower")], Path(trial), None)
        os.mkdir("made", dir_fd=mount)
        os.close(mount)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
