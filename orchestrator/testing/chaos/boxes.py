"""Faults of boots: boxes that come late, and boxes that never come."""

from typing import Final

import anyio

from orchestrator.service.sandbox.provider import Box, BoxSpec, BoxStartFailed, Capability, Provider
from orchestrator.testing.chaos.dice import Dice, faults_of
from orchestrator.testing.chaos.rules import Seam

_OF_BOOTS: Final = faults_of(Seam.BOOT)


class ChaosProvider:
    """Implements `provider.Provider` around a sound one."""

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
