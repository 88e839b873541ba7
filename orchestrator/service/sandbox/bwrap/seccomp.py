"""System calls that no box may make, as a program for the kernel (seccomp(2), classic BPF).

Its secret: what namespaces do not contain. A socket of the family VSOCK talks to the machine's hypervisor and from
there to others, whatever the network namespace says; keys are found by number across all boxes, and a login's keyring
is inherited; io_uring opens sockets without the call that is looked at here. Everything else that Linux offers to a
process without capabilities is left alone: debuggers trace, builds fork. The kernel may run programs of another
instruction set beside its own, with other numbers for the same calls, so each set that is known is judged by its own
table.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

#: UNIX, INET, INET6, NETLINK; any other family is answered as by a kernel that was built without it.
FAMILIES = (1, 2, 10, 16)
ENOSYS, EAFNOSUPPORT = 38, 97
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LOAD, JUMP_EQUAL, JUMP_FROM, RETURN = 0x20, 0x15, 0x35, 0x06
#: Where the kernel puts what is looked at (struct seccomp_data): number of the call, instruction set, first argument.
NUMBER, MACHINE, ARGUMENT = 0, 4, 16
IO_URING_SETUP = 425
#: On x86_64, numbers from here on are a third set of the same calls.
X32 = 0x40000000


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One instruction set: what the kernel calls it, its number of `socket`, and the calls that do not exist here.

    `beyond` is the first number that none of its calls has.
    """

    machine: int
    socket: int
    missing: tuple[int, ...]
    beyond: int = 0xFFFFFFFF


#: add_key, request_key, keyctl; on the old sets also socketcall, which hides its arguments.
TABLES = (
    Table(machine=0xC000003E, socket=41, missing=(248, 249, 250, IO_URING_SETUP), beyond=X32),  # x86_64
    Table(machine=0xC00000B7, socket=198, missing=(217, 218, 219, IO_URING_SETUP)),  # aarch64
    Table(machine=0xC00000F3, socket=198, missing=(217, 218, 219, IO_URING_SETUP)),  # riscv64
    Table(machine=0x40000003, socket=359, missing=(286, 287, 288, 102, IO_URING_SETUP)),  # i386
    Table(machine=0x40000028, socket=281, missing=(309, 310, 311, 102, IO_URING_SETUP)),  # arm
)

Instruction = tuple[int, int, int, int]
"""Operation, how many to skip if it holds, how many if it does not, operand."""


def program() -> bytes:
    """The filter as bubblewrap's `--seccomp` reads it. Instruction sets without a table are not filtered."""
    code: list[Instruction] = [(LOAD, 0, 0, MACHINE)]
    for table in TABLES:
        judged = list(_judge(table))
        code += [(JUMP_EQUAL, 0, len(judged), table.machine), *judged]
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def _judge(table: Table) -> Iterator[Instruction]:
    yield LOAD, 0, 0, NUMBER
    yield JUMP_FROM, 0, 1, table.beyond
    yield RETURN, 0, 0, ERRNO | ENOSYS
    for number in table.missing:
        yield JUMP_EQUAL, 0, 1, number
        yield RETURN, 0, 0, ERRNO | ENOSYS
    yield JUMP_EQUAL, 0, len(FAMILIES) + 2, table.socket
    yield LOAD, 0, 0, ARGUMENT
    for left, family in zip(range(len(FAMILIES), 0, -1), FAMILIES, strict=True):
        yield JUMP_EQUAL, left, 0, family
    yield RETURN, 0, 0, ERRNO | EAFNOSUPPORT
    yield RETURN, 0, 0, ALLOW
