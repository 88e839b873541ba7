"""Orders that a person gives to a sweep while it runs: `sweep set`, `pause`, `unpause`, `cancel` and `requeue`."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct
from msgspec.json import Decoder

from orchestrator.core.plan import Plan, trials_of
from orchestrator.core.records import TrialKey


class Order(Struct, frozen=True, kw_only=True, tag_field="order", forbid_unknown_fields=True):
    """An order, and the reason that its giver has for it."""

    reason: str = ""


class Set(Order, frozen=True, kw_only=True, tag="set"):
    """Change settings, each as it would be typed after its option's name."""

    settings: Mapping[str, str]


class Pause(Order, frozen=True, kw_only=True, tag="pause"):
    """Start no trial; those in flight go on."""


class Unpause(Order, frozen=True, kw_only=True, tag="unpause"):
    """Start trials again."""


class TrialOrder(Order, frozen=True, kw_only=True):
    """An order about trials of one scenario: those of every arm and number, unless it says which."""

    scenario: str
    arm: str | None = None
    trial: int | None = None

    def trials_of(self, plan: Plan) -> list[TrialKey]:
        """The trials of a plan that it is about. Raises UsageError if there are none."""
        return trials_of(plan, self.scenario, arm=self.arm, number=self.trial)


class Cancel(TrialOrder, frozen=True, kw_only=True, tag="cancel"):
    """Give trials up: those in flight end, and those that wait never begin."""


class Requeue(TrialOrder, frozen=True, kw_only=True, tag="requeue"):
    """Run trials again: those in flight end first, and of those that are finished the result counts no more."""


#: Reads an order of JSON. Raises msgspec.ValidationError or msgspec.DecodeError.
DECODER: Final[Decoder[Order]] = Decoder(Set | Pause | Unpause | Cancel | Requeue)
