"""The view from inside a devbox, as arguments for bubblewrap.

Its secret: the hardening, each part tested by name. No capability, no way to get one (bounding set empty, no new
privileges, no user namespaces inside), own process tree, own network of loopback alone unless asked, no environment, no
file of the host but the read-only system, and of that no folder that must stay hidden: this program and its benchmarks
may be installed in it. bubblewrap's own / and /dev are writable memory; they are sealed at the end. The exec agent is
process 1 of its box: the kernel lets no process inside kill or stop that one, so a box that ends by a signal was ended
from outside.

The filter of system calls (seccomp(2), classic BPF) covers what namespaces do not contain. A socket of the family VSOCK
talks to the machine's hypervisor and from there to others, whatever the network namespace says; keys are found by
number across all boxes, and a login's keyring is inherited; io_uring opens sockets without the call that is checked
here. Everything else that Linux offers to a process without capabilities is allowed: debuggers trace, builds fork. The
kernel may run programs of another instruction set beside its own, with other numbers for the same calls, so each known
set is judged by its own table.

A box with one user is told that every change of an owner or of a user is done, and that devices are made: package
managers insist on that, and nearly always nothing depends on it. The filter cannot keep up the lie: nothing is changed.

Pure; all paths passed in are names that bubblewrap itself can open.
"""

import os
import stat
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.service.sandbox.bwrap.shared_files import HOSTNAME, UID, bound
from orchestrator.service.sandbox.closure import AGENT_CODE, AGENT_PROGRAM, IN_BOX
from orchestrator.service.sandbox.provider import BoxNetwork

AGENT_PLACE = "/run/devbox"
#: The file that names a box's resolver; and the one of boxes on the internet, in the folder of what every box reads.
RESOLVER, PUBLIC_RESOLVER = "/etc/resolv.conf", "resolv.conf"
SHARED_MEMORY_BYTES = 64 << 20
#: Links or folders in the host's root that belong to the system besides /usr.
ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
#: What a container engine grants to the root of a container.
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP"),
    *("NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
)
#: UNIX, INET, INET6, NETLINK; any other family is answered as by a kernel that was built without it.
FAMILIES = (1, 2, 10, 16)
ENOSYS, EAFNOSUPPORT = 38, 97
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LOAD, JUMP_EQUAL, JUMP_FROM, RETURN, AND = 0x20, 0x15, 0x35, 0x06, 0x54
#: Offsets in struct seccomp_data: number of the call, instruction set, first argument; bytes of an argument.
NUMBER, MACHINE, ARGUMENT, ARGUMENT_BYTES = 0, 4, 16, 8
IO_URING_SETUP = 425
#: On x86_64, numbers from here on are a third set of the same calls.
X32 = 0x40000000


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPython:
    """The Python that runs this service; `prefix` is the folder that it needs outside /usr, if there is one."""

    program: str
    prefix: Path | None

    @classmethod
    def ours(cls) -> "HostPython":
        prefix = Path(sys.base_prefix).resolve()
        program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        in_usr = prefix == Path("/usr") or Path("/usr") in prefix.parents
        return cls(program=os.fspath(program), prefix=None if in_usr else prefix)

    @property
    def path(self) -> str:
        folders = ["/usr/local/bin", "/usr/bin", "/bin"]
        programs = os.path.dirname(self.program)  # noqa: PTH120
        return ":".join(folders if programs in folders else [*folders, programs])


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """`source`, as bubblewrap can open it, at `target` in the box."""

    source: str
    target: str
    writable: bool = False


def isolation() -> list[str]:
    """The namespaces and privileges, without the network's; the trial of the machine uses them too."""
    return [
        *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--disable-userns", "--die-with-parent", "--new-session", "--as-pid-1"),
        *("--cap-drop", "ALL", "--clearenv", "--uid", str(UID), "--gid", str(UID), "--hostname", HOSTNAME),
    ]


def networking(network: BoxNetwork, shared: str) -> list[str]:
    """The network, after all that covers /etc; `shared` is the folder of what every box of the machine reads."""
    match network:
        case BoxNetwork.NONE:
            return ["--unshare-net"]
        case BoxNetwork.PUBLIC | BoxNetwork.NEIGHBOURS:
            return ["--unshare-net", "--ro-bind", f"{shared}/{PUBLIC_RESOLVER}", RESOLVER]
        case BoxNetwork.HOST:
            return ["--ro-bind-try", RESOLVER, RESOLVER]


