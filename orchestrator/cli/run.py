"""`sweep run`: a whole benchmark."""

from pathlib import Path
from typing import Annotated, Final

import typer

from orchestrator.cli.launch import rate_of, settings_of, start
from orchestrator.cli.options import (
    RUNS,
    DetachOption,
    DryRunOption,
    EndpointOption,
    EnvFileOption,
    IsolationChoice,
    JsonOption,
    LockChoice,
    NetworkOption,
    OnlyOption,
    PythonOption,
    RetryOption,
    RunsOption,
)

#: As `config.seconds` reads it.
Timeout = str | None
DURATION: Final = "SECONDS|10m|8h"


def run(
    benchmark: Annotated[
        str | None, typer.Argument(help="A benchmark's name or id, or a folder of scenarios. Bundled: bugfix-mini.")
    ] = None,
    *,
    agent: Annotated[
        list[str] | None,
        typer.Option(
            "--agent",
            "-a",
            help="A name (sweep agents list), NAME@VERSION, a .toml, 'command:SHELL COMMAND', file.py:Class or "
            "module:Class. Repeat it for more arms.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="The model the agents use. Repeat it for more arms.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting for the Python agents named here. Repeat it."),
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", "-k", min=1, help="Trials of each scenario.")] = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="GLOB", help="Only scenarios whose name or id matches.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="GLOB", help="No scenario whose name or id matches.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N of them.")] = None,
    skip_unsupported: Annotated[
        bool | None,
        typer.Option("--skip-unsupported", help="Leave scenarios out that cannot run here. \\[each is a failed trial]"),
    ] = None,
    devboxes: Annotated[int | None, typer.Option("--devboxes", "-n", min=1, help="Devboxes in flight. [8]")] = None,
    agents: Annotated[
        int | None, typer.Option("--agents", min=1, help="Agents working at once. \\[as many as devboxes]")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", metavar="N/s", parser=rate_of, help="HTTP requests a second. [20/s; no limit on loopback]"
        ),
    ] = None,
    attempts: Annotated[
        int | None, typer.Option("--attempts", min=1, help="Tries per trial when the world fails. [3]")
    ] = None,
    on_agent_failure: Annotated[
        str | None,
        typer.Option(
            "--on-agent-failure",
            metavar="score|fail",
            help="What to do when an agent crashes or times out. \\[score]",
        ),
    ] = None,
    scoring: Annotated[
        str | None,
        typer.Option(
            "--scoring",
            metavar="declared|separate|shared|live",
            help="Where scorers run: as each scenario says, in a fresh environment with the agent's work in it, in a "
            "new devbox over the agent's files, or beside what the agent left running. \\[declared]",
        ),
    ] = None,
    timeout_start: Annotated[Timeout, typer.Option(metavar=DURATION, help="For the run to be granted. [120]")] = None,
    timeout_boot: Annotated[Timeout, typer.Option(metavar=DURATION, help="For the devbox to run. [900]")] = None,
    timeout_prepare: Annotated[Timeout, typer.Option(metavar=DURATION, help="For the agent's install. [900]")] = None,
    timeout_solve: Annotated[
        Timeout, typer.Option(metavar=DURATION, help="For the agent to work. \\[the scenario's, else 3600]")
    ] = None,
    timeout_gather: Annotated[Timeout, typer.Option(metavar=DURATION, help="For files to come home. [300]")] = None,
    timeout_score: Annotated[
        Timeout, typer.Option(metavar=DURATION, help="For the scorers. \\[the scenario's, else 1800]")
    ] = None,
    timeout_release: Annotated[Timeout, typer.Option(metavar=DURATION, help="For the devbox to go away. [120]")] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            metavar="07:00|8h|DATE",
            help="Start no trial after this time of day, so long from now, or this moment, which is to come.",
        ),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(metavar="USD", help="Start no trial once agents report to have spent so much, in all attempts."),
    ] = None,
    max_devbox_hours: Annotated[
        float | None,
        typer.Option(metavar="HOURS", help="Start no trial once devboxes have been up for so long, all together."),
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Start no trial once so many have failed.")
    ] = None,
    drain: Annotated[
        Timeout,
        typer.Option(
            metavar=DURATION,
            help="How long those in flight may go on after a stop; then they are ended, and run again by a resume. "
            "\\[to their end after Ctrl-C at a terminal or at the end of a budget, 5m after any other signal]",
        ),
    ] = None,
    same_failures: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Stop when so many devboxes, or installs of one agent, fail in a row, or when an agent has crashed in "
            "each of so many trials in the same way and reached nothing. [10]",
        ),
    ] = None,
    unreachable: Annotated[
        Timeout, typer.Option(metavar=DURATION, help="Stop when the endpoint has granted no run for so long. [30m]")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The sweep's folder below --runs; an existing one is resumed.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="A sweep.toml; options given here override it.")
    ] = None,
    python: PythonOption = None,
    network: NetworkOption = None,
    env_file: EnvFileOption = None,
    endpoint: EndpointOption = None,
    isolation: IsolationChoice = None,
    lock: LockChoice = None,
    retry: RetryOption = None,
    only: OnlyOption = None,
    dry_run: DryRunOption = False,
    detach: DetachOption = False,
    runs: RunsOption = RUNS,
    json: JsonOption = False,
) -> None:
    """Run agents over a benchmark and score every scenario.

    Results stream to runs/<sweep>/results.jsonl. Running the same command again, or one for more of the same, goes on
    with a sweep that is unfinished; one for less, or after a finished sweep, begins a new sweep.

    Ctrl-C: no new trials, those in flight finish. Again: they are ended, in 10 s.
    A third time leaves at once. No stop fails a trial: running it again goes on.
    A used up budget (--deadline, --max-...) stops as one Ctrl-C does, with status
    1; running the sweep again with more of it goes on.

    Examples:
      sweep run bugfix-mini --agent oracle

      sweep run bugfix-mini --agent 'command:my-agent --task "$SWEEP_PROBLEM_FILE"' --trials 3

      sweep run ./my-benchmark --agent ./my_agent.py:MyAgent --devboxes 20

    """
    from orchestrator.core.config import load_file

    typed = dict(locals())
    settings = load_file(config) if config else {}
    if agent:
        models: list[str | None] = [*model] if model else [None]
        chosen = settings_of(setting or ())
        settings["arms"] = [{"agent": each, "model": which, "settings": chosen} for each in agent for which in models]
    elif setting:
        raise typer.BadParameter(
            "is for agents named with --agent; others have their settings in the file", param_hint="--set"
        )
    start(settings, typed, source=config or "sweep run")
