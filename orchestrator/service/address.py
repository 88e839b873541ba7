"""One service per state folder, and how clients find it: the folder's lock, and a file with address and token.

The lock is held by the process, not by the file: it is gone when the process is, however that ended. The address file
may outlive a killed service; whoever reads it has the service prove itself before sending the token: `/v1/sweep/proof`.
"""

import ipaddress
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

import orjson

from orchestrator.common.locks import Held, Kind, hold
from orchestrator.core.errors import UsageError

ADDRESS: Final = "address.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a service listens, what it wants to hear, and which process it is."""

    url: str
    token: str
    instance: str
    pid: int

    @classmethod
    def read(cls, state: Path) -> Self | None:
        """The address in a state folder; None if there is none, or one that is not ours to understand. Blocking."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**orjson.loads((state / ADDRESS).read_bytes()))
        return None


@contextmanager
def needing(state: Path) -> Iterator[None]:
    """What needs the state folder: a disk that refuses there is raised as UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"The state folder {state} cannot be used: {error}. Make room, or name another --state folder."
        ) from None


@contextmanager
def hold_lock(state: Path, lock: Kind = "file") -> Iterator[None]:
    """Hold a state folder, which is for its owner only if it is new: one with other things in it stays as it is.

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
    """A state folder as it is when the service begins: one that was removed, moved or made anew is not it any more."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def is_there(self) -> bool:
        """Blocking."""
        try:
            return os.path.samestat(os.fstat(self._folder), self._state.stat())
        except FileNotFoundError:
            return False
        except OSError:  # a disk that refuses for a while has it yet, and who asks at the end asks in vain
            return True

    def close(self) -> None:
        os.close(self._folder)


@contextmanager
def publish(state: Path, address: Address) -> Iterator[None]:
    """Have the address file in the state folder, readable by its owner only, complete or not at all.

    Raises UsageError when it cannot be written. One that cannot be removed is no harm: nobody answers there.
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


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def forget_address(state: Path) -> None:
    """Remove what a killed service left; only for the holder of the lock. Raises UsageError."""
    with needing(state):
        (state / ADDRESS).unlink(missing_ok=True)
