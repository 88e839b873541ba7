"""The places of a service where test equipment can be plugged in, each with what a sound service has there.

Its secret: the service imports no test equipment and asks nowhere whether there is any. The command that starts it
builds this record (`testing.chaos`, `testing.strict_compat`); a place that is not named here cannot be changed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
from starlette.middleware import Middleware
from starlette.routing import Route

from orchestrator.service.compatibility import OURS, Dialect
from orchestrator.service.devboxes.executions import Executions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.http.protocol import BoundedHeads
from orchestrator.service.sandbox.provider import Capability, Provider
from orchestrator.service.scoring.scoring import Scoring
from orchestrator.service.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a layer may know of the service that it is put around; `stopping` is set when the service shall end."""

    routes: tuple[Route, ...]
    capabilities: frozenset[Capability]
    stopping: anyio.Event


def _as_it_is(provider: Provider) -> Provider:
    return provider


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """How one service is put together."""

    dialect: Dialect = OURS
    #: Wraps the provider that devboxes are booted by.
    provider: Callable[[Provider], Provider] = _as_it_is
    #: Called as these classes are.
    scoring: Callable[..., Scoring] = Scoring
    executions: Callable[[Store, Fleet, Path], Executions] = Executions
    #: See the requests of those who have the token, the first one first.
    layers: tuple[Callable[[Opened], Middleware], ...] = ()
    connection: type[BoundedHeads] = BoundedHeads
