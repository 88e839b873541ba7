"""`sweep list`, `show`, `status`, `attach`, `stop`, `logs` and others: the commands for sweeps that are there."""

from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from orchestrator.cli import options
from orchestrator.core.config import BarsConfig, EndpointConfig
from orchestrator.view.formats import Format


@options.takes_table_format
def list_sweeps(*, runs: options.Runs = options.RUNS, output: Format) -> None:
    """List the sweeps, newest first: how far each arm is, its mean with the 95 % interval, its cost."""
    from orchestrator.commands import list_sweeps

    list_sweeps.run(runs, output=output)


@options.takes_table_format
def show(
    name: options.SweepName = None,
    scenario: Annotated[
        str | None, typer.Argument(metavar="SCENARIO", help="A scenario's name or id, to see its trials.")
    ] = None,
    *,
    arm: Annotated[str | None, typer.Option("--arm", metavar="ARM", help="Only this arm. \\[default: all]")] = None,
    trial: Annotated[
        int | None, typer.Option("--trial", metavar="N", min=1, help="Only this trial. \\[default: all]")
    ] = None,
    runs: options.Runs = options.RUNS,
    output: Format,
) -> None:
    """Show what a sweep came to, by default the newest: scenarios by arm, failures, what was slow, costly or flaky.

    With SCENARIO show its trials. Of a single one show all: stages, steps, scorers, patch, network, files, last words.

    Examples:
      sweep show my-sweep

      sweep show my-sweep billing-month-end --arm oracle --trial 2

      sweep show my-sweep --csv

    """
    from orchestrator.commands import show
    from orchestrator.rundir.sweep_index import find, find_newest

    folder = find(runs, name) if name else find_newest(runs)
    show.run(folder, scenario, arm=arm, trial=trial, output=output)


@options.takes_table_format
def failures(name: options.SweepName = None, *, runs: options.Runs = options.RUNS, output: Format) -> None:
    """List the trials of a sweep that failed, by default of the newest, with reasons and the command that shows each.

    Trials whose last attempt failed and that are tried again are listed too.
    """
    from orchestrator.commands import failures
    from orchestrator.rundir.sweep_index import find, find_newest

    failures.run(find(runs, name) if name else find_newest(runs), output=output)


@options.takes_table_format
def status(name: options.SweepName = None, *, runs: options.Runs = options.RUNS, output: Format) -> None:
    """Show how far a sweep is, by default the newest, and each trial in flight: stage, age, silence, last line.

    Only the folder is read, so this works on another machine, and beside the process at work. A trial that has been
    silent for long may be stuck.
    """
    from orchestrator.commands import status
    from orchestrator.rundir.sweep_index import find, find_newest

    status.run(find(runs, name) if name else find_newest(runs), output=output)


@options.takes_table_format
def compare(
    sweeps: Annotated[
        list[str],
        typer.Argument(metavar="SWEEP[:ARM]…", help="Sweeps with all their arms, or one arm of a sweep each."),
    ],
    *,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare also what was scored otherwise, or scenarios that have changed.")
    ] = False,
    runs: options.Runs = options.RUNS,
    output: Format,
) -> None:
    """Compare arms with each other, of one sweep or of several, paired by scenario.

    Each later arm is compared with each earlier one: the difference with its 95 % interval, tests of whether it is
    chance, the scenarios that were gained and lost, cost, time, and how many scenarios and trials it takes to see such
    a difference. `sweep docs comparison` explains the numbers.

    Examples:
      sweep compare yesterday tonight

      sweep compare my-sweep

      sweep compare yesterday:mini tonight:mini tonight:oracle --md

    """
    from orchestrator.commands import compare

    compare.run(runs, sweeps, anyway=anyway, output=output)


@options.takes_format
@options.takes_settings(*BarsConfig.model_fields, is_resume=True)
def attach(
    context: typer.Context,
    name: options.SweepName = None,
    *,
    runs: options.Runs = options.RUNS,
    output: Format,
    **settings: Any,
) -> None:
    """Follow a running sweep of this machine: by default the only one.

    Ctrl-C leaves the sweep running. When it ends, its summary is printed and its exit code is this command's. The
    summary of a sweep that is not running is printed at once.
    """
    from orchestrator.commands import attach
    from orchestrator.rundir.sweep_index import find, find_running

    folder = find(runs, name) if name else find_running(runs)
    given = options.typed(context, settings)
    options.end_with(lambda: attach.run(folder, given=given, output=output), output)


def stop(
    name: options.SweepName = None,
    *,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for running trials: end the agents, release the devboxes.")
    ] = False,
    runs: options.Runs = options.RUNS,
) -> None:
    """Stop a running sweep of this machine: by default the only one. Return when it has ended.

    It starts no new trials. Running trials may finish within the sweep's --drain time (5 minutes by default).
    Unfinished trials stay pending; `sweep resume` continues them.
    """
    from orchestrator.commands import stop
    from orchestrator.rundir.sweep_index import find, find_running

    folder = find(runs, name) if name else find_running(runs)
    options.end_with(lambda: stop.run(folder, is_now=now))


