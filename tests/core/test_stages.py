"""The lifecycle is data: one table of legal moves."""

from itertools import pairwise, product

import pytest

from orchestrator.core import stages
from orchestrator.core.errors import InternalError
from orchestrator.core.stages import MOVES, Stage, move

EVERY = [(at, to) for at, to in product([None, *Stage], Stage)]


@pytest.mark.parametrize(("at", "to"), [(at, to) for at, to in EVERY if to in MOVES[at]])
def test_a_legal_move_gives_the_stage_it_goes_to(at: Stage | None, to: Stage) -> None:
    assert move(at, to) is to


@pytest.mark.parametrize(("at", "to"), [(at, to) for at, to in EVERY if to not in MOVES[at]])
def test_an_illegal_move_names_both_stages(at: Stage | None, to: Stage) -> None:
    with pytest.raises(InternalError, match=f"from stage {at or 'none'} to {to}"):
        move(at, to)


def test_the_table_says_something_of_every_stage() -> None:
    assert set(MOVES) == {None, *Stage}


def test_an_attempt_may_be_given_up_at_any_point_and_is_over_then() -> None:
    assert all(Stage.RELEASE in MOVES[stage] for stage in Stage if stage is not Stage.RELEASE)
    assert MOVES[Stage.RELEASE] == {Stage.RELEASE}


def test_the_drawing_at_the_top_of_the_file_agrees_with_the_table() -> None:
    """Its first line is the road, lines with corners lead from so many of its stages, others are moves of their own."""
    drawing = [line.strip() for line in (stages.__doc__ or "").splitlines() if "→" in line]
    road = [Stage(word.strip()) for word in drawing[0].split("→")]
    drawn = {(None, road[0]), *pairwise(road)}
    for line in drawing[1:]:
        at, _, to = line.partition("→")
        corners = sum(at.count(corner) for corner in "└┴")
        sources = road[:corners] if corners else [Stage(at.strip())]
        drawn |= {(source, Stage(to.split()[0])) for source in sources}
    assert drawn == {(at, to) for at, follow in MOVES.items() for to in follow}
