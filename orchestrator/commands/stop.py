"""Ending a sweep of this machine that runs elsewhere: detached, in another terminal, under a service manager."""

import os
import signal
import time
from pathlib import Path
from typing import Final

import anyio

from orchestrator.commands.attach import LOOK, catch_up
from orchestrator.commands.exit_codes import EXIT_OK
from orchestrator.core.errors import UsageError
from orchestrator.core.ledger import Ledger
from orchestrator.core.stages import Stage
from orchestrator.engine.shutdown import NOW
from orchestrator.rundir.journal import Reader
from orchestrator.rundir.manifest import read_manifest
from orchestrator.rundir.sweep_index import Holder, as_typed, holder
from orchestrator.view.console import say

#: Seconds between two words about what is waited for, and how many trials are named.
TELL_EVERY: Final = 2.0
NAMED: Final = 5


async def run(folder: Path, *, is_now: bool) -> int:
    """Ask the process at work in a folder to stop, and wait until it has; returns the exit code.

    Raises UsageError if the process is not one of this machine that we may signal.
    """
    at_work = holder(folder)
    if at_work is None:
        say(f"{folder.name} is not running.")
        return EXIT_OK
    _signal(folder, at_work, NOW if is_now else signal.SIGTERM)
    say(f"Stopping {folder.name} ({at_work.name}).")
    ledger = await _wait(folder, at_work)
    plan = read_manifest(folder).plan
    done = sum(map(ledger.is_finished, plan))
    say(f"{folder.name} has stopped: {done} of {len(plan)} trials are done.")
    if done < len(plan):
        say(f"`sweep resume {as_typed(folder)}` goes on with the others.")
    return EXIT_OK


def _signal(folder: Path, at_work: Holder, number: signal.Signals) -> None:
    if at_work.pid is None:
        raise UsageError(
            f"{folder} is in use by {at_work.name}, which is not surely one of this machine: stop it there."
        )
    try:
        os.kill(at_work.pid, number)
    except ProcessLookupError:
        return  # it has just ended
    except PermissionError:
        raise UsageError(f"{folder} is in use by {at_work.name} of another user: stop it as that user.") from None


async def _wait(folder: Path, at_work: Holder) -> Ledger:
    """Wait until the process has let go of the folder, telling what it waits for; returns how the sweep stands."""
    reader = await anyio.to_thread.run_sync(Reader, folder)
    names = {each: scenario.name for each, scenario in read_manifest(folder).scenarios.items()}
    told, told_at = "", float("-inf")
    while await anyio.to_thread.run_sync(holder, folder) == at_work:
        await catch_up(reader)
        words = _in_flight(reader.ledger, names)
        if words != told and time.monotonic() - told_at >= TELL_EVERY:
            say(words)
            told, told_at = words, time.monotonic()
        await anyio.sleep(LOOK)
    await catch_up(reader)
    return reader.ledger


def _in_flight(ledger: Ledger, names: dict[str, str]) -> str:
    """Which trials hold a devbox, and what each is at."""
    under_way = [(key, attempt.stage or Stage.START) for key, attempt in ledger.unreleased()]
    if not under_way:
        return "Nothing is in flight any more: it ends."
    shown = [f"{names.get(key.scenario, key.scenario)} ({stage})" for key, stage in under_way[:NAMED]]
    more = f" and {len(under_way) - NAMED} more" if len(under_way) > NAMED else ""
    return f"Waiting for {len(under_way)} in flight: {', '.join(shown)}{more}."
