"""The parts of a service that misbehave, and the one function that puts them into a service.

Their faults: boots that are slow or fail, devboxes that die under a command or a scorer, scorers in error.
"""

from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
from starlette.middleware import Middleware

from orchestrator.service.assembly import Opened, Seams
from orchestrator.service.devboxes.executions import CommandRequest, Executions
from orchestrator.service.devboxes.fleet import Fleet
from orchestrator.service.errors import ServiceError, WaitExpired
from orchestrator.service.records import ContractResult
from orchestrator.service.sandbox.provider import Box, BoxSpec, BoxStartFailed, Capability, Provider
from orchestrator.service.scoring.contract import read_contract
from orchestrator.service.scoring.scoring import FindCustom, Place, Program, Scoring
from orchestrator.service.scoring.verdict import Verdict, result_of, weigh
from orchestrator.service.store import Store
from orchestrator.testing.chaos.requests import Droppable, RequestFaults
from orchestrator.testing.chaos.rules import Dice, Rules, Seam, faults_of

_OF_BOOTS: Final = faults_of(Seam.BOOT)
_OF_EXECUTIONS: Final = faults_of(Seam.EXECUTION)
_ERROR: Final = Verdict(error="this is chaos: the service was told to fail this scoring")


class ChaosProvider:
    """Implements `sandbox.provider.Provider` around a sound one."""

    def __init__(self, provider: Provider, dice: Dice) -> None:
        self._provider = provider
        self._dice = dice

    @property
    def name(self) -> str:
        return self._provider.name

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._provider.capabilities

    async def start(self, spec: BoxSpec, *, beside: Box | None = None) -> Box:
        """Raises BoxStartFailed."""
        if beside is not None:  # no boot of a devbox, but of a box of ours beside it
            return await self._provider.start(spec, beside=beside)
        rule = self._dice.throw("boot", _OF_BOOTS, devbox=spec.id)
        if rule is not None and rule.fault == "boot-fails":
            raise BoxStartFailed(f"devbox {spec.id}: this is chaos: the service was told to fail this boot")
        if rule is not None:
            await anyio.sleep(rule.number or 0.0)
        return await self._provider.start(spec)

    async def close(self) -> None:
        await self._provider.close()


class ChaosExecutions(Executions):
    """Executions under which a devbox may die. A repeated request is an event of its own."""

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
        """End the box `seconds` from now if the execution still runs then."""
        with suppress(ServiceError):  # an execution that is not found has ended already
            try:
                await self.wait(devbox_id, identity, timeout=seconds)
            except WaitExpired:
                with self._fleet.using(devbox_id) as box:
                    await box.stop()


class ChaosScoring(Scoring):
    """Scoring that does not always succeed. A devbox's first scoring decides the number of its scorings in error."""

    def __init__(self, *, cache: Path, dice: Dice) -> None:
        super().__init__(cache=cache)
        self._dice = dice
        self._errors_left: dict[str, float] = {}

    async def score(
        self, contract: Any, place: Place, *, timeout: float, custom: FindCustom, tests: Program | None = None
    ) -> ContractResult:
        if place.id not in self._errors_left:
            rule = self._dice.throw("devbox scored", {"scorer-error"}, devbox=place.id)
            self._errors_left[place.id] = 0 if rule is None else rule.number or 0
        rule = self._dice.throw("scoring", {"dies-scoring"}, devbox=place.id)
        if rule is not None:
            await anyio.sleep(rule.number or 0.0)
            await place.stop()  # then it refuses the scorers, as any box that died
        elif self._errors_left[place.id] > 0:
            self._errors_left[place.id] -= 1
            functions = read_contract(contract)
            results = [result_of(function.name, _ERROR, output="", seconds=0.0) for function in functions]
            return weigh([function.weight for function in functions], results)
        return await super().score(contract, place, timeout=timeout, custom=custom, tests=tests)


def misbehaving(seams: Seams, rules: Rules) -> Seams:
    """Return the seams of a service like this one that misbehaves by the rules."""
    dice = Dice(rules)

    def provider(sound: Provider) -> Provider:
        return ChaosProvider(seams.provider(sound), dice)

    def layer(opened: Opened) -> Middleware:
        return Middleware(RequestFaults, dice=dice, routes=opened.routes, stopping=opened.stopping)

    return replace(
        seams,
        provider=provider,
        scoring=partial(ChaosScoring, dice=dice),
        executions=partial(ChaosExecutions, dice=dice),
        layers=(layer, *seams.layers),
        connection=Droppable,
    )
