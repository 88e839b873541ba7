"""Chaos put into a service: one dice for every place where a fault can happen."""

from dataclasses import replace
from functools import partial

from starlette.middleware import Middleware

from orchestrator.service.assembly import Opened, Seams
from orchestrator.service.sandbox.provider import Provider
from orchestrator.testing.chaos.devboxes import ChaosExecutions, ChaosProvider, ChaosScoring
from orchestrator.testing.chaos.dice import Dice
from orchestrator.testing.chaos.requests import Droppable, RequestFaults
from orchestrator.testing.chaos.rules import Rules


def misbehaving(seams: Seams, rules: Rules) -> Seams:
    """The seams of a service like this one that misbehaves as the rules say."""
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
