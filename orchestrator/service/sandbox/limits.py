"""Limits of boxes: the ones that this machine can enforce, and setting them.

Its secret: control groups in both their versions. Memory and CPU need one; it is made below the service's own group
(beside it, where version 2 forbids that), so that a bound on the service bounds its boxes. A limit counts as enforced
only if the kernel took the number *and* the box's processes are in the group. Without control groups a box has neither:
RLIMIT_AS would break programs that reserve much and use little (node, JVM), RLIMIT_CPU counts seconds, not cores, and a
false record would be worse. Processes and file sizes are limited by rlimits set *inside* the box, where they count it
alone; set outside, all boxes of one user would share them. Such a limit counts each user of a box by itself, and a box
of an image has thousands, so processes are counted by a control group too, where there is one.
"""

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.own_ids import STATE
from orchestrator.service.sandbox.provider import Limit, Resources

CPU_PERIOD_US = 100_000
#: Programs that close every possible descriptor would take seconds under the service's own, far higher limit.
MAX_OPEN_FILES = 65536
CONTROLLERS = {Limit.MEMORY: "memory", Limit.CPU: "cpu", Limit.PROCESSES: "pids"}
#: Processes of ours in a box: its agent, who watches its commands, and its way to the internet.
_OUR_PROCESSES = 32
PREFIX = "sweep-"
_AS_USER = "start the service, or the sweep that starts it, as `systemd-run --user --scope -p Delegate=yes sweep ...`"
_AS_ROOT = "start the service, or the sweep that starts it, where it may make control groups (/sys/fs/cgroup, writable)"
_IN_SANDBOXES = f"processes are counted in sandboxes only (--isolation {Isolation.LOCAL})"
#: Several providers may live in one process.
_PROVIDER_NUMBERS = itertools.count(1)
REMOVE_TIMEOUT_S = 2.0


def unlimited(enforced: AbstractSet[Limit]) -> Iterator[str]:
    """Yield a notice about the limits that are not `enforced` on this machine, and how to get them; none if all are."""
    names = {Limit.MEMORY: "memory", Limit.CPU: "CPU", Limit.PROCESSES: "number of processes"}
    missing = [name for limit, name in names.items() if limit not in enforced]
    if not missing:
        return
    ways = [] if {Limit.MEMORY, Limit.CPU} <= enforced else [_AS_USER if os.geteuid() or STATE.user else _AS_ROOT]
    ways += [] if Limit.PROCESSES in enforced else [_IN_SANDBOXES]
    yield f"One devbox can take all there is of {', '.join(missing)} here. For limits: {'; '.join(ways)}."


def box_rlimits(resources: Resources, *, processes: bool) -> str:
    """The rlimits that the agent sets for itself and all below it, as "NAME=N,…"."""
    limits = {"CORE": 0, "NOFILE": MAX_OPEN_FILES, "FSIZE": resources.disk}
    if processes:
        limits["NPROC"] = resources.processes
    return ",".join(f"{name}={value}" for name, value in limits.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """The control groups of one box, one folder for each controller (the same one in version 2)."""

    folders: Mapping[Limit, Path]

    @property
    def enforced(self) -> frozenset[Limit]:
        return frozenset(self.folders)

    def add(self, pids: Iterable[int]) -> None:
        """Move processes in. Raises OSError."""
        for pid in pids:
            for folder in set(self.folders.values()):
                (folder / "cgroup.procs").write_text(str(pid))

    def out_of_memory(self) -> bool:
        """Tell whether the kernel has ended a process in the group because memory ran out."""
        folder = self.folders.get(Limit.MEMORY)
        if folder is None:
            return False
        for name in ("memory.events", "memory.oom_control"):
            try:
                lines = (folder / name).read_text().splitlines()
            except OSError:
                continue
            return any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in lines)
        return False

    def remove(self) -> None:
        """Remove the folders; waits up to REMOVE_TIMEOUT_S for the last process to end. Blocking."""
        for folder in set(self.folders.values()):
            _remove_group(folder, REMOVE_TIMEOUT_S)


NO_CGROUP = Cgroup(folders={})


