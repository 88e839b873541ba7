"""The exec agent: starts and ends commands inside a devbox, for the service outside it.

Its secret: it is the only file of ours that runs in a box, by path (`python3 -I -S boxagent.py CONTROL-FD LIMITS`, but
under another name than python's, for people type `pkill python`), beside programs that may be hostile. So it is small,
imports nothing that costs time or memory (C modules, not the wrappers above them: 6 ms and 1 MB for every box), and is
not trusted: the host validates all that it sends.

The host sends frames, four bytes of length and then fields joined by NUL, the first byte of a `spawn` carrying the
command's pipes: `spawn ID CWD USER ARGC ARG… KEY=VALUE…`, `interrupt ID`, `kill ID`, `listen ID PORT`. The answers are
lines: `ready`, `exit ID STATUS`, and `listening ID ERRNO`, with a socket if ERRNO is 0: the host itself accepts the
connections to it. Output never passes through here: the command holds the host's own pipe.

Each command runs under a helper, a fork of this process that adopts orphans (PR_SET_CHILD_SUBREAPER): a daemon can
leave its session and its parents, but not the helper, so that `kill` finds it. When the command has ended by itself the
helper ends too, and this process adopts the daemons left behind. A process group would not do: one `setsid` leaves it.
"""

import _signal as signal  # type: ignore[import-not-found]
import _socket as socket
import ctypes
import os
import resource
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

KILL_GRACE_S = 1.0
#: Bytes that are read of /etc/passwd, or of /etc/group.
TABLE_BYTES = 1 << 20
BACKLOG = 128
POLL_S = 0.01
LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None)
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF, LANDLOCK_SCOPE_ABSTRACT_SOCKETS = 444, 446, 1
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_GET_NO_NEW_PRIVS = 1, 4, 36, 39
IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGALRM, signal.SIGTSTP)
#: What runs a script without `#!`: the box's shell, or ours where it has none.
SHELLS = (b"/bin/sh", b"/.sweep/tools/bin/sh")
#: Scores, up to 1000, by which the kernel chooses the process to kill when memory runs out: boxes before all else, and
#: in a box its commands before the agent. The service and its parents keep their own scores.
EXPENDABLE, FIRST_TO_GO = 900, 1000
KILL, INTERRUPT = signal.SIGUSR1, signal.SIGUSR2
ORDERS = {KILL, INTERRUPT, signal.SIGCHLD}


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)  # noqa: FBT003
    os.closerange(3, control.fileno())  # what the sandbox was made with is nothing for commands
    os.closerange(control.fileno() + 1, 1024)
    set_rlimits(sys.argv[2])
    raise_oom_score(EXPENDABLE)
    protect()
    restrict_sockets()
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    agent = ExecAgent(control)
    try:
        agent.serve()
    finally:  # the host may hang up in the middle of an order, or before an answer
        agent.end_all()


def set_rlimits(text: str) -> None:
    """Set the limits "NAME=N,…"; inside the box they count this box alone."""
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        number = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(number)[1]
        ceiling = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
        resource.setrlimit(number, (ceiling, ceiling))


