"""Environments that are prepared before devboxes need them: in the background, a few at once, and never in their way.

What is prepared for one call is kept until all of it is done, so that the last does not take the room of the first. It
takes no room that something in use has: a devbox that needs the environment later waits for that itself.
"""

from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import anyio
import structlog

from orchestrator.core.errors import SweepError
from orchestrator.service.environments.environments import Environments
from orchestrator.service.sandbox.prepared import Preparation

MAX_AT_ONCE: Final = 2
State = Literal["waiting", "preparing", "ready", "failed"]


@dataclass(slots=True, kw_only=True)
class EarlyPreparation:
    """How far one environment is; `seconds` it took, and `message` says what goes on, or why it failed."""

    blueprint_id: str
    state: State = "waiting"
    seconds: float = 0.0
    preparation: Preparation = field(default_factory=lambda: Preparation(is_early=True))
    failure: str = ""

    @property
    def message(self) -> str:
        return self.failure or (self.preparation.doing() if self.state == "preparing" else "")


class Preparations:
    """`start_soon` runs something in the background."""

    def __init__(
        self, environments: Environments, start_soon: Callable[[Callable[..., Coroutine[Any, Any, None]], Any], None]
    ) -> None:
        self._environments = environments
        self._start_soon = start_soon
        self._turns = anyio.CapacityLimiter(MAX_AT_ONCE)
        self._all: dict[str, EarlyPreparation] = {}

    def begin(self, blueprint_ids: Iterable[str]) -> None:
        """Prepare environments, in this order, but those that are being prepared."""
        batch = []
        for identity in dict.fromkeys(blueprint_ids):
            known = self._all.get(identity)
            if known is None or known.state in {"ready", "failed"}:
                each = self._all[identity] = EarlyPreparation(blueprint_id=identity)
                batch.append(each)
        if batch:
            self._start_soon(self._carry_out, batch)

    def of(self, blueprint_ids: Iterable[str]) -> Sequence[EarlyPreparation]:
        """Return how far environments are, of those that were ever asked for."""
        return [self._all[identity] for identity in blueprint_ids if identity in self._all]

    async def _carry_out(self, batch: Sequence[EarlyPreparation]) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                for each in batch:
                    tasks.start_soon(self._prepare, each)
        finally:
            for each in batch:
                each.preparation.held.close()

    async def _prepare(self, each: EarlyPreparation) -> None:
        async with self._turns:
            began, each.state = anyio.current_time(), "preparing"
            try:
                await self._environments.prepare(each.blueprint_id, each.preparation)
                each.state = "ready"
            except SweepError as error:
                each.state, each.failure = "failed", error.message
            except Exception as error:  # noqa: BLE001 - one environment's trouble is not that of the others
                structlog.get_logger().exception("environment.preparation_crashed", blueprint=each.blueprint_id)
                each.state, each.failure = "failed", repr(error)
            each.seconds = round(anyio.current_time() - began, 3)
