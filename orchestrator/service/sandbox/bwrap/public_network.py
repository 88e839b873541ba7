"""The public internet for a box: slirp4netns, which answers for it outside the box.

Its secret: what keeps a box from this machine and its neighbours. slirp4netns connects wherever this machine can, all
but its loopback. So each packet from the box first passes a filter of ours, which drops it if its own head names what
is not public, whichever way it came: from a raw socket, by naming the device, by multicast. The filter belongs to the
device, whose open file only slirp4netns has; it is borrowed from there. Routes are refused besides, so that a program
hears at once that there is no way, and need not wait for an answer.

slirp4netns runs as the box's user of the host, in a sandbox of its own with nothing of the host's files but /etc and
/run, and counts for the box's limits. It ends when the service closes a pipe, however that came about.
"""

import asyncio
import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final, Self

import anyio
import anyio.to_thread

from orchestrator.service.sandbox.bwrap.bwrap_args import JUMP_EQUAL, LOAD, PUBLIC_RESOLVER, RETURN
from orchestrator.service.sandbox.bwrap.spawner import Guard, Spawner
from orchestrator.service.sandbox.processes import ChildProcess
from orchestrator.service.sandbox.provider import BoxStartFailed

PROGRAM: Final = "slirp4netns"
TUN: Final = Path("/dev/net/tun")
#: The program's own network in each box, and the resolver there, which asks the machine's.
VIRTUAL: Final = IPv4Network("10.0.2.0/24")
RESOLVER: Final = "10.0.2.3"
_OPTIONS: Final = ("--configure", "--mtu=65520", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp")
_DEVICE: Final = "tap0"
_MAKER: Final = Path(__file__).with_name("network_maker.py")
_LIMIT_S: Final = 30.0
#: See ioctl_nsfs(2).
_NS_GET_USERNS: Final = 0xB701
#: The number of the call pidfd_getfd(2), the same for all machines.
_PIDFD_GETFD: Final = 438
#: See <linux/if_tun.h>: the filter is for what the box sends.
_TUNATTACHFILTER: Final = 0x401054D5
_LOAD_HALF, _AND, _PASS, _DROP = 0x28, 0x54, 0xFFFFFFFF, 0
#: Of an Ethernet frame: the place of its kind, two kinds, and the place of an IPv4 packet's destination.
_KIND, _ARP, _IP, _DESTINATION = 12, 0x0806, 0x0800, 30


class Link:
    """The connection of one box, which lasts as long as its process runs."""

    def __init__(self, popen: subprocess.Popen[bytes], hold: int, lost: Callable[[], object]) -> None:
        """Own the open file `hold`, which ends the process when it is closed; `lost` is called if that ends first."""
        self.pid = popen.pid
        self._hold = hold
        self._lost = lost
        self._child = ChildProcess(popen, self._on_end)
        self.gone = self._child.gone

    def close(self) -> None:
        """End it, without waiting."""
        if self._hold >= 0:
            hold, self._hold = self._hold, -1
            os.close(hold)
            self._child.kill()

    async def end(self) -> None:
        """End it, and wait until it is gone."""
        self.close()
        with anyio.CancelScope(shield=True):
            await self.gone.wait()

    def _on_end(self, _status: int) -> None:
        if self._hold >= 0:
            self.close()
            self._lost()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicNetworks:
    """Connects boxes by the program at the path `program`."""

    program: str
    spawner: Spawner
    guard: Guard

    @classmethod
    async def find(cls, spawner: Spawner, guard: Guard, shared: Path) -> Self | None:
        """Return what connects boxes, not tried yet; None if this machine lacks the program.

        `shared` is the folder of what every box reads. Raises OSError.
        """
        program = shutil.which(PROGRAM, path="/usr/local/bin:/usr/bin:/bin")
        if program is None:
            return None
        settings = shared / PUBLIC_RESOLVER
        settings.write_text(f"nameserver {RESOLVER}\n")
        settings.chmod(0o644)
        with suppress(OSError):  # the program reports it
            await spawner.run(partial(spawner.open_device, TUN))
        return cls(program=program, spawner=spawner, guard=guard)

    async def connect(
        self, root: int, user: int | None, lost: Callable[[], object], unreachable: Iterable[IPv4Network]
    ) -> Link:
        """Connect the box whose process 1 is the host's `root`, and which runs as the host's `user`.

        It finds nothing of the networks `unreachable`. `lost` is called when the connection ends before it is closed.
        Raises BoxStartFailed; then nothing is left.
        """
        try:
            closed = [each for each in unreachable if not each.subnet_of(VIRTUAL)]
            with anyio.fail_after(_LIMIT_S):
                async with _routes_refused(root, user, closed) as inside:
                    link = await self._start(inside, user, lost)
            try:
                _filter(link.pid, packet_filter(closed))
            except OSError:
                await link.end()
                raise
        except OSError as error:
            why = str(error) or f"it was not ready after {_LIMIT_S:g} s"
            raise BoxStartFailed(f"{PROGRAM} cannot connect a devbox to the internet: {why}") from None
        return link

    async def _start(self, inside: int, user: int | None, lost: Callable[[], object]) -> Link:
        """Start the program for the namespaces of the process `inside`. Raises OSError."""
        (ready, told), (end, hold) = os.pipe(), os.pipe()
        options = (*_OPTIONS, f"--exit-fd={end}", f"--ready-fd={told}")
        words = [self.program, *options, str(inside), _DEVICE]
        with tempfile.TemporaryFile() as errors, ExitStack() as stack:
            stack.callback(os.close, ready)
            start = partial(self.guard.start, words, user=user, fds=(end, told), errors=errors)
            try:
                with anyio.CancelScope(shield=True):
                    link = Link(await self.spawner.run(start), hold, lost)
            except OSError:
                os.close(hold)
                raise
            finally:
                os.close(end)
                os.close(told)
            is_ready = False
            try:
                await anyio.wait_readable(ready)
                is_ready = os.read(ready, 1) != b""
            finally:
                self.guard.forget(link.pid)
                if not is_ready:
                    await link.end()
            if not is_ready:
                errors.seek(0)
                raise OSError("; ".join(errors.read(4096).decode(errors="replace").split("\n")).rstrip("; "))
            return link


def packet_filter(closed: Iterable[IPv4Network]) -> bytes:
    """Return a filter of Ethernet frames (classic BPF) for ARP, and IPv4 to VIRTUAL and to what is not `closed`."""
    code = [(_LOAD_HALF, 0, 0, _KIND), (JUMP_EQUAL, 0, 1, _ARP), (RETURN, 0, 0, _PASS)]
    code += [(JUMP_EQUAL, 1, 0, _IP), (RETURN, 0, 0, _DROP)]
    for network, verdict in ((VIRTUAL, _PASS), *((each, _DROP) for each in closed)):
        code += [(LOAD, 0, 0, _DESTINATION), (_AND, 0, 0, int(network.netmask))]
        code += [(JUMP_EQUAL, 0, 1, int(network.network_address)), (RETURN, 0, 0, verdict)]
    code.append((RETURN, 0, 0, _PASS))
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def _filter(pid: int, code: bytes) -> None:
    """Attach a filter to the device that a process has open. Raises OSError."""
    device, files = TUN.stat().st_rdev, Path(f"/proc/{pid}/fd")
    held = next((int(each.name) for each in files.iterdir() if each.stat().st_rdev == device), -1)
    process = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        tap = libc.syscall(ctypes.c_long(_PIDFD_GETFD), process, held, 0)
        why = ctypes.get_errno()
    finally:
        os.close(process)
    if tap < 0:
        raise OSError(f"its device cannot be borrowed for a filter: {os.strerror(why)}")
    try:
        program = ctypes.create_string_buffer(code, len(code))
        fcntl.ioctl(tap, _TUNATTACHFILTER, struct.pack("@HP", len(code) // 8, ctypes.addressof(program)))
    finally:
        os.close(tap)


@asynccontextmanager
async def _routes_refused(root: int, user: int | None, closed: Iterable[IPv4Network]) -> AsyncIterator[int]:
    """Refuse routes to networks; yields a process in the box's namespaces, which `user` can follow. Raises OSError."""
    with ExitStack() as opened:
        network = os.open(f"/proc/{root}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, network)
        owner = fcntl.ioctl(network, _NS_GET_USERNS)
        opened.callback(os.close, owner)
        given = ("" if user is None else str(user), str(owner), str(network), *map(str, closed))
        maker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", os.fspath(_MAKER), *given),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(owner, network),
        )
    assert maker.stdin is not None
    assert maker.stdout is not None
    assert maker.stderr is not None
    try:
        if await maker.stdout.readline() != b"ready\n":
            raise OSError((await maker.stderr.read()).decode(errors="replace").strip())
        yield maker.pid
    finally:
        with anyio.CancelScope(shield=True):
            maker.stdin.close()
            await maker.wait()
