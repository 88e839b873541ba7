"""One process works on a sweep, whatever became of its folder.

The folder's lock keeps others out of the folder, not out of its copy: two copies on one endpoint have the same sweep's
id, would take each other's devboxes for their own, and end them as strays. So who is at work says so on the endpoint
every few seconds; who comes later and finds somebody there begins nothing. An endpoint that is not ours cannot tell.
"""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import anyio

from orchestrator.common.locks import birth
from orchestrator.core.errors import UsageError, WorldError
from orchestrator.endpoint.protocols import Endpoint

#: Seconds between two signs of life.
EVERY_S: Final = 5.0
#: Seconds after which an endpoint has forgotten who gives none, and a little more.
FORGOTTEN_S: Final = 25.0
#: Seconds that saying so may take where others wait for it.
BRIEFLY_S: Final = 5.0
_NAME: Final = re.compile(r"process (\d+) on (.*), of (.*)")
COPY: Final = "Is there a copy of this sweep's folder?"


class Presence:
    """Use `claim` once, then `keep` until the end, then `leave`."""

    def __init__(self, endpoint: Endpoint, sweep: str) -> None:
        self._endpoint = endpoint
        self._sweep = sweep
        self._here = os.uname().nodename
        self._me = f"process {os.getpid()} on {self._here}, of {birth(os.getpid())}"

    async def claim(self) -> None:
        """Raises UsageError if another process is at work on this sweep."""
        until = anyio.current_time() + FORGOTTEN_S
        while others := await self._others():
            if anyio.current_time() >= until:
                await self.leave()
                raise UsageError(
                    f"{_words(others)} is at work on this sweep, on the same endpoint. {COPY} Stop one of the two: "
                    "each would take the other's devboxes for its own."
                )
            await anyio.sleep(EVERY_S / 2)

    async def keep(self, tell: Callable[[str], None]) -> None:
        """Give signs of life, and tell once of whoever else is there. Runs until it is canceled."""
        told: set[str] = set()
        while True:
            await anyio.sleep(EVERY_S)
            if new := set(await self._others()) - told:
                told |= new
                tell(f"{_words(new)} wants to work on this sweep, too, and is kept out. {COPY}")

    async def leave(self) -> None:
        with anyio.move_on_after(BRIEFLY_S, shield=True), suppress(WorldError):
            await self._endpoint.leave(self._me)

    async def _others(self) -> list[str]:
        """Names of the others at work, without processes of this machine that the endpoint has yet to forget."""
        with anyio.move_on_after(BRIEFLY_S), suppress(WorldError):
            names = await self._endpoint.at_work(self._sweep, self._me)
            known = [(name, _NAME.fullmatch(name)) for name in names]
            return [
                name
                for name, match in known
                if not (match and match[2] == self._here and birth(int(match[1])) != match[3])
            ]
        return []


def _words(names: Iterable[str]) -> str:
    known = (_NAME.fullmatch(name) for name in sorted(names))
    return " and ".join(f"process {match[1]} on {match[2]}" for match in known if match) or "another process"