def export(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The sweep's name, or its folder.")],
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORM",
            help="csv, parquet: a table; jsonl: the lines of results.jsonl; junit: XML for CI; swebench: predictions "
            "for SWE-bench's own evaluation. Folders: harbor: a job for Harbor's viewer; atif: trajectories; "
            "huggingface-folder: a data set. Plug-ins add more.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE|DIR", help="Where to write. \\[default: standard output]"),
    ] = None,
    arm: Annotated[str | None, typer.Option("--arm", metavar="ARM", help="Only this arm. \\[default: all]")] = None,
    trial: Annotated[
        int | None, typer.Option("--trial", metavar="N", min=1, help="Only this trial. \\[default: all]")
    ] = None,
    runs: options.Runs = options.RUNS,
) -> None:
    """Write results in a form that another tool reads. A sweep that still runs gives what it has by now.

    Examples:
      sweep export my-sweep --to csv -o results.csv

      sweep export my-sweep --to junit -o junit.xml

      sweep export my-sweep --to swebench --trial 1 -o predictions.jsonl

      sweep export my-sweep --to harbor -o jobs/my-sweep

    """
    from orchestrator.commands import export
    from orchestrator.rundir.sweep_index import find

    export.run(find(runs, name), to, arm=arm, trial=trial, target=output)


def logs(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The sweep's name, or its folder.")],
    scenario: Annotated[
        str | None, typer.Argument(metavar="SCENARIO", help="A scenario's name or id. Omit it to list every attempt.")
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the trial has ended.")] = False,
    arm: Annotated[str | None, typer.Option("--arm", metavar="ARM", help="The arm. \\[default: the only one]")] = None,
    trial: Annotated[int, typer.Option("--trial", metavar="N", min=1, help="The trial.")] = 1,
    attempt: Annotated[
        int | None, typer.Option("--attempt", metavar="K", min=1, help="The attempt. \\[default: the newest]")
    ] = None,
    step: Annotated[
        str | None,
        typer.Option("--step", metavar="NAME", help="The step, of a scenario of several. \\[default: the newest]"),
    ] = None,
    file: Annotated[
        str, typer.Option("--file", metavar="FILE", help="Another file: patch.diff, devbox.log, trajectory.json …")
    ] = "agent.log",
    raw: Annotated[
        bool, typer.Option("--raw", help="Print control characters to a terminal too, which then obeys the agent.")
    ] = False,
    runs: options.Runs = options.RUNS,
) -> None:
    """Print an agent's output verbatim, with secrets masked.

    On a terminal, colors are kept and other control characters are shown as escapes, unless --raw is given. With -f,
    print as the agent works, in every further attempt too, until the trial has a result or its sweep has ended.

    Examples:
      sweep logs my-sweep

      sweep logs my-sweep billing-month-end -f

      sweep logs my-sweep billing-month-end --file patch.diff | git apply

    """
    from orchestrator.commands import logs
    from orchestrator.rundir.sweep_index import find

    query = logs.LogQuery(arm=arm, trial=trial, attempt=attempt, step=step, file=file)
    anyio.run(lambda: logs.run(find(runs, name), scenario, query, is_followed=follow, is_raw=raw))


@options.takes_format
@options.takes_settings("endpoint")
def reap(
    context: typer.Context,
    *,
    sweep: Annotated[
        str | None,
        typer.Option("--sweep", metavar="ID", help="List and release only what belongs to this sweep, by id or name."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Release without a question.")] = False,
    runs: options.Runs = options.RUNS,
    output: Format,
    **settings: Any,
) -> None:
    """List what sweeps have on an endpoint - runs, devboxes, benchmark runs - and release what nobody uses.

    Release what belongs to sweeps in --runs that no process is running. Ask first on a terminal; elsewhere --yes is
    needed. An unfinished sweep may still want what it has: an agent may be working in its devbox, and `sweep resume`
    would wait for it. A resume runs released trials again. Results that are there already are kept.

    A sweep whose folder is not in --runs may be in use by another machine. It is listed, and released with --sweep ID
    --yes only. Devboxes and runs that belong to no sweep are never touched. Without --endpoint, the running embedded
    service of --runs is used.
    """
    from orchestrator.commands import reap

    endpoint = options.settings_of(context, settings, EndpointConfig).endpoint
    raise typer.Exit(anyio.run(lambda: reap.run(endpoint, runs=runs, sweep=sweep, is_sure=yes, output=output)))


def repair(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The sweep's folder, such as runs/my-sweep.")],
) -> None:
    """Keep every readable line of a damaged journal, set the damaged bytes aside in a file, and report the loss.

    Results that the journal has lost are taken from results.jsonl, if they are there. `sweep resume` then runs the
    trials again whose results are lost.
    """
    from orchestrator.core.printable import counted
    from orchestrator.rundir import repair
    from orchestrator.view.console import say

    lost = repair.repair(folder)
    if lost is None:
        say(f"{folder}: nothing is damaged.")
        return
    if lost.file is not None:
        say(f"{folder}: set {counted(lost.lines, 'damaged line')} ({lost.bytes:,} bytes) aside in {lost.file}.")
    if lost.restored:
        say(f"{folder}: took {counted(lost.restored, 'result')} that the journal had lost from results.jsonl.")
    if lost.trials:
        say(f"They spoke of {', '.join(lost.trials)}.")
