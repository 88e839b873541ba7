"""The trials in flight: what each does, for how long, and how long it has been silent, so that a stuck one stands out.

Only the end of a log is read, and that only of trials that are shown: there may be thousands.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from orchestrator.core.ledger import Attempt, Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.printable import shortened
from orchestrator.core.records import TrialKey
from orchestrator.core.stages import Stage
from orchestrator.rundir.files import AGENT_LOG, attempt_folder, open_regular

#: The part of a log in which its last line is looked for, and the characters of it that are kept.
_END_BYTES: Final = 4096
_LINE_WIDTH: Final = 300
#: Colours and other sequences that a terminal obeys (ECMA-48: CSI, OSC).
_SEQUENCES: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialInFlight:
    """A trial in flight. Times in seconds: `age` of the attempt, `in_stage`, and `idle` since a sign of life.

    `step` is the step under way, of a scenario of several. `line` is the last line of its agent's log, if that is read.
    """

    key: TrialKey
    attempt: int
    stage: Stage
    step: str
    devbox: str | None
    age: float
    in_stage: float
    idle: float
    line: str


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The last line of a log, and the time at which it was written."""

    line: str = ""
    at: float = 0.0


#: How the end of an attempt's log is found: read at once, or known from an earlier look.
FindsEnd = Callable[[Path], LogEnd]


def attempts_in_flight(
    ledger: Ledger, keys: Iterable[TrialKey], most: int | None = None
) -> Iterator[tuple[TrialKey, Attempt]]:
    """The trials among `keys` that have an attempt under way, at `most` so many."""
    found = (
        (key, attempt)
        for key in keys
        if (attempt := ledger.under_way(key)) is not None and attempt.stage not in {None, Stage.RELEASE}
    )
    return islice(found, most)


def in_flight(
    key: TrialKey, attempt: Attempt, plan: Plan, folder: Path, *, now: float, end_of: FindsEnd
) -> TrialInFlight:
    """Describe a trial in flight. `now` is by the journal's clock; `folder` is the run folder."""
    scenario = plan.by_id[key.scenario]
    step = scenario.steps[min(len(attempt.steps), len(scenario.steps) - 1)].name if scenario.steps else ""
    end = end_of(log_path(folder, key, attempt, plan))
    return TrialInFlight(
        key=key,
        attempt=attempt.number,
        stage=attempt.stage or Stage.START,
        step=step,
        devbox=attempt.devbox,
        age=max(0.0, now - attempt.began),
        in_stage=max(0.0, now - attempt.since),
        idle=max(0.0, now - max(attempt.since, attempt.grew, min(end.at, now))),
        line=end.line,
    )


def log_path(folder: Path, key: TrialKey, attempt: Attempt, plan: Plan) -> Path:
    """The log of the agent that works in an attempt, or did last."""
    scenario = plan.by_id[key.scenario]
    place = attempt_folder(folder, key, scenario.name, attempt.number)
    if scenario.steps:
        place = place / "steps" / scenario.steps[min(len(attempt.steps), len(scenario.steps) - 1)].name
    return place / AGENT_LOG


def end_of_log(path: Path, known: LogEnd | None = None) -> LogEnd:
    """Read the last line of a log that has any words, without what a terminal would obey. Blocks.

    What is `known` of it is returned where the log has not changed since.
    """
    with suppress(OSError):
        found = path.stat()
        if known is not None and found.st_mtime == known.at:
            return known
        with open_regular(path) as file:
            file.seek(max(0, found.st_size - _END_BYTES))
            text = file.read(_END_BYTES).decode(errors="replace")
        lines = (without_sequences(line).strip() for line in reversed(text.split("\n")))
        line = shortened(next(filter(None, lines), ""), _LINE_WIDTH)
        return LogEnd(line, found.st_mtime if found.st_size else 0.0)
    return LogEnd()


def without_sequences(line: str) -> str:
    """A line of a log without colours and other sequences of terminals; of what was overwritten only the last stays."""
    return _SEQUENCES.sub("", line.rstrip("\r").rpartition("\r")[2])
