"""Benchmarks: lists them and their scenarios."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.commands import BUNDLED, endpoints, fetched
from orchestrator.core.protocol import Isolation, LockKind
from orchestrator.view.console import print_rows
from orchestrator.view.formats import Format


async def list_benchmarks(
    *, endpoint: str | None, isolation: Isolation, runs: Path, lock: LockKind, output: Format
) -> None:
    """List every benchmark of the endpoint, or of the embedded service and those that were fetched for it."""
    place = endpoints.Where(endpoint=endpoint, folders=(BUNDLED,), isolation=isolation, runs=runs, lock=lock)
    async with endpoints.open_endpoint(place) as opened:
        known = await endpoints.list_benchmarks(opened)
    rows = [{"id": each.id, "name": each.name, "scenarios": len(each.scenario_ids)} for each in known]
    copies = [] if endpoint else await fetched.list_copies(output)
    nothing = dict.fromkeys(copies[0] if copies else ())
    print_rows([*({**nothing, **row} for row in rows), *copies], output)


async def show(
    benchmark: str,
    registries: Sequence[str],
    *,
    endpoint: str | None,
    isolation: Isolation,
    runs: Path,
    lock: LockKind,
    output: Format,
) -> None:
    """List the scenarios of one benchmark, which is fetched if it is not here."""
    folder = await fetched.fetch_shown(benchmark, registries, output, endpoint=endpoint)
    place, name = endpoints.where(folder, endpoint=endpoint, isolation=isolation, runs=runs, lock=lock)
    async with endpoints.open_endpoint(place) as opened:
        summaries = await opened.summaries(await endpoints.find_benchmark(opened, name))
    has_reasons = any(each.unsupported for each in summaries)
    print_rows(
        [
            {
                "id": each.id,
                "name": each.name,
                "agent_timeout": each.agent_timeout,
                "scorer_timeout": each.scorer_timeout,
                **({"unsupported": each.unsupported or None} if has_reasons else {}),
            }
            for each in summaries
        ],
        output,
    )
