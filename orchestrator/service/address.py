"""One service per state folder, and how clients find it: the folder's lock, and a file with address and token.

The lock is held by the process, not by the file: it is gone when the process is, however that ended. The address file
may outlive a killed service; whoever reads it has the service prove itself before sending the token: `/v1/sweep/proof`.
"""

import fcntl
import ipaddress
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

import orjson

from orchestrator.errors import UsageError

LOCK: Final = "lock"
ADDRESS: Final = "address.json"
#: A sweep that looks whether the lock is free, before it starts a service, holds it for an instant.
_TRIES, _INSTANT = 3, 0.02


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
def hold_lock(state: Path) -> Iterator[None]:
    """Hold a state folder, which is for its owner only if it is new: one with other things in it stays as it is.

    Raises UsageError naming the process that holds it, or what the disk says.
    """
    with needing(state):
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any(state.iterdir()):
            state.chmod(0o700)
        lock = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with needing(state):
            _take(lock, state)
        yield
    finally:
        os.close(lock)


def _take(lock: int, state: Path) -> None:
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(_INSTANT)
    else:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        raise UsageError(
            f"A service (pid {holder}) already holds the state folder {state}: use that one, stop it, or name another."
        )
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


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
