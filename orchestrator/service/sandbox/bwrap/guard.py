"""Starts sandboxes, and ends those that are just being set up when the service is killed.

Its secret: bubblewrap's second process waits for the first to set up its user, and asks to die with it only then. If
the first is killed before, the second waits for ever. So each sandbox is a process group until it has booted, and a
small shell at the end of a pipe from us knows which are booting: when the pipe ends, however we did, it ends those.
Each group names itself, before it becomes bubblewrap: we may be killed before we know its number, and the pipe does not
end while a process that will be bubblewrap holds it. It also makes itself the first to be killed when memory runs out
(`EXPENDABLE`).
"""

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Final

from orchestrator.service.sandbox.boxagent import EXPENDABLE

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
#: If the shell above was killed, it becomes the program all the same. 0.8 ms.
_BECOME: Final = f"""\
{{ read -r score && [ "$score" -lt {EXPENDABLE} ] && echo {EXPENDABLE} >/proc/self/oom_score_adj
}} </proc/self/oom_score_adj 2>/dev/null
trap '' PIPE; echo "+ $$" 2>/dev/null; trap - PIPE; exec "$@" >/dev/null"""


class Guard:
    """Watches process groups from `start` to `forget`."""

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

    def start(
        self, arguments: Sequence[str], *, user: int | None, fds: Sequence[int], errors: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a program as `user` of the host (None: as ourselves), in a group of its own, with no environment."""
        return subprocess.Popen(
            ["/bin/sh", "-c", _BECOME, "sh", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._shell.stdin,
            stderr=errors,
            cwd="/",
            env={},
            umask=0o022,
            pass_fds=fds,
            process_group=0,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )

    def forget(self, group: int) -> None:
        """Stop watching a group: it has booted, or it has ended."""
        assert self._shell.stdin is not None
        with suppress(OSError):  # the shell was killed: only its own work is lost
            os.write(self._shell.stdin.fileno(), f"- {group}\n".encode())

    def close(self) -> None:
        """End the shell, and with it every group that is still watched. Blocking."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait()
