"""What still runs in a sandbox when its agent's command has ended, and whether it listens.

Its secret: /proc, read from outside. What a process calls itself is its own choice, so names are for people; that a
socket listens is the kernel's word. A process that closed itself to an ordinary user's service (PR_SET_DUMPABLE) shows
no sockets: it counts as one that does not listen, and ends. Blocking; call from a worker thread.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from orchestrator.service.sandbox.provider import RemainingProcesses
from orchestrator.service.sandbox.unlinked import descendants

_SOCKET = re.compile(r"socket:\[(\d+)\]")
#: How /proc/net writes a TCP socket that listens, and a flag of a UNIX one that does (include/net/tcp_states.h, net.h).
_TCP_LISTEN, _UNIX_LISTEN = "0A", 0x10000
#: Names that are told apart; of more, the others are counted together.
_MOST = 20


def left_in(root: int, commands: int) -> RemainingProcesses:
    """What runs below the sandbox's process 1, the host's `root`, beside the helpers of so many commands of ours."""
    pids = descendants(root)[1:]
    ours = [pid for pid in pids if _is_helper(pid, root)][:commands]
    others = [pid for pid in pids if pid not in ours]
    names = Counter(name for pid in others if (name := _name(pid)))
    few = dict(names.most_common(_MOST))
    if more := names.total() - sum(few.values()):
        few["others"] = few.get("others", 0) + more
    return RemainingProcesses(names=few, is_listening=_is_any_listening(others))


def _is_helper(pid: int, root: int) -> bool:
    """A fork of process 1 that has become nothing else."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        mine, its = (Path(f"/proc/{each}/cmdline").read_bytes() for each in (root, pid))
    except (OSError, IndexError):
        return False
    return parent == root and mine == its


def _name(pid: int) -> str:
    """The name of a process that is there and no zombie."""
    with suppress(OSError, IndexError):
        head, _, rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")
        if rest.split()[0] not in {b"Z", b"X"}:
            return head.partition(b"(")[2].decode(errors="replace")
    return ""


def _is_any_listening(pids: list[int]) -> bool:
    if not pids:
        return False
    listening = {inode for pid in pids[:1] for inode in _listening(pid)}
    return bool(listening) and any(inode in listening for pid in pids for inode in _sockets(pid))


def _sockets(pid: int) -> Iterator[str]:
    """The inodes of the sockets that a process holds."""
    with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with suppress(OSError):
                if found := _SOCKET.fullmatch(os.readlink(entry.path)):  # noqa: PTH115
                    yield found[1]


def _listening(pid: int) -> Iterator[str]:
    """The inodes of the sockets that listen in the network of a process (proc_net(5))."""
    for name in ("tcp", "tcp6"):
        for fields in _rows(pid, name):
            if len(fields) > 9 and fields[3] == _TCP_LISTEN:
                yield fields[9]
    for fields in _rows(pid, "unix"):
        if len(fields) > 6 and int(fields[3], 16) & _UNIX_LISTEN:
            yield fields[6]


def _rows(pid: int, name: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(f"/proc/{pid}/net/{name}").read_text(errors="replace").splitlines()[1:]]
    except OSError:
        return []
