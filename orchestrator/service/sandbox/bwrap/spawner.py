"""Starting sandboxes: the thread that does it, its private view of the file system, and the guard of half-started ones.

Its secret: facts about Linux threads and about bubblewrap. A sandbox dies with the *thread* that started it
(PR_SET_PDEATHSIG), so that thread must live as long as the service, which a pool's worker does not. And a thread may
have mounts of its own: as root, ours covers /sys with a few bind mounts, so that a sandbox started as a stranger finds
the state folder and the interpreter without the right to enter root's home above them. Passing open folders
(`--bind-fd`) does not help: bubblewrap resolves them to paths again. Copying everything to a public place would, and
makes it public. A thread also has keyrings of its own (keyrings(7)): ours leaves the one of the login that started the
service, which every child would inherit with the keys in it.

bubblewrap's second process waits for the first to set up its user, and asks to die with it only then. If the first is
killed before, the second waits for ever. So each sandbox is a process group until it has booted, and a small shell at
the end of a pipe from us knows which are booting: when the pipe ends, however we did, it ends those. Each group names
itself, before it becomes bubblewrap: we may be killed before we know its number, and the pipe does not end while a
process that will be bubblewrap holds it. It also makes itself the first to be killed when memory runs out
(`EXPENDABLE`).
"""

import asyncio
import ctypes
import errno
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final, TypeVar

from orchestrator.service.sandbox.boxagent import EXPENDABLE
from orchestrator.service.sandbox.bwrap.overlay import attach, clone_mount

T = TypeVar("T")

#: Numbers of the call keyctl(2), which the C library does not offer.
KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}
JOIN_SESSION_KEYRING = 1
CLONE_NEWNS = 0x20000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_SLAVE, MNT_DETACH = 2, 4, 4096, 16384, 1 << 19, 2
MOUNT_ROOT = "/sys"

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


@dataclass(slots=True)
class BindMount:
    """One bind mount of the private view."""

    path: str
    uses: int


