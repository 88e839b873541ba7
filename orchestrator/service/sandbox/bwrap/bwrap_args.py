"""The view from inside a devbox, as arguments for bubblewrap.

Its secret: the hardening, each part tested by name. No capability, no way to get one (bounding set empty, no new
privileges, no user namespaces inside), own process tree, own network of loopback alone unless asked, no environment, no
file of the host but the read-only system, and of that no folder that must stay hidden: this program and its benchmarks
may be installed in it. bubblewrap's own / and /dev are writable memory; they are sealed at the end. The exec agent is
process 1 of its box: the kernel lets no process inside kill or stop that one, so a box that ends by a signal was ended
from outside.
Pure; all paths passed in are names that bubblewrap itself can open.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.service.sandbox.bwrap.shared_files import HOSTNAME, UID, bound

AGENT_PLACE = "/run/devbox"
SHARED_MEMORY_BYTES = 64 << 20
#: Links or folders in the host's root that belong to the system besides /usr.
ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


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


def isolation(*, network: bool) -> list[str]:
    """The namespaces and privileges; the trial of the machine uses them too."""
    return [
        *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *(() if network else ("--unshare-net",)),
        *("--disable-userns", "--die-with-parent", "--new-session", "--as-pid-1"),
        *("--cap-drop", "ALL", "--clearenv", "--uid", str(UID), "--gid", str(UID), "--hostname", HOSTNAME),
    ]


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
    shown = [(place, place) for place in (*own, *(() if prefix is None else (prefix,)))]
    shown += [(source.resolve(), Path(target)) for target, source in binds.items()]
    for folder in hidden:
        for source, target in shown:
            if source in folder.parents and folder.is_dir():
                yield os.fspath(target / folder.relative_to(source))


def box_arguments(*, network: bool, shared: str, mounts: Iterable[Mount], info: int) -> list[str]:
    """All arguments for one box, up to the command; `shared` is the folder that `shared_files.furnish` made."""
    arguments = isolation(network=network)
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
    if network:
        arguments += ["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]
    for mount in mounts:
        arguments += ["--bind" if mount.writable else "--ro-bind", mount.source, mount.target]
    return [*arguments, "--remount-ro", "/", "--info-fd", str(info), "--chdir", "/"]


def agent_command(control: int, limits: str) -> Sequence[str]:
    return (f"{AGENT_PLACE}/agent", "-I", "-S", f"{AGENT_PLACE}/agent.pyc", str(control), limits)
