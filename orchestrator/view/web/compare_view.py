"""What the page of a comparison shows: what one arm gained and lost against another, first, and the numbers below."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

from orchestrator.core.errors import UsageError
from orchestrator.core.records import TrialKey
from orchestrator.rundir.recorded import RecordedSweep, reading
from orchestrator.view.comparison import Comparison, Flip, Pair, Side, compare
from orchestrator.view.comparison_tables import numbers_table, power_lines, sides_table, solved_table
from orchestrator.view.tables import Listing
from orchestrator.view.web.templates import address_of

#: Arms that are compared where none is chosen: each with each other makes six pairs.
CHOSEN: Final = 4
#: Said where there is nothing to compare.
ONE: Final = "A comparison has two arms or more: choose them here, or more sweeps in the list of sweeps."


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmChoice:
    """An arm that can be compared; `value` is SWEEP/ARM, which names it in an address."""

    value: str
    sweep: str
    arm: str
    is_chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipView:
    """A flip with the addresses of the trials that show it best."""

    flip: Flip
    links: tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairView:
    """Two arms: flips, tables, and sentences on what it takes and what is left out.

    `other_way` is the address of the page that compares the first with the second.
    """

    pair: Pair
    other_way: str
    flips: Sequence[FlipView]
    tables: Sequence[Listing]
    sentences: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareView:
    """The page. `whole` is None where nothing was compared, for the reason `why`."""

    runs: Sequence[str]
    choices: Sequence[ArmChoice]
    is_anyway: bool
    why: str
    whole: Comparison | None
    sides: Listing | None
    pairs: Sequence[PairView]


def compare_view(folders: Sequence[Path], chosen: Sequence[str], *, anyway: bool) -> CompareView:
    """Compare arms of these sweeps: those `chosen` as SWEEP/ARM, or all. Blocks. Raises UsageError, JournalError."""
    sweeps, every = dict[str, RecordedSweep](), list[tuple[str, str]]()
    for folder in folders:
        with reading(folder):
            sweep = sweeps[folder.name] = RecordedSweep(folder)
            every += [(folder.name, arm) for arm in sweep.plan.arms]
    wanted = {f"{name}/{arm}" for name, arm in every[:CHOSEN]} if not chosen else {*chosen}
    choices = [
        ArmChoice(value=f"{name}/{arm}", sweep=name, arm=arm, is_chosen=f"{name}/{arm}" in wanted)
        for name, arm in every
    ]
    ordered = [each for value in dict.fromkeys(chosen) for each in choices if each.value == value]
    ordered = ordered or [each for each in choices if each.is_chosen]
    why, whole = "", None
    try:
        whole = compare([(sweeps[each.sweep], each.arm) for each in ordered], anyway=anyway)
    except UsageError as error:  # the page says it, and offers other arms
        why = error.message.replace("--anyway compares", "With “anyway”, this page compares")
        why = why if len(ordered) > 1 else ONE
    return CompareView(
        runs=[*sweeps],
        choices=choices,
        is_anyway=anyway,
        why=why,
        whole=whole,
        sides=sides_table(whole) if whole else None,
        pairs=[_pair_view(pair, {side.label: side for side in whole.sides}) for pair in whole.pairs] if whole else [],
    )


def _pair_view(pair: Pair, sides: dict[str, Side]) -> PairView:
    both = sides[pair.first], sides[pair.second]
    turned = [("side", f"{side.folder.name}/{side.arm}") for side in reversed(both)]
    runs = [("run", name) for name in dict.fromkeys(side.folder.name for side in both)]
    return PairView(
        pair=pair,
        other_way=f"/compare?{urlencode([*runs, *turned])}",
        flips=[
            FlipView(flip=flip, links=(_link(both[0], flip, 0), _link(both[1], flip, 1)))
            for flip in sorted(pair.flips, key=lambda flip: flip.is_gained)
        ],
        tables=[table for table in (numbers_table(pair), solved_table(pair)) if table.rows],
        sentences=[*power_lines(pair), *pair.left_out],
    )


def _link(side: Side, flip: Flip, at: int) -> str:
    key = TrialKey(flip.scenario[at], side.arm, flip.shown[at])
    return f"/sweep/{quote(side.folder.name)}/trial?{address_of(key)}"