class PrivateMounts:
    """Paths under which every user can reach given files and folders; in the calling thread, and as root, only."""

    def __init__(self) -> None:
        """Raises OSError when root may not mount here."""
        #: The path by which this process opens what is in the view.
        self.outside = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/root"
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._bound: dict[Path, BindMount] = {}
        self._count = 0
        self._check(self._libc.unshare(CLONE_NEWNS))
        self._mount("none", "/", None, MS_REC | MS_SLAVE)
        self._mount("gate", MOUNT_ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0711,size=1M")

    def admit(self, source: Path, clone: Callable[[], int] | None = None) -> str:
        """Bind `source` to a path that every user can reach, and return that path. Raises OSError.

        `clone` makes a mount of what is in another thread's view only.
        """
        mount = self._bound.get(source)
        if mount is None:
            self._count += 1
            mount = self._bound[source] = BindMount(f"{MOUNT_ROOT}/{self._count}", 0)
            try:
                if source.is_dir():
                    os.mkdir(mount.path)  # noqa: PTH102
                else:
                    os.close(os.open(mount.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                if clone is None:
                    self._mount(os.fspath(source), mount.path, None, MS_BIND | MS_REC)
                else:
                    opened = clone()
                    try:
                        attach(opened, mount.path)
                    finally:
                        os.close(opened)
            except OSError as error:
                del self._bound[source]
                raise OSError(error.errno, error.strerror, os.fspath(source)) from error
        mount.uses += 1
        return mount.path

    def dismiss(self, source: Path) -> None:
        mount = self._bound[source]
        mount.uses -= 1
        if mount.uses == 0:
            del self._bound[source]
            self._check(self._libc.umount2(mount.path.encode(), MNT_DETACH))
            place = Path(mount.path)
            place.rmdir() if place.is_dir() else place.unlink()

    def attach(self, mount: int, place: str | None = None) -> str:
        """Attach a mount that is open to a new folder, `place` or one of its own, and return that. Raises OSError."""
        if place is None:
            self._count += 1
            place = f"{MOUNT_ROOT}/{self._count}"
        os.mkdir(place)  # noqa: PTH102
        try:
            attach(mount, place)
        except OSError:
            os.rmdir(place)  # noqa: PTH106
            raise
        return place

    def open_device(self, device: Path) -> None:
        """Cover a device by one of the same number that every user may open. Raises OSError."""
        place = f"{MOUNT_ROOT}/{device.name}"
        os.mkdir(place)  # noqa: PTH102
        self._mount("devices", place, "tmpfs", MS_NOSUID, "mode=0711,size=64k")
        os.mknod(f"{place}/{device.name}", stat.S_IFCHR, device.stat().st_rdev)
        os.chmod(f"{place}/{device.name}", 0o666)  # noqa: PTH101, S103
        self._mount(f"{place}/{device.name}", os.fspath(device), None, MS_BIND)

    def detach(self, place: str) -> None:
        self._check(self._libc.umount2(place.encode(), MNT_DETACH))
        os.rmdir(place)  # noqa: PTH106

    def _mount(self, source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
        texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
        self._check(self._libc.mount(*texts, ctypes.c_ulong(flags), options.encode()))

    @staticmethod
    def _check(result: int) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


class Spawner:
    """Runs functions one after another in its thread, which lives until `close`.

    It admits what is in the private view of the spawner `roots`, too.
    """

    def __init__(self, roots: "Spawner | None" = None) -> None:
        self._roots = roots
        self._thread = ThreadPoolExecutor(1, "devbox-spawner", initializer=_leave_keyring)
        self._mounts: PrivateMounts | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in the thread and return its result; shield this where the result must not be lost."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def run_blocking(self, function: Callable[[], T]) -> T:
        """Run a function in the thread and return its result, for a caller in another thread."""
        return self._thread.submit(function).result()

    def take_private_mounts(self) -> None:
        """Take the private view. Call by `run`, as root. Raises OSError."""
        self._mounts = PrivateMounts()

    def admit(self, source: Path) -> str:
        """Return the path under which a sandbox can open the host's `source`. Call by `run`. Raises OSError."""
        if self._mounts is None:
            return os.fspath(source)
        if self._roots is None or not self._roots.holds(source):
            return self._mounts.admit(source)
        return self._mounts.admit(source, partial(self._roots.run_blocking, partial(clone_mount, source)))

    def dismiss(self, source: Path) -> None:
        if self._mounts is not None:
            self._mounts.dismiss(source)

    def attach(self, mount: int, place: str | None = None) -> str:
        """Return the path at which the sandboxes, but no program of the host, find a mount. Call by `run`.

        It is the new folder `place`, or one of its own. Raises OSError.
        """
        if self._mounts is None:
            raise PermissionError(errno.EPERM, "this machine permits root no mounts: start as an ordinary user")
        return self._mounts.attach(mount, place)

    def detach(self, place: str) -> None:
        """Take down what `attach` returned. Call by `run`. Raises OSError."""
        if self._mounts is not None:
            self._mounts.detach(place)

    def open_device(self, device: Path) -> None:
        """Let the programs that are started, whoever's they are, open a device. Call by `run`. Raises OSError."""
        if self._mounts is not None:
            self._mounts.open_device(device)

    def holds(self, path: Path) -> bool:
        """Tell whether a path is one of `outside`, or below it."""
        return self._mounts is not None and path.is_relative_to(self._mounts.outside)

    def outside(self, place: str) -> Path:
        """Return the path by which this process opens what is at `place`, a path from `attach`."""
        assert self._mounts is not None
        return Path(f"{self._mounts.outside}{place}")

    def close(self) -> None:
        """End the thread; every sandbox that is left dies with it. Blocking."""
        self._thread.shutdown()


def _leave_keyring() -> None:
    """Join a new, empty session keyring; a kernel without keys, or a container that forbids the call, has none."""
    number = KEYCTL.get(os.uname().machine)
    if number is not None:
        ctypes.CDLL(None).syscall(ctypes.c_long(number), ctypes.c_int(JOIN_SESSION_KEYRING), None)


class Guard:
    """Starts programs, and watches their process groups until `forget`.

    Its shell waits at the end of a pipe from us, and when that ends it ends the groups that are still watched.
    """

    def __init__(self) -> None:
        self._changes_users = os.geteuid() == 0 and _try_another_user()
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
        if user is not None and self._changes_users:  # subprocess copies all of our memory for that: 5 to 10 ms
            arguments, user = (*_as_user(user), *arguments), None
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


def _as_user(user: int) -> tuple[str, ...]:
    """Return words of the GNU system that run the words after them as a user of the host; no names are looked up."""
    return ("/usr/sbin/chroot", f"--userspec=+{user}:+{user}", "--groups=", "/")


def _try_another_user() -> bool:
    """Tell whether this machine has that program. Blocking."""
    words = (*_as_user(1), "/bin/sh", "-c", ":")
    try:
        return subprocess.run(words, capture_output=True, check=False, env={}).returncode == 0
    except OSError:
        return False
