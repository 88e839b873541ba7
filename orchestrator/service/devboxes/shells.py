"""How a client's command becomes a program: a fresh login shell, or one that continues where a named shell stopped.

A named shell is no process that lives on: its folder and exported environment are kept in a file of the box between
commands, which run one at a time. Why not a real shell behind a pipe: the end of a command, its exit status and its
output would have to be guessed from what it prints.
"""

import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Final

import anyio

from orchestrator.service.sandbox.commands import write_file
from orchestrator.service.sandbox.provider import Box, Command, shell

MAX_ARGUMENT: Final = 100_000
"""Bytes; the kernel takes at most 131,072 in one argument, and longer commands go through a file."""

_CONTINUED: Final = r"""
__state=$1 __command=$2; set --
if [ -f "$__state" ]; then
  for __name in $(compgen -e); do unset "$__name" 2>/dev/null; done
  . "$__state" 2>/dev/null
fi
__keep() {
  { declare -px | grep -v '^declare -[a-zA-Z]*r'; printf 'cd -- %q\n' "$PWD"; } > "$__state.new" &&
  mv -f -- "$__state.new" "$__state"
}
trap __keep EXIT
eval "$__command"
"""


async def program(box: Box, command: str, *, execution_id: str, shell_name: str | None, stdin: bool) -> Command:
    """The program that runs `command` in the working directory, or where the named shell is. Raises BoxDied."""
    if len(command.encode()) > MAX_ARGUMENT:
        path = f"/tmp/.command-{execution_id}"  # noqa: S108 - the box's own /tmp
        await write_file(box, path, command.encode())
        command = f". {shlex.quote(box.path(path))}"
    if shell_name is None:
        return shell(command, stdin=stdin)
    name = sha256(shell_name.encode()).hexdigest()[:16]
    state = box.path(f"/tmp/.shell-{name}")  # noqa: S108 - the box's own /tmp
    return Command(argv=("bash", "-lc", _CONTINUED, "bash", state, command), stdin=stdin)


class Turns:
    """Whose turn it is in each named shell, first come first served."""

    def __init__(self) -> None:
        self._locks: dict[tuple[str, str], anyio.Lock] = {}

    @asynccontextmanager
    async def turn(self, devbox_id: str, shell_name: str | None) -> AsyncIterator[None]:
        """Wait for the turn; a command without a named shell never waits."""
        if shell_name is None:
            yield
            return
        key = (devbox_id, shell_name)
        lock = self._locks.setdefault(key, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._locks.pop(key, None)