def system() -> list[str]:
    """The host's programs and libraries, read-only."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ROOT_LINKS:
        place = Path("/", name)
        if place.is_symlink():
            arguments += ["--symlink", os.readlink(place), os.fspath(place)]  # noqa: PTH115
        elif place.is_dir():
            arguments += ["--ro-bind", os.fspath(place), os.fspath(place)]
    return arguments


def veils(hidden: Iterable[Path], binds: Mapping[str, Path], prefix: Path | None) -> Iterator[str]:
    """Places in the box where an empty folder must cover one of the host's folders `hidden`.

    `binds` are the box's binds as {target: source}, `prefix` is HostPython's.
    """
    own = (Path("/usr"), *(Path("/", name) for name in ROOT_LINKS if not Path("/", name).is_symlink()))
    system = {os.fspath(place): place for place in (*own, *(() if prefix is None else (prefix,)))}
    return bind_veils(hidden, {**system, **binds})


def bind_veils(hidden: Iterable[Path], binds: Mapping[str, Path]) -> Iterator[str]:
    """Places where an empty folder must cover one of the host's folders `hidden`, given the binds {target: source}."""
    for folder in hidden:
        for target, source in binds.items():
            if source.resolve() in folder.parents and folder.is_dir():
                yield os.fspath(Path(target) / folder.relative_to(source.resolve()))


