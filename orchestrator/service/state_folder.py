"""The state folder of a service, which has one service at a time: its lock, its identity, and the address in it.

The lock is held by the process, not by the file: it is gone when the process is, however that ended.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import orjson

from orchestrator.common.address import ADDRESS, Address
from orchestrator.common.locks import Held, hold
from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import LockKind


@contextmanager
def needing(state: Path) -> Iterator[None]:
    """Raise as UsageError that a disk refuses what is done inside, in the state folder."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"The state folder {state} cannot be used: {error}. Make room, or name another --state folder."
        ) from None


@contextmanager
def hold_lock(state: Path, lock: LockKind = "file") -> Iterator[None]:
    """Hold a state folder. A new one becomes its owner's alone; one with files in it keeps its mode.

    Raises UsageError naming the process that holds it, or what the disk says; see `locks`.
    """
    with ExitStack() as stack:
        try:
            with needing(state):
                state.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not any(state.iterdir()):
                    state.chmod(0o700)
                stack.enter_context(hold(state, lock, words=f"{os.getpid()}\n"))
        except Held as held:
            who = f"pid {held}" if str(held).isdigit() else str(held)
            raise UsageError(
                f"A service ({who}) already holds the state folder {state}: use that one, stop it, or name another."
            ) from None
        yield


class Home:
    """The state folder that a service began with: one that was removed, moved or made anew is another."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def is_there(self) -> bool:
        """Tell whether the folder is still at its path. Blocking."""
        try:
            return os.path.samestat(os.fstat(self._folder), self._state.stat())
        except FileNotFoundError:
            return False
        except OSError:  # a disk that refuses for a while still has it, and at the end the folder is closed
            return True

    def close(self) -> None:
        folder, self._folder = self._folder, -1  # its number may soon be another file's
        os.close(folder)


@contextmanager
def publish(state: Path, address: Address) -> Iterator[None]:
    """Keep the address file in the state folder meanwhile, readable by its owner only, complete or not at all.

    Raises UsageError when it cannot be written. One that cannot be removed does no harm: its port does not answer.
    """
    target, draft = state / ADDRESS, state / f"{ADDRESS}.new"
    with needing(state):
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(orjson.dumps(asdict(address)))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    try:
        yield
    finally:
        with suppress(OSError):
            target.unlink(missing_ok=True)


def forget_address(state: Path) -> None:
    """Remove what a killed service left; only for the holder of the lock. Raises UsageError."""
    with needing(state):
        (state / ADDRESS).unlink(missing_ok=True)
