"""A run folder, events to put into it, and other processes that use it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen
from sys import executable

import orjson
import pytest

from orchestrator.core.events import Event, StageEntered, TrialFinished
from orchestrator.core.ledger import Ledger
from orchestrator.core.stages import Stage
from orchestrator.rundir.files import RESULTS

Spawn = Callable[[str], AbstractContextManager["Popen[str]"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "sweep"
    path.mkdir()
    return path


@dataclass(eq=False)
class Told(Ledger):
    """A ledger that takes anything, and remembers what it was told."""

    events: list[Event] = field(default_factory=list)

    def apply(self, event: Event) -> None:
        self.events.append(event)

    def copy(self) -> "Told":
        return Told()


def entered(number: int, padding: str = "") -> StageEntered:
    return StageEntered(trial=f"s{number}{padding}/a/1", attempt=1, stage=Stage.START)


def finished(number: int, score: float = 1.0) -> TrialFinished:
    result = {"scenario": f"s{number}", "outcome": "scored", "score": score, "words": "größer\n"}
    return TrialFinished(trial=f"s{number}/a/1", attempt=1, result=result)


def scenarios(folder: Path) -> list[str]:
    """The scenarios of results.jsonl, in its order."""
    return [orjson.loads(line)["scenario"] for line in (folder / RESULTS).read_bytes().splitlines()]


@contextmanager
def python(script: str) -> Iterator["Popen[str]"]:
    """Another interpreter at a script: what it prints is read from it, and it is dead afterwards."""
    with Popen([executable, "-c", script], stdin=PIPE, stdout=PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


@pytest.fixture
def spawn() -> Spawn:
    return python
