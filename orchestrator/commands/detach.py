"""A sweep that outlives the terminal it was started from.

The same command is started once more in a session of its own, with a pipe. It prints to the terminal until the run
folder is its own: a failure is reported there, and its exit code is ours. Then it names the folder in the pipe and
prints to a file in it. Why not a fork: threads and open connections do not survive one.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Final

from orchestrator.commands.exit_codes import EXIT_OK
from orchestrator.common import sweep_command
from orchestrator.core.errors import JournalError
from orchestrator.rundir.sweep_index import as_typed
from orchestrator.view.console import finish_writing, print_record, say, write_by_threads
from orchestrator.view.formats import Format

#: The number of the pipe's end, in the environment of the process that was detached.
READY: Final = "SWEEP_READY"
OUT: Final = "sweep.out"
#: The time in which the terminal must read something of what was printed, before the process turns away from it.
_TURNING_S: Final = 1.0


def claim(output: Format) -> Callable[[Path], None] | None:
    """In the detached process, return what it calls once a run folder is its own; None in every other process.

    Nothing that we start inherits the pipe, or the variable with its number.
    """
    number = os.environ.pop(READY, None)
    if number is None:
        return None
    pipe = int(number)
    os.set_inheritable(pipe, False)  # noqa: FBT003 - takes no keyword

    def turn_away(folder: Path) -> None:
        """Print to a file of the folder from now on, and name the folder in the pipe."""
        finish_writing(stall=_TURNING_S)
        try:
            out = os.open(folder / OUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise JournalError(f"{folder / OUT} cannot be written: {error.strerror}.") from None
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.close(out)
        write_by_threads(output)  # new threads: the old ones may wait for a reader for ever
        with os.fdopen(pipe, "w") as ready:
            ready.write(str(folder))

    return turn_away


def start(output: Format) -> int:
    """Start this command again, detached, and wait until it has begun or failed; returns the exit code."""
    read, write = os.pipe()
    child = Popen(
        [*sweep_command(), *sys.argv[1:]],
        stdin=DEVNULL,
        start_new_session=True,
        pass_fds=[write],
        env=os.environ | {READY: str(write)},
    )
    os.close(write)
    with os.fdopen(read) as ready:
        try:
            folder = ready.read()
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
    if not folder:
        status = child.wait()
        return status if status >= 0 else 128 - status  # as a shell says that a signal ended it
    name, typed = Path(folder).name, as_typed(Path(folder))
    if output.is_for_programs:
        print_record({"event": "detached", "folder": folder, "pid": child.pid}, output)
    else:
        say(f"{name} runs as process {child.pid}: `sweep attach {typed}` follows it, `sweep stop {typed}` ends it.")
    return EXIT_OK
