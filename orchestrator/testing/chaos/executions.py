"""Faults of executions: devboxes that die while somebody works in them."""

from contextlib import suppress
from pathlib import Path
from typing import Final

from orchestrator.service.devboxes.executions import CommandRequest, Executions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.errors import ServiceError, WaitExpired
from orchestrator.service.store import Store
from orchestrator.testing.chaos.dice import Dice, faults_of
from orchestrator.testing.chaos.rules import Seam

_OF_EXECUTIONS: Final = faults_of(Seam.EXECUTION)


class ChaosExecutions(Executions):
    """Executions under which a devbox may die. A request that is repeated is a happening of its own."""

    def __init__(self, store: Store, fleet: Fleet, state: Path, *, dice: Dice) -> None:
        super().__init__(store, fleet, state)
        self._dice = dice

    async def start(self, devbox_id: str, request: CommandRequest, key: str | None) -> str:
        identity = await super().start(devbox_id, request, key)
        rule = self._dice.throw("execution", _OF_EXECUTIONS, devbox=devbox_id, execution=identity)
        if rule is not None:
            self._fleet.start_soon(self._end_under, devbox_id, identity, rule.number or 0.0)
        return identity

    async def _end_under(self, devbox_id: str, identity: str, seconds: float) -> None:
        """End the box `seconds` from now, without its leave, if the execution still runs then."""
        with suppress(ServiceError):  # what is not to be found any more has ended already
            try:
                await self.wait(devbox_id, identity, timeout=seconds)
            except WaitExpired:
                await self._fleet.box(devbox_id).stop()
