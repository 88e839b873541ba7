"""What all sandboxes of one service share: the program, the agent, the thread that starts them, the boxes' place.

Its secret: the state folder's layout (`shared/` for what every box reads, `boxes/` for what each one writes), and that
everything a sandbox opens is named by the gate, never by the host's path.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import anyio
import anyio.to_thread
import structlog

from orchestrator.core.errors import SandboxUnavailable
from orchestrator.service.sandbox.bwrap.binary import copy_for_others, find_bubblewrap
from orchestrator.service.sandbox.bwrap.bwrap_args import Interpreter, isolation, system
from orchestrator.service.sandbox.bwrap.diagnosis import explain
from orchestrator.service.sandbox.bwrap.guard import Guard
from orchestrator.service.sandbox.bwrap.seccomp import program
from orchestrator.service.sandbox.bwrap.shared_rootfs import furnish
from orchestrator.service.sandbox.bwrap.spawner import Spawner
from orchestrator.service.sandbox.bwrap.users import Users
from orchestrator.service.sandbox.limits import Groups
from orchestrator.service.sandbox.safe_fs import remove

TRIAL_PATIENCE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What anybody can open: bubblewrap, the folders `shared` and `boxes`, the interpreter's if it is not in /usr."""

    program: str
    shared: str
    boxes: str
    prefix: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """This machine, ready for sandboxes."""

    state: Path
    spawner: Spawner
    users: Users
    groups: Groups
    interpreter: Interpreter
    names: Names
    guard: Guard
    hidden: tuple[Path, ...] = ()

    @classmethod
    async def prepare(cls, state: Path, *, hidden: tuple[Path, ...] = (), furnished: bool = True) -> "Machine":
        """Make `state` ready; boxes that an earlier service left there are removed. Raises SandboxUnavailable.

        No box sees what is in the folders `hidden`, wherever on the host they are.

        Unfurnished, it is good for finding out whether sandboxes are permitted, and no box can boot.
        """
        if sys.platform != "linux":
            raise SandboxUnavailable("sandboxed devboxes need Linux; here, choose `--isolation none`")
        interpreter = Interpreter.ours()
        program = await anyio.to_thread.run_sync(_lay_out, state)
        if furnished:
            await anyio.to_thread.run_sync(furnish, state / "shared", interpreter.program)
        groups = await anyio.to_thread.run_sync(Groups.find)
        spawner, guard = Spawner(), await anyio.to_thread.run_sync(Guard)
        try:
            names = await spawner.run(partial(_admit_all, spawner, state, program, interpreter))
            machine = cls(
                state=state,
                spawner=spawner,
                users=Users(),
                groups=groups,
                interpreter=interpreter,
                names=names,
                guard=guard,
                hidden=hidden,
            )
            await machine.check()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(spawner.close)
                await anyio.to_thread.run_sync(guard.close)
                await anyio.to_thread.run_sync(groups.close)
            raise
        return machine

    async def check(self) -> None:
        """Start a sandbox that does nothing. Raises SandboxUnavailable."""
        user = self.users.lend()
        try:
            words = await self.spawner.run(partial(self._trial, user))
        finally:
            self.users.give_back(user)
        if words is not None:
            raise explain(words)

    def _trial(self, user: int | None) -> str | None:
        arguments = [self.names.program, *isolation(network=False), *system(), "--ro-bind", self.names.shared, "/mnt"]
        arguments += ["--proc", "/proc", "--dev", "/dev"]
        with tempfile.TemporaryFile() as errors, in_memory(program()) as calls:
            arguments += ["--seccomp", str(calls.fileno()), "/bin/sh", "-c", ":"]
            try:
                with self.guard.start(arguments, user=user, fds=(calls.fileno(),), errors=errors) as popen:
                    status = _outcome(popen)
            except OSError as error:
                return str(error)
            self.guard.forget(popen.pid)
            errors.seek(0)
            words = errors.read(4096).decode(errors="replace")
        return words if status != 0 else None

    async def close(self) -> None:
        await anyio.to_thread.run_sync(self.spawner.close)
        await anyio.to_thread.run_sync(self.guard.close)
        await anyio.to_thread.run_sync(self.groups.close)


def in_memory(data: bytes) -> IO[bytes]:
    """A file with this content for bubblewrap to read."""
    file = os.fdopen(os.memfd_create("devbox-given"), "w+b")
    file.write(data)
    file.seek(0)
    return file


def _outcome(popen: subprocess.Popen[bytes]) -> int:
    try:
        return popen.wait(timeout=TRIAL_PATIENCE)
    except subprocess.TimeoutExpired:
        popen.kill()
        return popen.wait()


def _lay_out(state: Path) -> Path:
    """Make the folders, and bubblewrap ready for every user; returns its path on the host."""
    shared, boxes = state / "shared", state / "boxes"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove(boxes)
    for folder, mode in ((shared, 0o755), (boxes, 0o711)):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
    bubblewrap = find_bubblewrap()
    return copy_for_others(bubblewrap, shared / "bubblewrap") if os.geteuid() == 0 else bubblewrap.path


def _open_gate(spawner: Spawner) -> None:
    """Take the private view if root may; else what others cannot reach stays out of reach, and the trial says so."""
    try:
        spawner.open_gate()
    except OSError as error:
        structlog.get_logger().info("devbox.no_gate", error=str(error))


def _admit_all(spawner: Spawner, state: Path, program: Path, interpreter: Interpreter) -> Names:
    if os.geteuid() == 0:
        _open_gate(spawner)
    shared = spawner.admit(state / "shared")
    inside = program.is_relative_to(state / "shared")
    return Names(
        program=f"{shared}/{program.relative_to(state / 'shared')}" if inside else os.fspath(program),
        shared=shared,
        boxes=spawner.admit(state / "boxes"),
        prefix=None if interpreter.prefix is None else spawner.admit(interpreter.prefix),
    )
