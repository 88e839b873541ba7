"""`sweep run`: a whole benchmark."""

from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from orchestrator.cli.options import RUNS, EndpointOption, IsolationOption, JsonOption, RunsOption, style

Timeout = float | None


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
            help="oracle, nop, 'command:SHELL COMMAND', module:Class, file.py:Class, a .toml; repeat it for more arms.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="The model the agents use. Repeat it for more arms.")
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", "-k", min=1, help="Trials of each scenario.")] = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="GLOB", help="Only scenarios whose name or id matches.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="GLOB", help="No scenario whose name or id matches.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N of them.")] = None,
    devboxes: Annotated[int | None, typer.Option("--devboxes", "-n", min=1, help="Devboxes in flight. [8]")] = None,
    agents: Annotated[
        int | None, typer.Option("--agents", min=1, help="Agents working at once. [as many as devboxes]")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option("--rate", metavar="N/s", help="HTTP requests a second. [20/s; no limit on loopback]"),
    ] = None,
    attempts: Annotated[
        int | None, typer.Option("--attempts", min=1, help="Tries per trial when the world fails. [3]")
    ] = None,
    on_agent_failure: Annotated[
        str | None,
        typer.Option(
            "--on-agent-failure",
            metavar="score|fail",
            help="What to do when an agent crashes or times out. [score]",
        ),
    ] = None,
    timeout_start: Annotated[Timeout, typer.Option(metavar="SECONDS", help="For the run to be granted. [120]")] = None,
    timeout_boot: Annotated[Timeout, typer.Option(metavar="SECONDS", help="For the devbox to run. [900]")] = None,
    timeout_prepare: Annotated[Timeout, typer.Option(metavar="SECONDS", help="For the agent's install. [900]")] = None,
    timeout_solve: Annotated[
        Timeout, typer.Option(metavar="SECONDS", help="For the agent to work. [the scenario's, else 3600]")
    ] = None,
    timeout_gather: Annotated[Timeout, typer.Option(metavar="SECONDS", help="For files to come home. [300]")] = None,
    timeout_score: Annotated[
        Timeout, typer.Option(metavar="SECONDS", help="For the scorers. [the scenario's, else 1800]")
    ] = None,
    timeout_release: Annotated[
        Timeout, typer.Option(metavar="SECONDS", help="For the devbox to go away. [120]")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The sweep's folder below --runs; an existing one is resumed.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="A sweep.toml; options given here override it.")
    ] = None,
    python: Annotated[
        Path | None, typer.Option("--python", help="The interpreter for Python agents. [the active environment's]")
    ] = None,
    endpoint: EndpointOption = None,
    isolation: IsolationOption = "local",
    runs: RunsOption = RUNS,
    json: JsonOption = False,
) -> None:
    """Run agents over a benchmark and score every scenario.

    Results stream to runs/<sweep>/results.jsonl. Running the same command again goes on where it was.

    Examples:
      sweep run bugfix-mini --agent oracle

      sweep run bugfix-mini --agent 'command:my-agent --task "$SWEEP_PROBLEM_FILE"' --trials 3

      sweep run ./my-benchmark --agent ./my_agent.py:MyAgent --devboxes 20

    """
    from orchestrator.app import sweeps
    from orchestrator.config import load_file, resolve

    settings: dict[str, Any] = load_file(config) if config else {}
    given: dict[str, Any] = {
        "benchmark": benchmark,
        "trials": trials,
        "include": include,
        "exclude": exclude,
        "limit": limit,
        "devboxes": devboxes,
        "agents": agents,
        "rate": _rate(rate),
        "attempts": attempts,
        "on_agent_failure": on_agent_failure,
        "endpoint": endpoint,
        "isolation": isolation if isolation != "local" else None,
        "python": python,
        "name": name,
    }
    settings |= {key: value for key, value in given.items() if value is not None and value != []}
    timeouts = {
        "start": timeout_start,
        "boot": timeout_boot,
        "prepare": timeout_prepare,
        "solve": timeout_solve,
        "gather": timeout_gather,
        "score": timeout_score,
        "release": timeout_release,
    }
    settings["timeouts"] = settings.get("timeouts", {}) | {
        key: value for key, value in timeouts.items() if value is not None
    }
    if agent:
        models: list[str | None] = [*model] if model else [None]
        settings["arms"] = [{"agent": each, "model": which} for each in agent for which in models]
    resolved = resolve(settings, source=str(config) if config else "sweep run")
    raise typer.Exit(anyio.run(lambda: sweeps.run(resolved, runs=runs, style=style(as_json=json), file=config)))


def _rate(text: str | None) -> float | None:
    """`20/s`, `20` or `300/min` as requests a second."""
    if text is None:
        return None
    number, _, unit = text.partition("/")
    seconds = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0}.get(unit.strip())
    try:
        rate = float(number) / seconds if seconds else 0.0
    except ValueError:
        rate = 0.0
    if rate <= 0:
        raise typer.BadParameter(f"{text!r} is not a rate; write for example 20/s or 300/min", param_hint="--rate")
    return rate
