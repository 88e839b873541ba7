"""Benchmarks: lists them and their scenarios, and checks one.

A benchmark is sound if its definitions hold, its reference solutions score 1.0, and doing nothing scores less.
"""

import time
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import anyio
import orjson

from orchestrator.commands import BUNDLED, endpoints, run_sweep
from orchestrator.commands.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from orchestrator.core.config import EndpointConfig, resolve
from orchestrator.core.errors import UsageError
from orchestrator.core.printable import printable, printable_lines, shortened
from orchestrator.core.protocol import Isolation, LockKind
from orchestrator.rundir.files import RESULTS
from orchestrator.rundir.manifest import read_manifest
from orchestrator.service.definitions.catalog import problems
from orchestrator.view.console import print_rows, say
from orchestrator.view.formats import LINES, Format

#: Characters of a quoted line.
LONGEST: Final = 200


async def list_benchmarks(
    *, endpoint: str | None, isolation: Isolation, runs: Path, lock: LockKind, output: Format
) -> None:
    """List every benchmark of the endpoint, or of the embedded service."""
    place = endpoints.Where(endpoint=endpoint, folders=(BUNDLED,), isolation=isolation, runs=runs, lock=lock)
    async with endpoints.open_endpoint(place) as opened:
        known = await endpoints.list_benchmarks(opened)
    print_rows([{"id": each.id, "name": each.name, "scenarios": len(each.scenario_ids)} for each in known], output)


async def show(
    benchmark: str, *, endpoint: str | None, isolation: Isolation, runs: Path, lock: LockKind, output: Format
) -> None:
    """List the scenarios of one benchmark."""
    place, name = endpoints.where(benchmark, endpoint=endpoint, isolation=isolation, runs=runs, lock=lock)
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


async def check(benchmark: str, place: EndpointConfig, *, is_static: bool, runs: Path) -> int:
    """Check a benchmark and report; returns the exit code. Raises UsageError if there is no such benchmark."""
    folder = _folder(benchmark)
    found = await anyio.to_thread.run_sync(problems, folder)
    for problem in found:
        say(f"{problem.severity}: {problem}")
    has_errors = any(problem.severity == "error" for problem in found)
    if not is_static and not has_errors:
        complaints = await _prove(folder, place, runs)
        for complaint in complaints:
            for line in printable_lines(f"error: {complaint}"):
                say(line)
        has_errors = bool(complaints)
    say(f"{folder.name}: {'not sound' if has_errors else 'sound'}")
    return EXIT_FAILED if has_errors else EXIT_OK


def _folder(benchmark: str) -> Path:
    """The folder of a path, or of a bundled benchmark's name."""
    for folder in (Path(benchmark).expanduser(), BUNDLED / benchmark):
        if folder.is_dir():
            return folder.resolve()
    bundled = sorted(folder.name for folder in BUNDLED.iterdir() if folder.is_dir())
    near = get_close_matches(benchmark, bundled, 1)
    raise UsageError(
        f"{benchmark}: there is no such folder, and no bundled benchmark of that name; "
        + (f"did you mean {near[0]}?" if near else f"bundled: {', '.join(bundled)}.")
    )


async def _prove(folder: Path, place: EndpointConfig, runs: Path) -> list[str]:
    """Run the reference solution and the empty one; returns the complaints."""
    config = resolve(
        {
            "benchmark": str(folder),
            "arms": [{"agent": "oracle"}, {"agent": "nop"}],
            "isolation": place.isolation,
            "lock": place.lock,
            "attempts": 1,
            "name": f"check-{time.strftime('%Y%m%d-%H%M%S')}",
        }
    )
    ended = await run_sweep.run(config, runs=runs, output=LINES)
    if ended == EXIT_INTERRUPTED:
        return ["the check was interrupted before it proved anything"]
    ran = runs / str(config.name)
    results = [orjson.loads(line) for line in (await anyio.Path(ran / RESULTS).read_bytes()).splitlines()]
    planned = len((await anyio.to_thread.run_sync(read_manifest, ran)).plan)
    missing = [] if len(results) == planned else [f"{planned - len(results)} of {planned} trials have no result"]
    return [*missing, *(complaint for result in results for complaint in _judge(result, ran))]


def _judge(result: Mapping[str, Any], ran: Path) -> Iterator[str]:
    """Complain about one trial of `oracle` or `nop`; `ran` is its run folder.

    The last lines of a solution that failed, and of scorers that gave it less than 1.0, are quoted.
    """
    name, arm, score = printable(result["scenario_name"]), result["arm"], result["score"]
    if result["outcome"] != "scored":
        yield f"{name}: {arm} got no score: {result['failure']['message']}"
    elif arm == "oracle" and score != 1.0:
        files, status = result["files"], result["exit_status"]
        parts = [f"{name}: the reference solution scores {score:g}, not 1.0"]
        if status != 0:
            how = "ran out of time" if status is None else f"ended with exit status {status}"
            parts.append(f"solve.sh {how}{_last_line(ran, files.get('agent_log'))}")
        for scorer in result["scorers"]:
            said = _last_line(ran, files.get(f"scorer_{scorer['name']}"))
            if said and scorer["score"] != 1.0:
                parts.append(f"scorer {scorer['name']}{said}")
        yield "; ".join(parts)
    elif arm == "nop" and score >= 1.0:
        yield f"{name}: doing nothing scores {score:g}: the scorers cannot tell a solution from nothing"


def _last_line(ran: Path, file: str | None) -> str:
    """The last line of a file, after a colon; empty if there is none."""
    if file is None:
        return ""
    try:
        lines = (ran / file).read_text("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return ""
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f": {shortened(last, LONGEST)}" if last else ""
