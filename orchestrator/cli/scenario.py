"""`sweep scenario`: one scenario at a time."""

from pathlib import Path
from typing import Annotated

import anyio
import typer

from orchestrator.cli.options import RUNS, EndpointOption, IsolationOption, RunsOption

app = typer.Typer(help="One scenario at a time.", no_args_is_help=True)


@app.command("run")
def run(
    scenario: Annotated[str, typer.Argument(help="A scenario's id, or its name in --benchmark.")],
    *,
    agent: Annotated[str, typer.Option("--agent", "-a", help="As for `sweep run`.")],
    model: Annotated[str | None, typer.Option("--model", help="The model the agent uses.")] = None,
    benchmark: Annotated[
        str, typer.Option("--benchmark", "-b", help="Where to look the scenario up: a name, an id, or a folder.")
    ] = "bugfix-mini",
    python: Annotated[Path | None, typer.Option("--python", help="The interpreter for Python agents.")] = None,
    endpoint: EndpointOption = None,
    isolation: IsolationOption = "local",
    runs: RunsOption = RUNS,
) -> None:
    """Run one scenario by itself and tell every step: start, boot, solve, score, complete."""
    from orchestrator.app import single
    from orchestrator.config import resolve

    config = resolve(
        {
            "benchmark": benchmark,
            "arms": [{"agent": agent, "model": model}],
            "attempts": 1,
            "endpoint": endpoint,
            "isolation": isolation,
            "python": python,
        },
        source="sweep scenario run",
    )
    raise typer.Exit(anyio.run(lambda: single.run(scenario, config, runs=runs)))
