"""Benchmarks and their scenarios, listed for people or programs."""

from pathlib import Path
from typing import Final

from rich.table import Table
from rich.text import Text

from orchestrator.commands import BUNDLED, endpoints
from orchestrator.common.locks import Kind
from orchestrator.core.printable import printable
from orchestrator.core.records import ScenarioSummary
from orchestrator.view.console import Page, say_json

#: Columns of a table where there is no terminal to measure: whoever reads a pipe wants whole names.
WIDEST: Final = 1000


async def benchmarks(*, endpoint: str | None, isolation: str, runs: Path, lock: Kind, as_json: bool) -> None:
    """List every benchmark of the endpoint, or of the embedded service."""
    place = endpoints.Where(endpoint=endpoint, folders=(BUNDLED,), isolation=isolation, runs=runs, lock=lock)
    async with endpoints.open_endpoint(place) as opened:
        known = await endpoints.list_benchmarks(opened)
    rows = [{"id": each.id, "name": each.name, "scenarios": len(each.scenario_ids)} for each in known]
    print_rows(rows, as_json=as_json)


async def scenarios(
    benchmark: str, *, endpoint: str | None, isolation: str, runs: Path, lock: Kind, as_json: bool
) -> None:
    """List the scenarios of one benchmark."""
    place, name = endpoints.where(benchmark, endpoint=endpoint, isolation=isolation, runs=runs, lock=lock)
    async with endpoints.open_endpoint(place) as opened:
        summaries = await opened.summaries(await endpoints.find_benchmark(opened, name))
    rows = [_row(summary) for summary in summaries]
    if any(summary.unsupported for summary in summaries):
        rows = [row | {"unsupported": each.unsupported or None} for row, each in zip(rows, summaries, strict=True)]
    print_rows(rows, as_json=as_json)


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
        for row in rows:
            say_json(row)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0] if rows else ("name",):
        table.add_column(column.replace("_", " "), no_wrap=True)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    Page(WIDEST).print(table)


def _cell(value: object) -> Text:
    words = "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return Text(printable(words))
