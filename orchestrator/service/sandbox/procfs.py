"""The processes of a box, read from the host's /proc: their tree, the unlinked files they hold, what they listen on.

Its secret: what /proc shows and what it hides. A walk of a box's folders misses a file that a program opens, unlinks
and writes to; the file lives until its last descriptor and mapping are gone, and /proc lists both. Files in memory
(memfd, /dev/shm) do not take the disk: their device tells them apart. Only a process with CAP_CHECKPOINT_RESTORE, such
as root's, may read mappings. A process can close itself to an ordinary user's service (PR_SET_DUMPABLE): then neither
its files nor its sockets are seen, and it counts as one that does not listen. A process chooses its own name, so names
are for people; that a socket listens is the kernel's word. Blocking; call from a worker thread.
"""

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.service.sandbox.provider import RemainingProcesses

#: Descriptors and mappings of one box that are looked at, some 3 us each. A box that holds more is not measured.
MAX_HELD_FILES = 1 << 20
#: Process names that are told apart; the processes of all further names are counted together.
MAX_NAMES = 20
_UNLINKED_MAPPING = b" (deleted)\n"
_SOCKET = re.compile(r"socket:\[(\d+)\]")
#: A listening TCP socket and the flag of a listening UNIX one in /proc/net (include/net/tcp_states.h, net.h).
_TCP_LISTEN, _UNIX_LISTEN = "0A", 0x10000


class TooManyFiles(OSError):
    """A box holds more than MAX_HELD_FILES descriptors and mappings."""

    def __init__(self) -> None:
        super().__init__(errno.EMFILE, f"its processes hold more than {MAX_HELD_FILES:,} descriptors and mappings")


def descendants(pid: int) -> list[int]:
    """A process of the host and all below it at this moment; some may have ended meanwhile."""
    found = [pid]
    for each in found:
        with suppress(OSError), os.scandir(f"/proc/{each}/task") as threads:
            for thread in threads:
                with suppress(OSError), open(f"{thread.path}/children") as children:  # noqa: PTH123
                    found += map(int, children.read().split())
    return found


def unlinked_usage(pids: Iterable[int], *, device: int, owner: int) -> int:
    """Bytes of the unlinked files that the processes hold, each file once; of a process that ends meanwhile, none.

    Only regular files on `device` that belong to the host's user `owner` count. Raises TooManyFiles.
    """
    held: dict[int, int] = {}
    for number, path in enumerate(path for pid in pids for path in _held(pid)):
        if number >= MAX_HELD_FILES:
            raise TooManyFiles
        if path is None:
            continue
        try:
            found = os.stat(path)  # noqa: PTH116 - a path object takes as long as the call
        except OSError:
            continue
        is_unlinked = found.st_nlink == 0 and stat.S_ISREG(found.st_mode)
        if is_unlinked and found.st_dev == device and found.st_uid == owner:
            held[found.st_ino] = found.st_blocks * 512
    return sum(held.values())


def _held(pid: int) -> Iterator[str | None]:
    """Paths of all that a process has open or mapped; None for a mapping of a file that has a name, or of none."""
    with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            yield entry.path
    with suppress(OSError), open(f"/proc/{pid}/maps", "rb") as mappings:  # noqa: PTH123
        for line in mappings:
            start, _, end = line.partition(b" ")[0].partition(b"-")
            is_unlinked = line.endswith(_UNLINKED_MAPPING)
            yield f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}" if is_unlinked else None


def remaining_processes(root: int, commands: int) -> RemainingProcesses:
    """Processes below a sandbox's process 1, the host's `root`, without the helpers of `commands` running commands."""
    names: Counter[str] = Counter()
    others: list[int] = []
    helpers = 0
    for pid in descendants(root)[1:]:
        try:
            head, _, rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")
            state, parent = rest.split()[:2]
            # A helper is a fork of process 1 that has not executed another program.
            arguments = [Path(f"/proc/{each}/cmdline").read_bytes() for each in (root, pid)]
        except (OSError, ValueError):
            continue  # it has ended
        if helpers < commands and int(parent) == root and arguments[0] == arguments[1]:
            helpers += 1
            continue
        others.append(pid)
        name = head.partition(b"(")[2].decode(errors="replace")
        if name and state not in {b"Z", b"X"}:
            names[name] += 1

    few = dict(names.most_common(MAX_NAMES))
    if more := names.total() - sum(few.values()):
        few["others"] = few.get("others", 0) + more
    return RemainingProcesses(names=few, is_listening=_is_any_listening(others))


def _is_any_listening(pids: Sequence[int]) -> bool:
    """Tell whether any of these processes of one network holds a socket that listens (proc_net(5))."""
    listening: set[str] = set()
    for name, inode in (("tcp", 9), ("tcp6", 9), ("unix", 6)) if pids else ():
        with suppress(OSError):
            for line in Path(f"/proc/{pids[0]}/net/{name}").read_text(errors="replace").splitlines()[1:]:
                fields = line.split()
                if len(fields) > inode and (fields[3] == _TCP_LISTEN or int(fields[3], 16) & _UNIX_LISTEN):
                    listening.add(fields[inode])

    for pid in pids if listening else ():
        with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with suppress(OSError):
                    socket = _SOCKET.fullmatch(os.readlink(entry.path))  # noqa: PTH115
                    if socket is not None and socket[1] in listening:
                        return True
    return False
