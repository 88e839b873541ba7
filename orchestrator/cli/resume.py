"""`sweep resume`: a sweep that is not finished, or something of it once more."""

from pathlib import Path
from typing import Any

import anyio
import typer

from orchestrator.cli.launch import start
from orchestrator.cli.options import RUNS, JsonOption, RunsOption, SweepArgument, borrowing, style
from orchestrator.cli.run import run

#: What tells one sweep from another cannot change; as it is typed.
FIXED = {
    "agent": "--agent",
    "model": "--model",
    "setting": "--set",
    "on_agent_failure": "--on-agent-failure",
    "scoring": "--scoring",
    "network": "--network",
    "isolation": "--isolation",
}
#: The manifest has it, or the folder is known.
KNOWN = ("benchmark", "python", "name", "config")
#: What changes nothing of a finished sweep.
IDLE = ("endpoint", "detach", "env_file", "lock")


@borrowing(run, but=KNOWN, hidden=FIXED)
def resume(name: SweepArgument = None, *, runs: RunsOption = RUNS, json: JsonOption = False, **options: Any) -> None:
    """Go on with a sweep: by default the newest unfinished one.

    Everything is as its manifest says, keys are read from the environment as before, and what is given here changes
    from now on. Its agents, models and scoring cannot change: results of two kinds do not belong together. A finished
    sweep prints its summary.

    Examples:
      sweep resume

      sweep resume my-sweep --devboxes 40 --trials 5

      sweep resume my-sweep --retry DevboxLost,StageTimeout --dry-run

      sweep resume my-sweep --only failed

    """
    from orchestrator.commands import attach
    from orchestrator.core.errors import UsageError
    from orchestrator.rundir.manifest import read_manifest
    from orchestrator.rundir.sweep_index import find, find_unfinished, is_finished
    from orchestrator.view.console import write_by_threads

    fixed = [option for name, option in FIXED.items() if options.pop(name)]
    if fixed:
        raise UsageError(
            f"{fixed[0]} is part of what a sweep is, and a resume does not change it: "
            f"leave it out, or start another sweep with `sweep run … {fixed[0]} …`."
        )
    folder = find(runs, name) if name else find_unfinished(runs)
    manifest = read_manifest(folder)
    is_changed = any(value for option, value in options.items() if option not in IDLE)
    if is_finished(folder, manifest) and not is_changed:
        write_by_threads(as_json=json)
        raise typer.Exit(anyio.run(lambda: attach.run(folder, style=style(as_json=json))))
    typed = {**options, "runs": folder.parent, "json": json}
    settings = manifest.config | {"name": folder.name}
    start(settings, typed, source=f"sweep resume {folder.name}", folder=Path(manifest.started_in))
