"""The stages of an attempt, and which may follow which.

    start → boot → prepare → solve → gather → score → release
      └───────┴───────┴────────┴───────┴────────┴──────→ release     an attempt may be given up at any point
      └───────┴───────┴────────┴───────┴───────→ score               a result that is there already is taken
                                                 start → start       what a process that died had begun is taken up
                                                  boot → boot        again where it was; an install is not, and an
                                                 solve → solve       agent is waited for, never run twice
                                                gather → gather
                                                 score → score       a scorer's fault is scored again, too
                                                 score → prepare     another step of the scenario follows
                                               prepare → prepare     which is made ready again, as no install is
                                               release → release     what did not go back is given back again

The stage of an attempt and the end of its trial are different things: for the latter see `records.Outcome`.
"""

from enum import StrEnum
from typing import Final, Self

from orchestrator.core.errors import InternalError


class Stage(StrEnum):
    """A step of an attempt; `doing` is the word for an attempt in it."""

    doing: str

    def __new__(cls, name: str, doing: str = "") -> Self:
        stage = str.__new__(cls, name)
        stage._value_, stage.doing = name, doing
        return stage

    START = "start", "starting"
    """The scenario run is asked for."""
    BOOT = "boot", "booting"
    """Its devbox comes up."""
    PREPARE = "prepare", "installing"
    """The agent is installed in the devbox."""
    SOLVE = "solve", "solving"
    """The agent works."""
    GATHER = "gather", "collecting files"
    """What it left comes home, before scoring brings hidden tests into the devbox."""
    SCORE = "score", "scoring"
    """The scenario's scorers judge."""
    RELEASE = "release", "releasing"
    """The run is completed or canceled, and the devbox goes away."""


MOVES: Final[dict[Stage | None, frozenset[Stage]]] = {
    None: frozenset({Stage.START}),
    Stage.START: frozenset({Stage.START, Stage.BOOT, Stage.SCORE, Stage.RELEASE}),
    Stage.BOOT: frozenset({Stage.BOOT, Stage.PREPARE, Stage.SCORE, Stage.RELEASE}),
    Stage.PREPARE: frozenset({Stage.PREPARE, Stage.SOLVE, Stage.SCORE, Stage.RELEASE}),
    Stage.SOLVE: frozenset({Stage.SOLVE, Stage.GATHER, Stage.SCORE, Stage.RELEASE}),
    Stage.GATHER: frozenset({Stage.GATHER, Stage.SCORE, Stage.RELEASE}),
    Stage.SCORE: frozenset({Stage.SCORE, Stage.PREPARE, Stage.RELEASE}),
    Stage.RELEASE: frozenset({Stage.RELEASE}),
}

#: Stages whose entry must be on the disk before their first call. A process that repeats one of the others, because it
#: was not journaled, does no harm; and a full disk keeps no devbox. Gathering begins by closing the devbox to writers.
ANNOUNCED: Final = frozenset({Stage.START, Stage.PREPARE, Stage.SOLVE, Stage.GATHER, Stage.SCORE})


def move(at: Stage | None, to: Stage) -> Stage:
    """Go from one stage to the next; None is before the first. Raises InternalError for an illegal move."""
    if to not in MOVES[at]:
        raise InternalError(f"An attempt cannot go from stage {at or 'none'} to {to}.")
    return to
