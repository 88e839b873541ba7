"""`sweep prepare`: fetches and builds the environments of a benchmark before a sweep needs them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio

from orchestrator.commands import endpoints
from orchestrator.commands.exit_codes import EXIT_FAILED, EXIT_OK
from orchestrator.commands.fetched import fetch_shown
from orchestrator.core.config import EndpointConfig, RegistryConfig
from orchestrator.core.errors import UsageError
from orchestrator.core.plan import select
from orchestrator.core.printable import byte_size, counted, printable_lines, shortened
from orchestrator.core.records import Preparation
from orchestrator.endpoint.protocols import Endpoint
from orchestrator.view import console
from orchestrator.view.console import print_record, say
from orchestrator.view.formats import Format

LOOK_EVERY_S: Final = 0.3
#: Scenarios that a line names.
_NAMED: Final = 3
_PLAIN_WIDTH: Final = 80
_DONE: Final = frozenset({"ready", "failed"})


async def run(
    benchmark: str,
    *,
    place: EndpointConfig,
    images: RegistryConfig,
    registries: Sequence[str],
    include: Sequence[str],
    exclude: Sequence[str],
    runs: Path,
    output: Format,
) -> int:
    """Prepare the environments of the scenarios that are selected; returns the exit code. Raises UsageError."""
    folder = await fetch_shown(benchmark, registries, output, endpoint=place.endpoint)
    where, name = endpoints.where(folder, **dict(place), runs=runs, images=images)
    async with endpoints.open_endpoint(where) as endpoint:
        found = await endpoints.find_benchmark(endpoint, name)
        summaries = await endpoint.summaries(found, include=include, exclude=exclude)
        names: dict[str, list[str]] = {}
        for each in select(summaries, include=include, exclude=exclude, limit=None):
            for environment in each.environments if not each.unsupported else ():
                names.setdefault(environment, []).append(each.name)
        if not names:
            raise UsageError(f"{benchmark} has no environment that can be prepared here: `sweep check` says why.")
        room = await endpoint.room_for(list(names))
        if room.images:
            words = f"{counted(room.images, 'image')}, {room.here} of them here; there is room for"
            say(f"{words} {byte_size(room.room)}.", to_stderr=output.is_for_programs)
        ended = await _follow(endpoint, names, output)
    failed = sum(each.state == "failed" for each in ended)
    if not output.is_for_programs:
        say(f"{counted(len(ended) - failed, 'environment')} ready, {failed} failed.")
    return EXIT_FAILED if failed else EXIT_OK


async def _follow(endpoint: Endpoint, names: Mapping[str, Sequence[str]], output: Format) -> Sequence[Preparation]:
    """Begin, tell of each environment when it is done, and return all; `names` are their scenarios. Raises UsageError.

    Those that a new service does not know of, because the old one died, are begun again.
    """
    ended: dict[str, Preparation] = {}
    known: set[str] = set()
    try:
        while len(ended) < len(names):
            owed = [each for each in names if each not in ended]
            begun = await endpoint.prepare(owed, is_begun=known.issuperset(owed))
            if not begun and not known:
                raise UsageError(f"{endpoint.url} does not prepare environments: it has no images.")
            known = {each.environment for each in begun}
            for each in begun:
                if each.state in _DONE:
                    ended[each.environment] = each
                    _tell(each, names[each.environment], output)
            if output.is_redrawn:
                doing = [each for each in begun if each.state == "preparing"]
                width = console.Page(_PLAIN_WIDTH).width - 1
                lines = [f"{names[each.environment][0]}  {each.message}" for each in doing]
                console.show([shortened(line, width) for line in (*lines, f"{len(ended)} of {len(names)} done")])
            if len(ended) < len(names):
                await anyio.sleep(LOOK_EVERY_S)
    finally:
        console.show([])
    return list(ended.values())


def _tell(each: Preparation, scenarios: Sequence[str], output: Format) -> None:
    if output.is_for_programs:
        record = {"environment": each.environment, "scenarios": list(scenarios), "state": each.state}
        print_record(record | {"seconds": each.seconds, "message": each.message or None}, output)
        return
    more = f" and {len(scenarios) - _NAMED} more" if len(scenarios) > _NAMED else ""
    for line in printable_lines(
        f"{', '.join(scenarios[:_NAMED])}{more}: {each.state}, {each.seconds:.1f} s"
        + (f": {each.message}" if each.message else "")
    ):
        say(line)
