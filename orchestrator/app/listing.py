"""Benchmarks and their scenarios, listed for people or programs."""

import sys
from pathlib import Path
from typing import Final

import orjson
from rich.console import Console
from rich.table import Table

from orchestrator.app import BUNDLED, places
from orchestrator.model import ScenarioSummary

#: Columns of a table where there is no terminal to measure.
WIDEST: Final = 1000


async def benchmarks(*, endpoint: str | None, isolation: str, runs: Path, as_json: bool) -> None:
    """List every benchmark of the endpoint, or of the embedded service."""
    place = places.Where(endpoint=endpoint, folders=(BUNDLED,), isolation=isolation, runs=runs)
    async with places.open_endpoint(place) as opened:
        known = await places.list_benchmarks(opened)
    rows = [{"id": each.id, "name": each.name, "scenarios": len(each.scenario_ids)} for each in known]
    print_rows(rows, as_json=as_json)


async def scenarios(benchmark: str, *, endpoint: str | None, isolation: str, runs: Path, as_json: bool) -> None:
    """List the scenarios of one benchmark."""
    place, name = places.where(benchmark, endpoint=endpoint, isolation=isolation, runs=runs)
    async with places.open_endpoint(place) as opened:
        summaries = await opened.summaries(await places.find_benchmark(opened, name))
    print_rows([_row(summary) for summary in summaries], as_json=as_json)


def _row(summary: ScenarioSummary) -> dict[str, object]:
    return {
        "id": summary.id,
        "name": summary.name,
        "agent_timeout": summary.agent_timeout,
        "scorer_timeout": summary.scorer_timeout,
    }


def print_rows(rows: list[dict[str, object]], *, as_json: bool) -> None:
    """Print rows with the same keys: as a table, or as JSON lines."""
    if as_json:
        sys.stdout.writelines(orjson.dumps(row).decode() + "\n" for row in rows)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0] if rows else ("name",):
        table.add_column(column.replace("_", " "), no_wrap=True)
    for row in rows:
        table.add_row(
            *(
                "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
                for value in row.values()
            )
        )
    # Whoever reads a pipe wants whole names, not the 80 columns that rich gives where there is no terminal.
    Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDEST).print(table)
