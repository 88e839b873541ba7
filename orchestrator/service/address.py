"""One service per state folder, and how clients find it: the folder's lock, and a file with address and token.

The lock is held by the process, not by the file: it is gone when the process is, however that ended. The address file
may outlive a killed service; whoever reads it has the service prove itself before sending the token: `/v1/sweep/proof`.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

import orjson

from orchestrator.errors import UsageError
from orchestrator.locks import Held, Kind, hold

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
def hold_lock(state: Path, lock: Kind = "file") -> Iterator[None]:
    """Hold a state folder, made if it is missing. Raises UsageError naming the process that holds it; see `locks`."""
    with ExitStack() as stack:
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(hold(state, lock, words=f"{os.getpid()}\n"))
        except OSError as error:
            raise UsageError(f"The state folder {state} cannot be used: {error}. Name another one.") from None
        except Held as held:
            who = f"pid {held}" if str(held).isdigit() else str(held)
            raise UsageError(
                f"A service ({who}) already holds the state folder {state}: use that one, stop it, or name another."
            ) from None
        yield


@contextmanager
def publish(state: Path, address: Address) -> Iterator[None]:
    """Have the address file in the state folder, readable by its owner only, complete or not at all."""
    target, draft = state / ADDRESS, state / f"{ADDRESS}.new"
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(orjson.dumps(asdict(address)))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(target)
    try:
        yield
    finally:
        target.unlink(missing_ok=True)


def forget_address(state: Path) -> None:
    """Remove what a killed service left; only for the holder of the lock."""
    (state / ADDRESS).unlink(missing_ok=True)
