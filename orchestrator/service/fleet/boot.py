"""What happens in a devbox between its boot and its first command: files are put in place, then scripts run.

Scripts run in the working directory, one after the other, and the first that fails ends the boot. What they print is
part of the devbox's log, and the end of it is in the message, because that is all most people ever look at.
"""

import posixpath
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from orchestrator.service.devboxes.commands import Finished, run, write_file
from orchestrator.service.devboxes.contract import HOME, Box, shell
from orchestrator.service.fleet.logs import append_setup, entry
from orchestrator.service.store import Document, now_ms

SCRIPT_TIMEOUT: Final = 3600.0
_SHOWN: Final = 2000


def in_home(path: str) -> str:
    """An absolute path of the devbox; as published, a relative one starts at the home of its user."""
    return posixpath.join(HOME, path)


async def write_mounts(box: Box, mounts: Mapping[str, str]) -> None:
    """Raises BadRequest when a file cannot be written, and BoxDied."""
    for path, contents in mounts.items():
        await write_file(box, in_home(path), contents.encode())


async def run_setup(box: Box, scripts: Iterable[str], output: Path) -> str | None:
    """Run the scripts; returns what went wrong, for people, or None. Raises BoxDied."""
    for script in scripts:
        started = now_ms()
        finished = await run(box, shell(script), timeout=SCRIPT_TIMEOUT)
        entries = _entries(script, finished, started)
        await anyio.to_thread.run_sync(partial(append_setup, output, box.id, entries))
        if finished.status != 0:
            return _problem(script, finished)
    return None


def _entries(script: str, finished: Finished, started: int) -> list[Document]:
    source = "setup_commands"
    return [
        entry(source, started, cmd=script),
        *(entry(source, started, message=line) for line in _lines(finished.stdout)),
        *(entry(source, started, level="error", message=line) for line in _lines(finished.stderr)),
        entry(source, now_ms(), exit_code=finished.status),
    ]


def _lines(output: bytes) -> list[str]:
    return output.decode(errors="replace").splitlines()


def _problem(script: str, finished: Finished) -> str:
    first = script.strip().partition("\n")[0][:120]
    how = f"took longer than {SCRIPT_TIMEOUT:g} s" if finished.is_timed_out else f"exited with {finished.status}"
    said = finished.output.strip()[-_SHOWN:]
    return f"The setup command {first!r} {how}" + (f": {said}" if said else ", and printed nothing.")
