"""Which user of the host a box runs as.

Its secret: as root, every box gets a user of its own from a range that nobody has an account in. User 1000 of the box
is then a stranger to the host and to every other box, even for one who gets out, and what the kernel counts per user
(pipes, keys, watches) it counts per box. An ordinary user has one identity to give, its own, and so has the root of a
user namespace that maps no other. "nobody" would not do: other services run as it, and file systems reserve blocks.
"""

import os
from pathlib import Path

from orchestrator.service.sandbox.provider import BoxStartFailed

#: Above what systemd, containers and sub-user ranges use, below 2^31.
FIRST, COUNT = 1_900_000_000, 8192
UID_MAP = Path("/proc/self/uid_map")


def user_range(uid_map: str) -> range:
    """The users that boxes may run as, given the text of /proc/self/uid_map (user_namespaces(7))."""
    rows = [[int(field) for field in line.split()] for line in uid_map.splitlines()]
    if any(inside <= FIRST and inside + count >= FIRST + COUNT for inside, _, count in rows):
        return range(FIRST, FIRST + COUNT)
    inside, _, count = max(rows, key=lambda row: row[2])
    last = inside + count - (2 if count > 2 else 1)
    return range(max(inside + 1, last - COUNT), last)


class Users:
    """Lends users to boxes; lends None, our own, when we are an ordinary user ourselves."""

    def __init__(self) -> None:
        users = list(reversed(user_range(UID_MAP.read_text()))) if os.geteuid() == 0 else []
        #: None where there is nobody but us: an ordinary user, or root of a user namespace without further users.
        self._free = users or None

    def lend(self) -> int | None:
        if self._free is None:
            return None
        if not self._free:
            raise BoxStartFailed("no user is left for another devbox; stop some devboxes first")
        return self._free.pop()

    def give_back(self, user: int | None) -> None:
        if self._free is not None and user is not None:
            self._free.append(user)
