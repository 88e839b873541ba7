"""Stopping a sweep of this machine that runs elsewhere: detached, in another terminal, under a service manager."""

import os
import signal
import time
from pathlib import Path
from typing import Final

import anyio

from orchestrator.commands.attach import LOOK_S, catch_up
from orchestrator.commands.exit_codes import EXIT_OK
from orchestrator.core.errors import UsageError
from orchestrator.core.ledger import Ledger
from orchestrator.core.stages import Stage
from orchestrator.engine.shutdown import NOW
from orchestrator.rundir.journal import Reader
from orchestrator.rundir.manifest import read_manifest
from orchestrator.rundir.sweep_index import Holder, as_typed, holder
from orchestrator.view.console import say

#: The time between two reports of what is waited for.
REPORT_EVERY_S: Final = 2.0
#: Trials that a report names.
NAMED: Final = 5


async def run(folder: Path, *, is_now: bool) -> int:
    """Ask the process at work in a folder to stop, and wait until it has; returns the exit code.

    Raises UsageError if the process is not one of this machine that we may signal.
    """
    at_work = holder(folder)
    if at_work is None:
        say(f"{folder.name} is not running.")
        return EXIT_OK
    if at_work.pid is None:
        raise UsageError(f"{folder} is in use by {at_work.name}, which may run on another machine; stop it there.")
    try:
        os.kill(at_work.pid, NOW if is_now else signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has just ended
    except PermissionError:
        raise UsageError(f"{folder} is in use by {at_work.name} of another user: stop it as that user.") from None
    say(f"Stopping {folder.name} ({at_work.name}).")
    ledger = await _wait(folder, at_work)
    plan = read_manifest(folder).plan
    done = sum(map(ledger.is_finished, plan))
    say(f"{folder.name} has stopped: {done} of {len(plan)} trials are done.")
    if done < len(plan):
        say(f"`sweep resume {as_typed(folder)}` continues with the others.")
    return EXIT_OK


async def _wait(folder: Path, at_work: Holder) -> Ledger:
    """Wait until the process has let go of the folder, and report which trials still hold devboxes."""
    reader = await anyio.to_thread.run_sync(Reader, folder)
    names = {each: scenario.name for each, scenario in read_manifest(folder).scenarios.items()}
    told, told_at = "", float("-inf")
    while await anyio.to_thread.run_sync(holder, folder) == at_work:
        await catch_up(reader)
        in_flight = [
            f"{names.get(key.scenario, key.scenario)} ({attempt.stage or Stage.START})"
            for key, attempt in reader.ledger.unreleased()
        ]
        more = f" and {len(in_flight) - NAMED} more" if len(in_flight) > NAMED else ""
        words = f"Waiting for {len(in_flight)} in flight: {', '.join(in_flight[:NAMED])}{more}."
        words = words if in_flight else "Nothing is in flight any more: it ends."
        if words != told and time.monotonic() - told_at >= REPORT_EVERY_S:
            say(words)
            told, told_at = words, time.monotonic()
        await anyio.sleep(LOOK_S)
    await catch_up(reader)
    return reader.ledger
