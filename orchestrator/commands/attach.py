"""A sweep of this machine seen from outside: what it has done so far, and what it does until it ends.

Everything is read from its folder without its lock, so that an observer never disturbs the process at work.
"""

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio

from orchestrator.commands import exit_codes
from orchestrator.core.config import BarsConfig, Typed, validated
from orchestrator.core.ledger import Ledger
from orchestrator.core.records import TrialKey
from orchestrator.core.stages import Stage
from orchestrator.rundir.files import MANIFEST
from orchestrator.rundir.journal import Reader, now
from orchestrator.rundir.manifest import read_manifest
from orchestrator.rundir.sweep_index import as_typed, holder
from orchestrator.view import console
from orchestrator.view.formats import Format
from orchestrator.view.overview import budgets, pause_notice
from orchestrator.view.progress import Progress

#: The time between two looks at the folder.
LOOK_S: Final = 0.2


@dataclass(slots=True, kw_only=True)
class JournalStatus:
    """Implements `view.progress.Status` for a process of which the folder alone can be read."""

    folder: Path
    ledger: Ledger
    config: Mapping[str, Any]
    is_over: bool
    #: The time of the manifest that `config` is of.
    read_at: int = 0
    is_asked_to_stop: bool = False
    is_ending: bool = False
    in_flight: Mapping[Stage, int] = field(default_factory=dict)
    longest_left: float = 0.0
    is_reduced: bool = False

    def refresh(self) -> None:
        """Read the settings again if an order has changed them. Blocks."""
        written_at = (self.folder / MANIFEST).stat().st_mtime_ns
        if written_at != self.read_at:
            self.config, self.read_at = read_manifest(self.folder).config, written_at

    @property
    def phase(self) -> str:
        return "running" if self.ledger.paused is None else "paused"

    @property
    def troubles(self) -> Sequence[str]:
        notice = pause_notice(self.ledger, self.folder)
        return () if notice is None else (notice,)

    @property
    def trials(self) -> Iterable[TrialKey]:
        return self.ledger.held

    @property
    def devboxes(self) -> int:
        limit: int = self.config["devboxes"]
        return limit

    @property
    def spent(self) -> Sequence[str]:
        return budgets(self.config, self.ledger, now())

    @property
    def stop(self) -> str | None:
        if not self.is_over:
            return None
        return self.ledger.ended.partition(": ")[2] if self.ledger.ended else "its process ended without a word"


async def run(folder: Path, *, given: Mapping[str, Typed], output: Format) -> int:
    """Follow a sweep to its end, or summarize one that is not running; returns the sweep's exit code.

    `given` are the bars for it that were typed, by their keys; others are those of the sweep. Raises UsageError for
    wrong ones, BrokenPipeError when the reader of the output is gone.
    """
    manifest, at_work = read_manifest(folder), holder(folder)
    bars = validated(
        BarsConfig,
        {
            **{name: manifest.config[name] for name in BarsConfig.model_fields if name in manifest.config},
            **{name: each.value for name, each in given.items() if name in BarsConfig.model_fields},
        },
        source=folder.name,
        typed=given,
    )
    plan, reader = manifest.plan, await anyio.to_thread.run_sync(Reader, folder)
    ledger = reader.ledger
    state = JournalStatus(folder=folder, ledger=ledger, config=manifest.config, is_over=at_work is None)
    progress = Progress(
        ledger=ledger,
        plan=plan,
        state=state,
        folder=folder,
        output=output,
        opening=f"Following {folder.name} ({at_work.name})" if at_work else f"{folder.name} is not running",
    )
    if at_work and not await _follow(folder, reader, state, progress):
        typed = as_typed(folder)
        words = f"{folder.name} keeps running: `sweep attach {typed}` follows it, `sweep stop {typed}` ends it."
        console.show(())
        console.say(words, to_stderr=output.is_for_programs)
        return exit_codes.EXIT_INTERRUPTED
    state.is_over = True
    progress.finish()
    ended = ledger.ended or ""
    trials = filter(ledger.is_finished, plan) if ended.endswith(exit_codes.NOT_SELECTED) else plan
    is_stopped = ended.startswith(exit_codes.INTERRUPTED)
    code, reasons = exit_codes.verdict([*trials], plan, ledger, bars, is_stopped=is_stopped)
    progress.say(*reasons)
    return code


async def _follow(folder: Path, reader: Reader, state: JournalStatus, progress: Progress) -> bool:
    """Show the sweep until it ends; False if the person at the screen leaves before."""
    async with anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

            async def leave() -> None:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

            tasks.start_soon(leave)
            tasks.start_soon(progress.show)
            while await anyio.to_thread.run_sync(holder, folder):
                await catch_up(reader)
                await anyio.to_thread.run_sync(state.refresh)
                if not console.is_read():
                    raise BrokenPipeError
                await anyio.sleep(LOOK_S)
            await catch_up(reader)  # what was written between the last look and the end
        tasks.cancel_scope.cancel()
        return True
    return False


async def catch_up(reader: Reader) -> None:
    """Apply the events that were written since the last time."""
    for event in await anyio.to_thread.run_sync(reader.read):
        reader.ledger.apply(event)
