"""Faults of scorings: scorers in error, and devboxes that die under them."""

from pathlib import Path
from typing import Any, Final

import anyio

from orchestrator.service.scoring.contract import read_contract
from orchestrator.service.scoring.scorers import FindCustom, Place, Program
from orchestrator.service.scoring.scoring import Scoring
from orchestrator.service.scoring.verdict import Verdict, result_of, weigh
from orchestrator.service.store import Document
from orchestrator.testing.chaos.dice import Dice

_ERROR: Final = Verdict(error="this is chaos: the service was told to fail this scoring")


class ChaosScoring(Scoring):
    """Scoring that does not always succeed. Whether a devbox has scorers in error is decided at its first scoring."""

    def __init__(self, *, cache: Path, dice: Dice) -> None:
        super().__init__(cache=cache)
        self._dice = dice
        self._errors_left: dict[str, float] = {}

    async def score(
        self, contract: Any, place: Place, *, timeout: float, custom: FindCustom, tests: Program | None = None
    ) -> Document:
        if place.id not in self._errors_left:
            rule = self._dice.throw("devbox scored", {"scorer-error"}, devbox=place.id)
            self._errors_left[place.id] = 0 if rule is None else rule.number or 0
        rule = self._dice.throw("scoring", {"dies-scoring"}, devbox=place.id)
        if rule is not None:
            await anyio.sleep(rule.number or 0.0)
            await place.stop()  # and what the scorers ask of it then is refused, as by any box that died
        elif self._errors_left[place.id] > 0:
            self._errors_left[place.id] -= 1
            return _all_in_error(contract)
        return await super().score(contract, place, timeout=timeout, custom=custom, tests=tests)


def _all_in_error(contract: Any) -> Document:
    functions = read_contract(contract)
    results = [result_of(function.name, _ERROR, output="", seconds=0.0) for function in functions]
    return weigh([function.weight for function in functions], results)
