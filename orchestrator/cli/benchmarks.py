"""`sweep benchmarks`: what there is to run."""

from typing import Annotated

import anyio
import typer

from orchestrator.cli.options import RUNS, EndpointOption, IsolationOption, JsonOption, LockOption, RunsOption

app = typer.Typer(help="What there is to run.", no_args_is_help=True)


@app.command("list")
def list_(
    *,
    endpoint: EndpointOption = None,
    isolation: IsolationOption = "local",
    lock: LockOption = "file",
    runs: RunsOption = RUNS,
    json: JsonOption = False,
) -> None:
    """List the benchmarks: the bundled ones, or an endpoint's."""
    from orchestrator.commands import listing

    anyio.run(lambda: listing.benchmarks(endpoint=endpoint, isolation=isolation, runs=runs, lock=lock, as_json=json))


@app.command("show")
def show(
    benchmark: Annotated[str, typer.Argument(help="A name, an id, or a folder of scenarios.")],
    *,
    endpoint: EndpointOption = None,
    isolation: IsolationOption = "local",
    lock: LockOption = "file",
    runs: RunsOption = RUNS,
    json: JsonOption = False,
) -> None:
    """List a benchmark's scenarios with their ids and time limits."""
    from orchestrator.commands import listing

    anyio.run(
        lambda: listing.scenarios(benchmark, endpoint=endpoint, isolation=isolation, runs=runs, lock=lock, as_json=json)
    )
