"""Whether a fault happens, decided so that a rehearsal can be repeated.

Each decision is a hash of the seed, the rule and which happening of its kind this is, the kinds being the routes of
requests, boots, executions and scorings. The same seed and the n-th happening of a kind give the same decision,
whatever else goes on at the same time. Why not one random stream: a heartbeat more would change the whole night.
"""

from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from hashlib import sha256

import structlog

from orchestrator.testing.chaos.rules import FAULTS, Rule, Rules, Seam


class Dice:
    """The rules of a chaos file, and what they have done so far."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._seen: Counter[tuple[int, str]] = Counter()
        self._struck: Counter[int] = Counter()

    def throw(self, kind: str, faults: Iterable[str], *, request: str = "", **about: str) -> Rule | None:
        """The fault of `faults` that this happening of a kind has, if any: the first that strikes, in the file's order.

        `request` is its method and path. `about` is said in the log.
        """
        struck: Rule | None = None
        for number, rule in enumerate(self._rules.rules):
            if rule.fault not in faults or not fnmatchcase(request, rule.route):
                continue
            self._seen[number, kind] += 1
            if struck is None and self._strikes(number, rule, kind):
                self._struck[number] += 1
                struck = rule
                say_injected(rule.fault, rule=number + 1, **about)
        return struck

    def _strikes(self, number: int, rule: Rule, kind: str) -> bool:
        if rule.times is not None and self._struck[number] >= rule.times:
            return False
        word = f"{self._rules.seed} {number} {kind} {self._seen[number, kind]}"
        return int.from_bytes(sha256(word.encode()).digest()[:8]) < rule.probability * 2**64


def faults_of(seam: Seam) -> frozenset[str]:
    """The faults that happen to such a thing."""
    return frozenset(name for name, fault in FAULTS.items() if fault.seam is seam)


def say_injected(fault: str, **about: str | int) -> None:
    """As a warning, for it must be found in the log of a quiet service, too."""
    structlog.get_logger().warning("chaos.injected", fault=fault, **about)
