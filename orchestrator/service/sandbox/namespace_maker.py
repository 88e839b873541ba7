"""Run as a program, with the namespace's owner if that is another: makes a user namespace and holds it.

It says "made", reads "mapped" when its maps are written, forbids further namespaces, says "ready", and ends with its
standard input. Standard library only.
"""

import ctypes
import os
import sys
from contextlib import suppress

CLONE_NEWUSER = 0x10000000
PR_SET_DUMPABLE = 4
PR_SET_PDEATHSIG = 1


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.argv[1:]:
        user, group = map(int, sys.argv[1:])
        with suppress(PermissionError):  # the root of one id keeps them
            os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    # A process that changed its user is closed to others, and its namespace with it.
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    if libc.unshare(CLONE_NEWUSER):
        sys.exit(os.strerror(ctypes.get_errno()))
    os.write(1, b"made\n")
    if sys.stdin.readline() != "mapped\n":
        return
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # it has changed its user again
    # No module can be imported here: the owner may not be allowed to read Python's folders.
    try:
        os.write(os.open("/proc/sys/user/max_user_namespaces", os.O_WRONLY), b"0")
    except OSError as error:
        sys.exit(str(error))
    os.write(1, b"ready\n")
    sys.stdin.read()


if __name__ == "__main__":
    main()
