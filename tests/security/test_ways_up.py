"""Rights that the kernel gives to programs that may ask: a program in a box may not."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from orchestrator.service.sandbox.base_provider import AgentBox
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.closure import PROGRAM
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.provider import BoxSpec, Command, ImageRoot

pytestmark = pytest.mark.anyio
Ask = Callable[[AgentBox, str], Awaitable[str]]

#: Each is a Python expression that is true, and raises nothing, for whom it succeeds.
WAYS = {
    "to be root": "os.setuid(0) is None",
    "to join a group": "os.setgroups([0]) is None",
    "to gain by a program of root's": "'NoNewPrivs:\\t1' not in open('/proc/self/status').read()",
    "to have any capability": "any(int(l.split()[1], 16) for l in open('/proc/self/status') if l[:3] == 'Cap')",
    "to map users": "put('/proc/self/uid_map', '0 0 1')",
    "to change the root": "os.chroot('/tmp') is None",
    "to mount": "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "to remount writable": "libc.mount(None, b'/usr', None, 0x20 | 0x1000, None) == 0",
    "to uncover what is mounted over": "libc.umount2(b'/proc', 2) == 0",
    "to leave by a namespace of the first process": "libc.setns(os.open('/proc/1/ns/mnt', 0), 0) == 0",
    "to make a namespace of users": "libc.unshare(0x10000000) == 0",
    "to make a namespace of mounts": "libc.unshare(0x00020000) == 0",
    "to make a namespace of networks": "libc.unshare(0x40000000) == 0",
    "to make a device": "os.mknod('/tmp/memory', 0o20666, os.makedev(1, 1)) is None",
    "to open memory": "os.open('/dev/mem', os.O_RDWR)",
    "to open the kernel's log": "os.open('/dev/kmsg', os.O_RDWR)",
    "to open a disk": "[os.open(d, 0) for d in glob.glob('/dev/[hsv]d[a-z]') + glob.glob('/dev/nvme*')]",
    "to open a machine of its own": "os.open('/dev/kvm', os.O_RDWR)",
    "to open a tunnel": "os.open('/dev/net/tun', os.O_RDWR)",
    "to have crashes handed to a program": "put('/proc/sys/kernel/core_pattern', '|/tmp/x')",
    "to load modules by another program": "put('/proc/sys/kernel/modprobe', '/tmp/x')",
    "to restart the machine": "put('/proc/sysrq-trigger', 's')",
    "to leave its control group": "[put(p, '0') for p in glob.glob('/sys/fs/cgroup/**/cgroup.procs', recursive=True)]",
    "to be spared when memory is short": "put('/proc/self/oom_score_adj', '-1000')",
    "to come before others": "os.setpriority(os.PRIO_PROCESS, 0, -20) is None",
    "to run in real time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)) is None",
    "to have more open files": "resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 30, 1 << 30)) is None",
    "to name the machine": "libc.sethostname(b'mine', 4) == 0",
    "to set the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time()) is None",
    "to trace the first process": "libc.ptrace(16, 1, None, None) == 0",
    "to read the first process": "os.open('/proc/1/mem', os.O_RDONLY)",
    "to read what the first process was given": "open('/proc/1/environ', 'rb').read()",
    "to answer page faults of the kernel": "os.uname().machine == 'x86_64' and libc.syscall(323, 0) >= 0",
    "to find files by their handles": "by_handle() >= 0",
    "to attach a new file system": "libc.syscall(430, b'tmpfs', 0) >= 0",
    "to copy a mount": "libc.syscall(428, -100, b'/', 1) >= 0",
    "to take an open file of the first process": "libc.syscall(438, libc.syscall(434, 1, 0), 0, 0) >= 0",
    "to enter the namespaces of the first process": "libc.syscall(308, libc.syscall(434, 1, 0), 0x30000000) == 0",
    "to see the files of the first process": "os.listdir('/proc/1/root') is not None",
    "to run a program in the kernel": "os.uname().machine == 'x86_64' and libc.syscall(321, 0, ARRAY, 72) >= 0",
    "to watch the kernel's counters": "os.uname().machine == 'x86_64' and libc.syscall(298, ANY, 0, -1, -1, 0) >= 0",
    "to watch a file system": "os.uname().machine == 'x86_64' and libc.syscall(300, 0, 0) >= 0",
    "to read the kernel's messages": "os.uname().machine == 'x86_64' and libc.syscall(103, 3, bytes(99), 99) >= 0",
    "to read the kernel's memory": "os.open('/proc/kcore', os.O_RDONLY)",
    "to mark files for the kernel alone": "os.setxattr('/tmp', 'trusted.overlay.opaque', b'y') is None",
    "to write a setting of its network": "put('/proc/sys/net/ipv4/ip_forward', '1')",
    "to allow itself namespaces": "put('/proc/sys/user/max_user_namespaces', '9')",
    "to read what passes on a wire": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "to send packets of its own making": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)",
}
#: Those that root of a box of an image has, as in a container: they reach no further than its own file system and
#: network.
GRANTED = {
    *("to be root", "to join a group", "to have any capability", "to change the root"),
    "to send packets of its own making",
}
HEAD = """
import ctypes, glob, os, resource, socket, time
libc = ctypes.CDLL(None, use_errno=True)
ARRAY = bytes([1, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1]) + bytes(100)  # of numbers
ANY = bytes([1, 0, 0, 0, 120]) + bytes(115)

def put(path, text):
    return os.write(os.open(path, os.O_WRONLY), text.encode())

def by_handle():
    class Handle(ctypes.Structure):
        _fields_ = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("bytes", ctypes.c_ubyte * 8)]
    root = Handle(8, 1, (2, 0, 0, 0, 0, 0, 0, 0))  # the first inode of a disk
    return libc.open_by_handle_at(os.open("/", 0), ctypes.byref(root), 0)

try:
    print("yes" if {way} else "no")
except (OSError, ValueError, PermissionError) as error:
    print("no", error)
"""


@pytest.fixture(scope="module")
async def box(local: BwrapProvider) -> AsyncIterator[AgentBox]:
    """One for all: none of them changes it."""
    box = await local.start(BoxSpec(id="ways-up"))
    yield box
    await box.stop()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_kernel_ways_to_more_rights_are_closed(box: AgentBox, tell: Ask, way: str) -> None:
    answer = await tell(box, HEAD.replace("{way}", way))
    assert answer.startswith("no"), answer


@pytest.fixture(scope="module")
async def image_box(local: BwrapProvider) -> AsyncIterator[AgentBox]:
    """Of an image without any file: all that runs in it is our Python."""
    if os.geteuid() != 0:
        pytest.skip("so far only root's services boot images")
    box = await local.start(BoxSpec(id="ways-up-image", image=ImageRoot(layers=())))
    yield box
    await box.stop()


@pytest.mark.parametrize("way", WAYS.keys())
async def test_root_of_an_image_has_the_ways_that_it_is_granted_and_no_other(image_box: AgentBox, way: str) -> None:
    command = Command(argv=(PROGRAM, "-c", HEAD.replace("{way}", WAYS[way])))
    answer = (await run(image_box, command, timeout=30)).output
    assert answer.startswith("yes" if way in GRANTED else "no"), answer
