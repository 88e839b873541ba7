"""Run as a program, with the network's owner if that is another user: refuses routes in it, and holds it open.

It enters the namespaces in its arguments, makes the networks in its arguments unreachable, says "ready", and ends with
its standard input. Until then other programs can follow it there. Standard library only, and little of that, for each
box pays for it.
"""

import _socket as socket
import ctypes
import fcntl
import os
import struct
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_DUMPABLE = 4
SIOCADDRT = 0x890B
RTF_UP, RTF_REJECT = 0x0001, 0x0200
#: struct rtentry of <linux/route.h>: padding, destination, gateway, mask, flags, the rest; struct sockaddr_in in it.
ROUTE, ADDRESS = "@L16s16s16sHhLPhPLLH", "=HH4s8x"


def main() -> None:
    user, owner, network, *closed = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if user:
        os.setgroups([])
        os.setresgid(int(user), int(user), int(user))
        os.setresuid(int(user), int(user), int(user))
    for fd, kind in ((owner, CLONE_NEWUSER), (network, CLONE_NEWNET)):
        if libc.setns(int(fd), kind):
            sys.exit(f"its network cannot be entered: {os.strerror(ctypes.get_errno())}")
    # A process that changed its user is closed to others, and its namespaces with it.
    libc.prctl(PR_SET_DUMPABLE, ctypes.c_ulong(1), 0, 0, 0)

    any_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for text in closed:
        address, _, length = text.partition("/")
        mask = (0xFFFFFFFF << 32 - int(length) & 0xFFFFFFFF).to_bytes(4, "big")
        places = (socket.inet_aton(address), bytes(4), mask)
        parts = (struct.pack(ADDRESS, socket.AF_INET, 0, place) for place in places)
        fcntl.ioctl(any_socket.fileno(), SIOCADDRT, struct.pack(ROUTE, 0, *parts, RTF_UP | RTF_REJECT, *[0] * 8))
    os.write(1, b"ready\n")
    sys.stdin.read()


if __name__ == "__main__":
    main()
