"""Returns what is new in a log file."""

import os

from . import state


class Follower:
    """Reads a log in steps; state_path, if given, keeps the place for the next process.

    The place is always the end of the last line returned, so a partial line needs no memory: it is read again.
    """

    def __init__(self, path, state_path=None):
        self._path = path
        self._state_path = state_path
        self._file = None
        self._offset = 0
        self._known = state.load(state_path)

    def poll(self):
        """Returns the new lines, without their newlines."""
        if self._file is None:
            self._find()
        lines = []
        if self._file is not None:
            self._check_truncation()
            if self._is_rotated():
                lines += self._read(last=True)
                self.close()
        if self._file is None:
            self._open(self._path, 0)
        if self._file is not None:
            lines += self._read(last=False)
            self._known = {"inode": os.fstat(self._file.fileno()).st_ino, "offset": self._offset}
            state.save(self._state_path, self._known)
        return lines

    def close(self):
        if self._file is not None:
            self._file.close()
            self._file = None

    def _find(self):
        """Opens the file that the state names, if it is still there."""
        if not self._known:
            return
        for path in (self._path, f"{self._path}.1"):
            self._open(path, self._known["offset"])
            if self._file is not None:
                if os.fstat(self._file.fileno()).st_ino == self._known["inode"]:
                    return
                self.close()

    def _open(self, path, offset):
        try:
            self._file = open(path, "rb")
        except FileNotFoundError:
            return
        self._offset = offset

    def _is_rotated(self):
        try:
            current = os.stat(self._path)
        except FileNotFoundError:
            return False
        return not os.path.samestat(current, os.fstat(self._file.fileno()))

    def _check_truncation(self):
        if os.fstat(self._file.fileno()).st_size < self._offset:
            self._offset = 0

    def _read(self, *, last):
        """Returns the complete lines after the offset, and a partial one too if it is the file's last word."""
        self._file.seek(self._offset)
        *lines, rest = self._file.read().split(b"\n")
        self._offset += sum(len(line) + 1 for line in lines)
        if last and rest:
            lines.append(rest)
        return [line.decode("utf-8", errors="replace") for line in lines]