class Cgroups:
    """Makes groups for boxes below one group of this service, `sweep-PID-START-N`."""

    def __init__(self, parents: Mapping[Limit, Path]) -> None:
        name = f"{PREFIX}{own_name()}-{next(_PROVIDER_NUMBERS)}"
        self._homes = {limit: parent / name for limit, parent in parents.items()}

    @classmethod
    def find(cls) -> "Cgroups":
        """Find where this process may make groups, and remove those of earlier services. Blocking."""
        parents: dict[Limit, Path] = {}
        for limit, controller in CONTROLLERS.items():
            for parent in candidate_parents(controller):
                # Permissions alone do not tell whether a group can be made: try it.
                trial = parent / f"{PREFIX}trial-{os.getpid()}"
                try:
                    _make_group(trial, controller)
                except OSError:
                    continue
                finally:
                    _remove_group(trial, 0)
                parents[limit] = parent
                remove_stale(parent)
                break
        return cls(parents)

    @property
    def limits(self) -> frozenset[Limit]:
        return frozenset(self._homes)

    def create(self, name: str, resources: Resources) -> Cgroup:
        """Make a group with the limits set, as many as the kernel takes. Blocking."""
        folders: dict[Limit, Path] = {}
        for limit, home in self._homes.items():
            folder = home / name
            try:
                _make_group(home, CONTROLLERS[limit])
                folder.mkdir(exist_ok=True)
                _set_limit(folder, limit, resources)
            except OSError as error:
                structlog.get_logger().warning("devbox.limit_refused", limit=limit, devbox=name, error=str(error))
                if folder not in folders.values():
                    _remove_group(folder, 0)
            else:
                folders[limit] = folder
        return Cgroup(folders=folders)

    def close(self) -> None:
        for home in set(self._homes.values()):
            _remove_group(home, 0)


def keep_expendable(pids: Iterable[int]) -> None:
    """Fix the scores of processes that chose to be killed first when memory runs out, for them and their children.

    It takes CAP_SYS_RESOURCE: a value written with it is the least that others may write there (proc(5)). Without it,
    they can go back to the value they were started with.
    """
    for pid in pids:
        score = Path(f"/proc/{pid}/oom_score_adj")
        with suppress(OSError):
            score.write_text(score.read_text())


def own_name() -> str:
    """Name this process; no later process can have the same name."""
    return f"{os.getpid()}-{_start_time(os.getpid())}"


def _start_time(pid: int) -> str:
    """Return the start of a process in clock ticks; "0" for one that has ended, whether its parent has heard or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0"
    return "0" if fields[0] == "Z" else fields[19]


def remove_stale(parent: Path) -> None:
    """Remove the groups of services that have ended."""
    for home in parent.glob(f"{PREFIX}*-*"):
        pid, start, *_ = home.name.removeprefix(PREFIX).split("-")
        if pid.isdigit() and _start_time(int(pid)) != start:
            with suppress(FileNotFoundError):  # another starting service removes it too
                for folder in home.iterdir():
                    if folder.is_dir():
                        _remove_group(folder, 0)
            _remove_group(home, 0)


def candidate_parents(controller: str) -> Iterator[Path]:
    """Folders where groups with `controller` might be made: version 1, or version 2 below us, then beside us."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    ours = {names: path for _, names, path in (line.split(":", 2) for line in groups)}
    for line in mounts:  # proc(5)
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup" and controller in options.split(","):
            path = next((path for names, path in ours.items() if controller in names.split(",")), None)
        elif kind == "cgroup2":
            path = ours.get("")
        else:
            continue
        root, mount = before.split(" ")[3:5]
        if path is not None and (path + "/").startswith(root.rstrip("/") + "/"):
            below = Path(mount + path[len(root.rstrip("/")) :])
            yield below
            if kind == "cgroup2" and below != Path(mount):
                yield below.parent


def _make_group(folder: Path, controller: str) -> None:
    """Make `folder` a group that can have children with `controller`. Raises OSError."""
    if (folder.parent / "cgroup.subtree_control").exists():
        _enable(folder.parent, controller)
        folder.mkdir(exist_ok=True)
        _enable(folder, controller)
    else:
        folder.mkdir(exist_ok=True)


def _enable(folder: Path, controller: str) -> None:
    control = folder / "cgroup.subtree_control"
    if controller not in control.read_text().split():
        control.write_text(f"+{controller}")


def _set_limit(folder: Path, limit: Limit, resources: Resources) -> None:
    quota = max(1000, int(resources.cpus * CPU_PERIOD_US))
    if limit is Limit.MEMORY and (folder / "memory.max").exists():
        (folder / "memory.max").write_text(str(resources.memory))
        _write_if_there(folder / "memory.swap.max", "0")
        _write_if_there(folder / "memory.oom.group", "0")
    elif limit is Limit.PROCESSES:
        (folder / "pids.max").write_text(str(resources.processes + _OUR_PROCESSES))
    elif limit is Limit.MEMORY:
        (folder / "memory.limit_in_bytes").write_text(str(resources.memory))
        _write_if_there(folder / "memory.memsw.limit_in_bytes", str(resources.memory))
    elif (folder / "cpu.max").exists():
        (folder / "cpu.max").write_text(f"{quota} {CPU_PERIOD_US}")
    else:
        (folder / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
        (folder / "cpu.cfs_quota_us").write_text(str(quota))


def _write_if_there(path: Path, text: str) -> None:
    if path.exists():
        path.write_text(text)


def _remove_group(folder: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() >= deadline:
                return
            time.sleep(0.02)
        else:
            return
