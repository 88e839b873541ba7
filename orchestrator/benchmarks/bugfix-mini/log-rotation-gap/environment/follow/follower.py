"""Returns what is new in a log file."""

import os

from . import state


class Follower:
    """Reads a log in steps; state_path, if given, keeps the place for the next process."""

    def __init__(self, path, state_path=None):
        self._path = path
        self._state_path = state_path
        self._file = None
        self._inode = None
        known = state.load(state_path)
        if known and os.path.exists(path) and os.stat(path).st_ino == known["inode"]:
            self._open(known["offset"])

    def poll(self):
        """Returns the new lines, without their newlines."""
        if not os.path.exists(self._path):
            return []
        if self._file is None or os.stat(self._path).st_ino != self._inode:
            self.close()
            self._open(0)
        text = self._file.read()
        state.save(self._state_path, {"inode": self._inode, "offset": self._file.tell()})
        return text.splitlines()

    def close(self):
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, offset):
        self._file = open(self._path, encoding="utf-8", errors="replace")
        self._file.seek(offset)
        self._inode = os.fstat(self._file.fileno()).st_ino