def protect() -> None:
    """Ignore signals that hit this process by accident, and keep commands from tracing it or taking its socket."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {KILL, INTERRUPT})
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def restrict_sockets() -> None:
    """Cut this process and its children off from the host's abstract sockets, which a box with network on shares.

    It takes Linux 6.12 (landlock(7)). Outside a sandbox, where new privileges can still be gained, it does nothing.
    """
    if LINUX and LIBC.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1:
        attributes = bytes(16) + LANDLOCK_SCOPE_ABSTRACT_SOCKETS.to_bytes(8, sys.byteorder)
        rules = LIBC.syscall(ctypes.c_long(LANDLOCK_CREATE_RULESET), attributes, ctypes.c_size_t(len(attributes)), 0)
        if rules >= 0:
            LIBC.syscall(ctypes.c_long(LANDLOCK_RESTRICT_SELF), rules, 0)
            os.close(rules)


def prctl(option: int, value: int) -> None:
    if LINUX:
        LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0)


class ExecAgent:
    """Carries out the host's orders and reports the ends of commands."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.running: dict[int, int] = {}

    def serve(self) -> None:
        """Serve until the host hangs up, which is also how a service that was killed ends its boxes."""
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poller = select.poll()
        poller.register(self.control.fileno(), select.POLLIN)
        poller.register(woken, select.POLLIN)
        self.tell("ready")
        while True:
            for ready, _ in poller.poll():
                if ready == woken:
                    os.read(woken, 4096)
                    self.reap()
                elif not self.take_order():
                    return

    def end_all(self) -> None:
        if LINUX:
            end_descendants(grace=0)
            return
        for helper in self.running:
            send(os.kill, helper, KILL)
        while reap_all():
            time.sleep(POLL_S)

    def tell(self, line: str) -> None:
        self.control.sendall(line.encode() + b"\n")

    def take_order(self) -> bool:
        head, fds = self.receive_head()
        if not head:
            return False
        verb, number, *rest = self.receive(int.from_bytes(head, "big")).split(b"\0")
        if verb == b"spawn":
            self.spawn(int(number), rest, fds)
        elif verb == b"listen":
            self.listen(int(number), int(rest[0]))
        else:
            for helper, owner in self.running.items():
                if owner == int(number):
                    os.kill(helper, KILL if verb == b"kill" else INTERRUPT)
        return True

    def receive_head(self) -> tuple[bytes, list[int]]:
        try:
            head, extra, _, _ = self.control.recvmsg(4, 256, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        except ConnectionError:
            return b"", []
        fds = [fd for _, _, data in extra for fd in memoryview(data).cast("i").tolist()]
        for fd in fds:
            os.set_inheritable(fd, False)  # noqa: FBT003
        return (head + self.receive(4 - len(head)) if head else b""), fds

    def receive(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self.control.recv(size - len(parts))
            if not part:
                raise ConnectionAbortedError
            parts += part
        return bytes(parts)

    def spawn(self, number: int, fields: list[bytes], fds: list[int]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        agent = os.getpid()
        try:
            helper = os.fork()
        except OSError as error:
            report_failure(fds[-1], f"the devbox cannot start a process: {error.strerror}")
            self.tell(f"exit {number} 126")
        else:
            if helper == 0:
                self.control.close()
                supervise(agent, fields, fds)
            self.running[helper] = number
        for fd in fds:
            os.close(fd)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def listen(self, number: int, port: int) -> None:
        """Send the host a socket that listens on the box's own loopback."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(BACKLOG)
        except OSError as error:
            self.tell(f"listening {number} {error.errno}")
        else:
            passed = listener.fileno().to_bytes(4, sys.byteorder)
            self.control.sendmsg([b"listening %d 0\n" % number], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        listener.close()

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self.running.pop(pid, None)
            if number is not None:
                self.tell(f"exit {number} {exit_status(status)}")


def supervise(agent: int, fields: list[bytes], fds: list[int]) -> None:
    """Run one command in this fork, a helper, and exit with its status; never returns."""
    status = 126
    try:
        signal.set_wakeup_fd(-1)
        prctl(PR_SET_PDEATHSIG, KILL)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        if os.getppid() == agent:
            raise_oom_score(FIRST_TO_GO)
            status = Helper(fields, fds).run()
    except Exception as error:  # noqa: BLE001 a fork must not return
        report_failure(fds[-1], f"the command's helper failed: {error!r}")
    finally:
        os._exit(status)


def raise_oom_score(score: int) -> None:
    """Let the kernel kill this process and its children sooner when memory runs out; opens /proc/self meanwhile."""
    if LINUX:
        prctl(PR_SET_DUMPABLE, 1)
        try:
            with open("/proc/self/oom_score_adj", "r+b", 0) as file:  # noqa: PTH123
                if int(file.read()) < score:
                    file.write(b"%d" % score)
        except (OSError, ValueError):
            return
        finally:
            prctl(PR_SET_DUMPABLE, 0)


class Helper:
    """Starts one program, waits for its end, and ends its whole tree when told to."""

    def __init__(self, fields: list[bytes], fds: list[int]) -> None:
        count = int(fields[2])
        self.folder, self.user, self.argv = fields[0], fields[1], fields[3 : 3 + count]
        pairs = (field.partition(b"=") for field in fields[3 + count :])
        self.environment = {name: value for name, _, value in pairs}
        self.fds = fds
        self.program = 0
        self.status: int | None = None

    def run(self) -> int:
        failure = self.start()
        for fd in self.fds:
            os.close(fd)
        if failure is not None:
            return failure
        while self.status is None:
            order = signal.sigwait(ORDERS)
            if order == KILL:
                end_descendants(grace=KILL_GRACE_S, program=self.program, ended=self.note)
            elif order == INTERRUPT:
                send(os.killpg, self.program, signal.SIGINT)
            else:
                reap_all(self.note)
        return self.status

    def note(self, pid: int, status: int) -> None:
        if pid == self.program:
            self.status = exit_status(status)

    def start(self) -> int | None:
        """Start the program; returns a shell's exit status, after a shell's message, if that fails."""
        name = os.fsdecode(self.argv[0]) if self.argv else ""
        try:
            os.chdir(self.folder)
        except OSError as error:
            return report_failure(self.fds[-1], f"{os.fsdecode(self.folder)}: {error.strerror}")
        try:
            user = find_user(self.user) if self.user else None
        except (OSError, ValueError) as error:
            return report_failure(self.fds[-1], f"user {os.fsdecode(self.user)}: {error}")
        self.environment.setdefault(b"HOME", user.home if user else b"/root")
        if user is not None:
            return self.start_as(user, name)
        try:
            self.program = self.execute(find_program(self.argv[0], self.environment.get(b"PATH", b"")))
        except FileNotFoundError as error:
            report_failure(self.fds[-1], f"{name}: {what_is_missing(error)}")
            return 127
        except (OSError, ValueError, IndexError) as error:
            return report_failure(self.fds[-1], f"{name}: {getattr(error, 'strerror', None) or error}")
        return None

    def start_as(self, user: "User", name: str) -> int | None:
        """Start the program as another user of the box; this helper keeps the right to end it."""
        self.program = os.fork()
        if self.program:
            return None
        status = 126
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (*IGNORED, signal.SIGXFSZ, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(self.fds[0] if len(self.fds) == 3 else os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(self.fds[-2], 1)
            os.dup2(self.fds[-1], 2)
            os.setgroups(user.groups)
            os.setgid(user.group)
            os.setuid(user.number)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            path = find_program(self.argv[0], self.environment.get(b"PATH", b""))
            try:
                os.execve(path, self.argv, self.environment)  # noqa: S606
            except OSError as error:
                if error.errno != 8:  # as in `execute`
                    raise
                os.execve(shell_program(), [b"sh", path, *self.argv[1:]], self.environment)  # noqa: S606
        except FileNotFoundError as error:
            report_failure(2, f"{name}: {what_is_missing(error)}")
            status = 127
        except Exception as error:  # noqa: BLE001 a fork must not return
            report_failure(2, f"{name}: {getattr(error, 'strerror', None) or error}")
        finally:
            os._exit(status)

    def execute(self, path: bytes) -> int:
        try:
            return self.spawn(path, self.argv)
        except OSError as error:
            if error.errno != 8:  # ENOEXEC: a script without #! is the shell's, as everywhere
                raise
            return self.spawn(shell_program(), [b"sh", path, *self.argv[1:]])

    def spawn(self, path: bytes, argv: list[bytes]) -> int:
        outputs = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(self.fds[-2:], start=1)]
        nothing = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)
        source = (os.POSIX_SPAWN_DUP2, self.fds[0], 0) if len(self.fds) == 3 else nothing
        return os.posix_spawn(
            path,
            argv,
            self.environment,
            file_actions=[source, *outputs],
            setsid=True,
            setsigmask=(),
            setsigdef=(*IGNORED, signal.SIGXFSZ, signal.SIGCHLD),
        )


class User:
    """A user of the box: numbers of the user, its group and further groups, and its home."""

    def __init__(self, number: int, group: int, groups: list[int], home: bytes) -> None:
        self.number, self.group, self.groups, self.home = number, group, groups, home


def find_user(words: bytes) -> User:
    """Look `user[:group]` up in the box's own files, names first, as container engines do. Raises OSError, ValueError.

    A number need not be there; without a group, a user has those that the files give it.
    """
    name, _, group = words.partition(b":")
    users, groups = read_table("/etc/passwd", 6), read_table("/etc/group", 4)
    entry = next((row for row in users if row[0] == name), None) or next((row for row in users if row[2] == name), None)
    if entry is None and not name.isdigit():
        raise ValueError("/etc/passwd has no such user")
    number, own = (int(entry[2]), int(entry[3])) if entry else (int(name), 0)
    further = [int(row[2]) for row in groups if entry and entry[0] in row[3].split(b",")]
    if group:
        own = next((int(row[2]) for row in groups if row[0] == group), -1)
        if own < 0 and not group.isdigit():
            raise ValueError("/etc/group has no such group")
        own, further = (int(group) if own < 0 else own), []
    return User(number, own, further, entry[5] if entry and entry[5] else b"/")


def read_table(path: str, columns: int) -> list[list[bytes]]:
    """Return the rows of a file such as /etc/passwd that have so many columns; none if it is not there."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return []
    try:
        rows = [line.split(b":") for line in os.read(file, TABLE_BYTES).splitlines()]
    finally:
        os.close(file)
    return [row for row in rows if len(row) >= columns]


def find_program(name: bytes, path: bytes) -> bytes:
    if not name:
        raise FileNotFoundError
    if b"/" in name:
        return name
    forbidden = None
    for folder in path.split(b":"):
        candidate = os.path.join(folder, name)  # noqa: PTH118
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):  # noqa: PTH112
            return candidate
        if forbidden is None and os.path.isfile(candidate):  # noqa: PTH113
            forbidden = candidate
    if forbidden is None:
        raise FileNotFoundError
    return forbidden


def shell_program() -> bytes:
    return next((path for path in SHELLS if os.access(path, os.X_OK)), SHELLS[0])


def what_is_missing(error: FileNotFoundError) -> str:
    """Say what is not there: the program that was to be started, or what a program that is there needs to run."""
    try:
        with open(error.filename, "rb") as file:  # noqa: PTH123
            first = file.readline(256)
    except (OSError, TypeError):
        return "command not found"
    if first.startswith(b"#!"):
        return f"its #! line asks for {os.fsdecode(first[2:].strip())}, which is not there"
    return "its loader, which it names as a program of another system, is not there"


def report_failure(stream: int, words: str) -> int:
    """Write a message to the command's stderr; returns 126, a shell's status for a command that cannot be started."""
    try:
        os.write(stream, os.fsencode(words) + b"\n")
    except OSError:
        return 126
    return 126


def exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def ignore(pid: int, status: int) -> None:
    """Do nothing: an orphan that a command left behind has ended."""


def reap_all(ended: "Callable[[int, int], None]" = ignore) -> bool:
    """Reap the children that have ended; returns whether any are left."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        ended(pid, status)


def end_descendants(grace: float, program: int = 0, ended: "Callable[[int, int], None]" = ignore) -> None:
    """Send every descendant SIGTERM, and SIGKILL after `grace` seconds; returns when there is none."""
    if grace:
        signal_descendants(program, signal.SIGTERM)
        signal_descendants(program, signal.SIGCONT)
    deadline = time.monotonic() + grace
    while reap_all(ended):
        if time.monotonic() >= deadline:
            signal_descendants(program, signal.SIGKILL)
        time.sleep(POLL_S)


def signal_descendants(program: int, number: int) -> None:
    """Signal every descendant; without /proc, the program's process group."""
    targets = descendants(os.getpid()) if LINUX else []
    for pid in targets:
        send(os.kill, pid, number)
    if not LINUX and program:
        send(os.killpg, program, number)


def send(deliver: "Callable[[int, int], None]", target: int, number: int) -> None:
    """Deliver a signal to a target that may have ended meanwhile."""
    try:
        deliver(target, number)
    except OSError:
        return


def descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(name))
    found = [root]
    for pid in found:
        found += children.get(pid, ())
    return found[1:]


if __name__ == "__main__":
    main()
