"""System calls that no box may make, as a program for the kernel (seccomp(2), classic BPF).

Its secret: resources that namespaces do not contain. A socket of the family VSOCK talks to the machine's hypervisor and
from there to others, whatever the network namespace says; keys are found by number across all boxes, and a login's
keyring is inherited; io_uring opens sockets without the call that is checked here. Everything else that Linux offers to
a process without capabilities is allowed: debuggers trace, builds fork. The kernel may run programs of another
instruction set beside its own, with other numbers for the same calls, so each known set is judged by its own table.
"""

import struct
from dataclasses import dataclass

#: UNIX, INET, INET6, NETLINK; any other family is answered as by a kernel that was built without it.
FAMILIES = (1, 2, 10, 16)
ENOSYS, EAFNOSUPPORT = 38, 97
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LOAD, JUMP_EQUAL, JUMP_FROM, RETURN = 0x20, 0x15, 0x35, 0x06
#: Offsets in struct seccomp_data: number of the call, instruction set, first argument.
NUMBER, MACHINE, ARGUMENT = 0, 4, 16
IO_URING_SETUP = 425
#: On x86_64, numbers from here on are a third set of the same calls.
X32 = 0x40000000


@dataclass(frozen=True, slots=True, kw_only=True)
class SyscallTable:
    """One instruction set: the kernel's number for it, the number of `socket`, and the calls that fail with ENOSYS.

    `beyond` is the first number that none of its calls has.
    """

    machine: int
    socket: int
    missing: tuple[int, ...]
    beyond: int = 0xFFFFFFFF


#: add_key, request_key, keyctl; on the old sets also socketcall, which hides its arguments.
TABLES = (
    SyscallTable(machine=0xC000003E, socket=41, missing=(248, 249, 250, IO_URING_SETUP), beyond=X32),  # x86_64
    SyscallTable(machine=0xC00000B7, socket=198, missing=(217, 218, 219, IO_URING_SETUP)),  # aarch64
    SyscallTable(machine=0xC00000F3, socket=198, missing=(217, 218, 219, IO_URING_SETUP)),  # riscv64
    SyscallTable(machine=0x40000003, socket=359, missing=(286, 287, 288, 102, IO_URING_SETUP)),  # i386
    SyscallTable(machine=0x40000028, socket=281, missing=(309, 310, 311, 102, IO_URING_SETUP)),  # arm
)

BpfInstruction = tuple[int, int, int, int]
"""Operation, instructions to skip if it holds, instructions to skip if it does not, operand."""


def program() -> bytes:
    """The filter in the form of bubblewrap's `--seccomp`. Instruction sets without a table are not filtered."""
    refuse: BpfInstruction = (RETURN, 0, 0, ERRNO | ENOSYS)
    code: list[BpfInstruction] = [(LOAD, 0, 0, MACHINE)]
    for table in TABLES:
        calls: list[BpfInstruction] = [(LOAD, 0, 0, NUMBER), (JUMP_FROM, 0, 1, table.beyond), refuse]
        for number in table.missing:
            calls += [(JUMP_EQUAL, 0, 1, number), refuse]
        calls += [(JUMP_EQUAL, 0, len(FAMILIES) + 2, table.socket), (LOAD, 0, 0, ARGUMENT)]
        calls += [(JUMP_EQUAL, len(FAMILIES) - place, 0, family) for place, family in enumerate(FAMILIES)]
        calls += [(RETURN, 0, 0, ERRNO | EAFNOSUPPORT), (RETURN, 0, 0, ALLOW)]
        code += [(JUMP_EQUAL, 0, len(calls), table.machine), *calls]
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *each) for each in code)
