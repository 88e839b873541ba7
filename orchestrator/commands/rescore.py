"""`sweep rescore`: the scorers again, over the work that was kept; no agent runs, and nothing is paid."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from orchestrator.agentkit.kept_work import KeptWork
from orchestrator.commands import run_sweep
from orchestrator.core import events
from orchestrator.core.config import SweepConfig
from orchestrator.core.errors import UsageError
from orchestrator.core.plan import select
from orchestrator.core.printable import counted, printable
from orchestrator.core.records import Flag, TrialKey
from orchestrator.engine.context import Arm
from orchestrator.engine.rescoring import why_not
from orchestrator.rundir.files import JOURNAL
from orchestrator.rundir.journal import Reader, read_events
from orchestrator.rundir.manifest import Manifest, read_manifest
from orchestrator.rundir.results_file import Row, read_results
from orchestrator.view.console import print_record, say
from orchestrator.view.formats import Format

NOTHING: Final[Mapping[TrialKey, Row]] = {}


async def run(
    folder: Path, config: SweepConfig, only: Sequence[str], output: Format, *, is_live_taken: bool = False
) -> int:
    """Score finished trials again, list what changed, and return the exit code. Raises UsageError.

    `only` are names, ids or globs of scenarios; without one it is all of them. `config` is the sweep's, perhaps with a
    newer benchmark. What an earlier call left over is scored in any case. With `is_live_taken`, trials that were scored
    live are, too: without the processes that were there.
    """
    manifest = await anyio.to_thread.run_sync(read_manifest, folder)
    wanted = {
        each.id for each in select(manifest.plan.scenarios, include=only, exclude=(), limit=None, option="--only")
    }
    rows = {_key(row): row for row in await anyio.to_thread.run_sync(read_results, folder)}
    left = await anyio.to_thread.run_sync(left_over, folder)
    chosen = [key for key in rows if key.scenario in wanted and key in manifest.plan and key not in left]
    judge = partial(why_not, folder=folder, is_live_taken=is_live_taken)
    reasons = {key: await anyio.to_thread.run_sync(judge, rows[key]) for key in chosen}
    kept = {key: rows[key] for key, reason in reasons.items() if not reason}
    spoilt = {key: rows[key] for key, reason in reasons.items() if reason}
    if not kept and not left:
        why = "; ".join(f"{rows[key]['scenario_name']}: {reason}" for key, reason in list(reasons.items())[:3])
        raise UsageError(f"{folder.name} has no finished trial that can be scored again. {why}".rstrip())
    for key, reason in reasons.items():
        if reason:
            say(f"Left as it is: {_name(rows[key], manifest)}: {reason}.", to_stderr=output.is_for_programs)
    return await _score(folder, config, manifest, kept, left, output, spoilt)


async def finish(folder: Path, config: SweepConfig, output: Format) -> int:
    """Score what an earlier call left over. As `run`."""
    manifest = await anyio.to_thread.run_sync(read_manifest, folder)
    left = await anyio.to_thread.run_sync(left_over, folder)
    return await _score(folder, config, manifest, {}, left, output)


def left_over(folder: Path) -> Mapping[TrialKey, Row]:
    """Return the results whose work was to be scored again and is not yet, by trial. Blocking."""
    trials = Reader(folder).ledger.trials
    return {key: trial.kept for key, trial in trials.items() if trial.kept and trial.outcome is None}


def is_all_that_is_owed(folder: Path, manifest: Manifest) -> bool:
    """Tell if nothing of a sweep is left to do but to score again what an earlier call left over. Blocking."""
    left, done = left_over(folder), {_key(row) for row in read_results(folder)}
    return bool(left) and all(key in left or key in done for key in manifest.plan)


async def _score(
    folder: Path,
    config: SweepConfig,
    manifest: Manifest,
    kept: Mapping[TrialKey, Row],
    left: Mapping[TrialKey, Row],
    output: Format,
    spoilt: Mapping[TrialKey, Row] = NOTHING,
) -> int:
    rescoring = run_sweep.Rescoring(
        arms=_arms(manifest, config), kept=kept, left=frozenset(left), spoilt=spoilt, plan=manifest.plan
    )
    status = await run_sweep.run(config, runs=folder.parent, output=output, rescoring=rescoring)
    open_ = await anyio.to_thread.run_sync(left_over, folder)
    now = {_key(row): row for row in await anyio.to_thread.run_sync(read_results, folder)}
    before = {**left, **kept}
    pairs = [(row, now[key]) for key, row in before.items() if key in now and key not in open_]
    whys = await anyio.to_thread.run_sync(_whys, folder)
    _tell(pairs, len(before), whys, manifest, output)
    return status


def _arms(manifest: Manifest, config: SweepConfig) -> Mapping[str, Arm]:
    """Stand for the sweep's arms: the same by what identifies them, and without their agents."""
    known = manifest.identity["arms"]
    return {
        arm.name: Arm(
            config=arm.model_copy(update={"model": known[arm.name]["model"]}),
            agent=KeptWork(name=arm.agent, digest=known[arm.name]["digest"], model=known[arm.name]["model"]),
        )
        for arm in config.arms
    }


def _key(row: Row) -> TrialKey:
    return TrialKey(row["scenario"], row["arm"], row["trial"])


def _name(row: Row, manifest: Manifest) -> str:
    arm = f" {row['arm']}" if len(manifest.config["arms"]) > 1 else ""
    number = f" #{row['trial']}" if manifest.config["trials"] > 1 else ""
    return printable(f"{row['scenario_name']}{arm}{number}")


def _whys(folder: Path) -> Mapping[TrialKey, str]:
    """Say why the last attempt of each trial that was opened again ended without a score, if it did. Blocking."""
    whys: dict[TrialKey, str] = {}
    for event, _ in read_events(folder / JOURNAL):
        if isinstance(event, events.TrialReopened):
            whys.pop(TrialKey.parse(event.trial), None)
        elif isinstance(event, events.AttemptEnded):
            whys[TrialKey.parse(event.trial)] = event.failure["message"]
    return whys


def _tell(
    pairs: Sequence[tuple[Row, Row]], asked: int, whys: Mapping[TrialKey, str], manifest: Manifest, output: Format
) -> None:
    """List the trials whose score is another now, and those that could not be scored again."""
    failed = [new for _, new in pairs if Flag.RESCORE_FAILED in new["flags"]]
    again = [(old, new) for old, new in pairs if new not in failed]
    changed = [(old, new) for old, new in again if old["score"] != new["score"]]
    partly = sum(Flag.RESCORED_IN_PART in new["flags"] for _, new in again)
    if output.is_for_programs:
        for old, new in pairs:
            about = {key: new[key] for key in ("scenario", "scenario_name", "arm", "trial", "score", "flags")}
            print_record({"event": "rescored", **about, "score_before": old["score"]}, output)
        return
    for old, new in changed:
        say(f"  {_name(new, manifest)}: {_shown(old['score'])} -> {_shown(new['score'])}")
    for new in failed:
        why = f": {printable(whys[_key(new)])}" if _key(new) in whys else ""
        say(f"  {_name(new, manifest)}: could not be scored again, and keeps {_shown(new['score'])}{why}")
    say(f"{len(again)} of {counted(asked, 'trial')} scored again: {counted(len(changed), 'score')} changed.")
    if partly:
        say(f"Without what agents left running, or changed where nothing was kept: {partly}.")


def _shown(score: float | None) -> str:
    return "no score" if score is None else f"{score:.3f}"
