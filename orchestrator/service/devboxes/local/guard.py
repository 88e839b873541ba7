"""Ends the sandboxes that are just being set up when the service is killed.

Its secret: bubblewrap's second process waits for the first to set up its user, and asks to die with it only then. If
the first is killed before, the second waits for ever. So each sandbox is a process group until it has booted, and a
small shell at the end of a pipe from us knows which are booting: when the pipe ends, however we did, it ends those.
"""

import os
import subprocess
from contextlib import suppress
from typing import Final

_SHELL: Final = """\
booting=' '
while read -r sign group; do
    case $sign in
    +) booting="$booting$group " ;;
    -) case $booting in *" $group "*) booting="${booting%% $group *} ${booting#* $group }" ;; esac ;;
    esac
done
for group in $booting; do kill -s KILL -- "-$group" 2>/dev/null; done
"""


class Guard:
    """Watches process groups from `watch` to `forget`."""

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SHELL],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        self._tell(f"+ {group}\n")

    def forget(self, group: int) -> None:
        self._tell(f"- {group}\n")

    def close(self) -> None:
        """End the shell, and with it every group that is still watched. Blocking."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait()

    def _tell(self, words: str) -> None:
        assert self._shell.stdin is not None
        with suppress(OSError):  # somebody killed the shell: what it would have done is lost, and nothing else
            os.write(self._shell.stdin.fileno(), words.encode())
