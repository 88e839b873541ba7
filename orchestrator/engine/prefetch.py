"""Has the endpoint prepare the environments of the next trials while agents work."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final

import anyio

from orchestrator.core.errors import WorldError
from orchestrator.core.records import TrialKey
from orchestrator.engine.context import Context

#: Environments that are asked for before a trial needs them.
AHEAD: Final = 2
LOOK_EVERY_S: Final = 3.0


async def prepare_ahead(ctx: Context, pending: Callable[[], Iterable[TrialKey]]) -> None:
    """Look at the next pending trials every now and then, until canceled.

    While a devbox waits for its own image nothing is asked for: it would take room and network from that.
    """
    asked: list[str] = []
    while True:
        wanted = _next(ctx, pending()) if ctx.in_flight and not ctx.preparing else []
        if wanted and wanted != asked:
            asked = wanted
            with suppress(WorldError):
                await ctx.endpoint.prepare(wanted)
        await anyio.sleep(LOOK_EVERY_S)


def _next(ctx: Context, pending: Iterable[TrialKey]) -> list[str]:
    """The environments of the next trials that no trial in flight has."""

    def environments(keys: Iterable[TrialKey]) -> Iterator[str]:
        return (each for key in keys for each in ctx.scenarios[key.scenario].environments)

    wanted, here = dict[str, None](), set(environments(ctx.in_flight))
    for environment in environments(pending):
        if environment not in here:
            wanted[environment] = None
        if len(wanted) == AHEAD:
            break
    return list(wanted)
