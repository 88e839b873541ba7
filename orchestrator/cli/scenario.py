"""`sweep scenario`: one scenario at a time."""

from typing import Annotated

import anyio
import typer

from orchestrator.cli.launch import settings_of, variables_of
from orchestrator.cli.options import (
    RUNS,
    EndpointOption,
    EnvFileOption,
    IsolationOption,
    LockOption,
    NetworkOption,
    PythonOption,
    RunsOption,
)

app = typer.Typer(help="One scenario at a time.", no_args_is_help=True)


@app.command("run")
def run(
    scenario: Annotated[str, typer.Argument(help="A scenario's id, or its name in --benchmark.")],
    *,
    agent: Annotated[str, typer.Option("--agent", "-a", help="As for `sweep run`.")],
    model: Annotated[str | None, typer.Option("--model", help="The model the agent uses.")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As for `sweep run`.")] = None,
    benchmark: Annotated[
        str, typer.Option("--benchmark", "-b", help="Where to look the scenario up: a name, an id, or a folder.")
    ] = "bugfix-mini",
    python: PythonOption = None,
    network: NetworkOption = None,
    env_file: EnvFileOption = None,
    endpoint: EndpointOption = None,
    isolation: IsolationOption = "local",
    lock: LockOption = "file",
    runs: RunsOption = RUNS,
) -> None:
    """Run one scenario by itself and tell every step: start, boot, solve, score, complete."""
    from orchestrator.commands import run_scenario
    from orchestrator.core.config import resolve
    from orchestrator.view.console import write_by_threads

    config = resolve(
        {
            "benchmark": benchmark,
            "arms": [{"agent": agent, "model": model, "settings": settings_of(setting or ())}],
            "attempts": 1,
            "endpoint": endpoint,
            "isolation": isolation,
            "lock": lock,
            **({"network": network} if network else {}),
            "python": python,
        },
        source="sweep scenario run",
    )
    given = variables_of(env_file)
    write_by_threads()
    raise typer.Exit(anyio.run(lambda: run_scenario.run(scenario, config, runs=runs, given=given)))