def box_arguments(*, network: BoxNetwork, shared: str, mounts: Iterable[Mount]) -> list[str]:
    """All arguments for one box, up to the command; `shared` is the folder that `shared_files.furnish` made."""
    arguments = isolation()
    for name in ("/home", "/run"):  # the mounts below them would create them closed
        arguments += ["--perms", "0755", "--dir", name]
    arguments += [*system(), "--proc", "/proc", "--dev", "/dev"]
    arguments += ["--perms", "1777", "--size", str(SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm"]  # noqa: S108
    arguments += [
        "--remount-ro",
        "/dev",
        "--ro-bind",
        f"{shared}/etc",
        "/etc",
        "--ro-bind",
        f"{shared}/agent",
        AGENT_PLACE,
    ]
    for name in bound():
        arguments += ["--ro-bind", f"/etc/{name}", f"/etc/{name}"]
    arguments += networking(network, shared)
    for mount in mounts:
        arguments += ["--bind" if mount.writable else "--ro-bind", mount.source, mount.target]
    return [*arguments, "--remount-ro", "/", "--chdir", "/"]


def image_arguments(
    *,
    network: BoxNetwork,
    namespace: int,
    root: str,
    shared: str,
    closure: str,
    mounts: Iterable[Mount],
    is_read_only: bool,
) -> list[str]:
    """All arguments for one box of an image, whose file system is mounted at `root`, up to the command.

    The user namespace `namespace` admits no further one in it, so `--disable-userns` is not needed. `closure` is the
    path of the box's Python.
    """
    bind = "--ro-bind" if is_read_only else "--bind"
    arguments = [
        *("--userns", str(namespace), "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--uid", "0", "--gid", "0"),
        *("--cap-drop", "ALL", *(word for name in CAPABILITIES for word in ("--cap-add", f"CAP_{name}"))),
        *("--hostname", HOSTNAME, bind, root, "/", "--proc", "/proc", "--dev", "/dev"),
        *("--perms", "1777", "--size", str(SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm"),  # noqa: S108
        *("--remount-ro", "/dev", "--ro-bind", closure, IN_BOX),
        *networking(network, shared),
    ]
    for mount in mounts:
        arguments += ["--bind" if mount.writable else "--ro-bind", mount.source, mount.target]
    return [*arguments, "--chdir", "/"]


def agent_command(control: int, limits: str) -> Sequence[str]:
    return (f"{AGENT_PLACE}/agent", "-I", "-S", f"{AGENT_PLACE}/agent.pyc", str(control), limits)


def image_agent_command(control: int, limits: str) -> Sequence[str]:
    return (AGENT_PROGRAM, "-I", "-S", AGENT_CODE, str(control), limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyscallTable:
    """One instruction set: the kernel's number for it, the number of `socket`, and the calls that fail with ENOSYS.

    `owners` are the calls that change an owner, a user, a group or capabilities; `nodes` are mknodat and maybe mknod.
    `beyond` is the first number that none of its calls has.
    """

    machine: int
    socket: int
    missing: tuple[int, ...]
    owners: tuple[int, ...]
    nodes: tuple[int, ...]
    beyond: int = 0xFFFFFFFF


_OWNERS_64: Final = (92, 93, 94, 105, 106, 113, 114, 116, 117, 119, 122, 123, 126, 260)
_OWNERS_GENERIC: Final = (54, 55, 91, 143, 144, 145, 146, 147, 149, 151, 152, 159)
_OWNERS_32: Final = (
    *(16, 23, 46, 70, 71, 81, 95, 138, 139, 164, 170, 182, 185, 198, 203, 204, 206, 207, 208, 210),
    *(212, 213, 214, 215, 216),
)
#: Missing are add_key, request_key, keyctl; on the old sets also socketcall, which hides its arguments.
TABLES = (
    SyscallTable(  # x86_64
        machine=0xC000003E,
        socket=41,
        missing=(248, 249, 250, IO_URING_SETUP),
        owners=_OWNERS_64,
        nodes=(259, 133),
        beyond=X32,
    ),
    SyscallTable(  # aarch64
        machine=0xC00000B7,
        socket=198,
        missing=(217, 218, 219, IO_URING_SETUP),
        owners=_OWNERS_GENERIC,
        nodes=(33,),
    ),
    SyscallTable(  # riscv64
        machine=0xC00000F3,
        socket=198,
        missing=(217, 218, 219, IO_URING_SETUP),
        owners=_OWNERS_GENERIC,
        nodes=(33,),
    ),
    SyscallTable(  # i386
        machine=0x40000003,
        socket=359,
        missing=(286, 287, 288, 102, IO_URING_SETUP),
        owners=(*_OWNERS_32, 298),
        nodes=(297, 14),
    ),
    SyscallTable(  # arm
        machine=0x40000028,
        socket=281,
        missing=(309, 310, 311, 102, IO_URING_SETUP),
        owners=(*_OWNERS_32, 325),
        nodes=(324, 14),
    ),
)

BpfInstruction = tuple[int, int, int, int]
"""Operation, instructions to skip if it holds, instructions to skip if it does not, operand."""


def seccomp_filter(*, has_one_user: bool = False) -> bytes:
    """Return the filter in the form of bubblewrap's `--seccomp`. Instruction sets without a table are not filtered."""
    refuse: BpfInstruction = (RETURN, 0, 0, ERRNO | ENOSYS)
    pretend: BpfInstruction = (RETURN, 0, 0, ERRNO)
    code: list[BpfInstruction] = [(LOAD, 0, 0, MACHINE)]
    for table in TABLES:
        calls: list[BpfInstruction] = [(LOAD, 0, 0, NUMBER), (JUMP_FROM, 0, 1, table.beyond), refuse]
        for number in table.missing:
            calls += [(JUMP_EQUAL, 0, 1, number), refuse]
        for number in table.owners if has_one_user else ():
            calls += [(JUMP_EQUAL, 0, 1, number), pretend]
        for number, mode in zip(table.nodes if has_one_user else (), (2, 1), strict=False):
            calls += [(JUMP_EQUAL, 0, 6, number), (LOAD, 0, 0, ARGUMENT + mode * ARGUMENT_BYTES)]
            calls += [(AND, 0, 0, 0o170000), (JUMP_EQUAL, 1, 0, stat.S_IFCHR), (JUMP_EQUAL, 0, 1, stat.S_IFBLK)]
            calls += [pretend, (RETURN, 0, 0, ALLOW)]
        calls += [(JUMP_EQUAL, 0, len(FAMILIES) + 2, table.socket), (LOAD, 0, 0, ARGUMENT)]
        calls += [(JUMP_EQUAL, len(FAMILIES) - place, 0, family) for place, family in enumerate(FAMILIES)]
        calls += [(RETURN, 0, 0, ERRNO | EAFNOSUPPORT), (RETURN, 0, 0, ALLOW)]
        code += [(JUMP_EQUAL, 0, len(calls), table.machine), *calls]
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *each) for each in code)
