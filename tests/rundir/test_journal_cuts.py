"""The journal of a real run, cut at every byte: what a crash may leave, wherever it strikes."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from orchestrator.core.events import Event, TrialFinished, to_line
from orchestrator.core.ledger import Ledger, fold
from orchestrator.rundir.files import JOURNAL, RESULTS
from orchestrator.rundir.journal import RunFiles
from orchestrator.rundir.repair import repair
from tests.engine.conftest import MakeSweep, make_sweep

__all__ = ["make_sweep"]


@pytest.fixture
def swift() -> Iterator[Path]:
    """A folder in memory where there is one: syncing it takes no time."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as path:
        yield Path(path)


@pytest.fixture
def run(make_sweep: MakeSweep) -> list[Event]:
    return make_sweep(scenarios=1).run().sink.events


def results(events: list[Event]) -> bytes:
    return b"".join(orjson.dumps(event.result) + b"\n" for event in events if isinstance(event, TrialFinished))


def test_opened_after_a_cut_at_any_byte_it_is_as_if_the_last_line_had_never_been_begun(
    run: list[Event], swift: Path
) -> None:
    """The next event is appended behind the last whole line, and results.jsonl has what these lines say."""
    lines = [to_line(event) for event in run]
    for count, line in enumerate(lines):
        whole, wanted = b"".join(lines[:count]), fold(run[:count])
        for cut in range(len(line)):
            (swift / JOURNAL).write_bytes(whole + line[:cut])
            (swift / RESULTS).write_bytes(results(run[:count]))
            store = RunFiles.recover(swift, ledger := Ledger())
            assert ledger == wanted
            assert (swift / RESULTS).read_bytes() == results(run[:count])
            store.add([run[count]], [line])
            store.flush()
            store.close()
            assert (swift / JOURNAL).read_bytes() == whole + line
            assert (swift / RESULTS).read_bytes() == results(run[: count + 1])


def test_repaired_after_a_cut_at_any_byte_it_has_every_whole_line(run: list[Event], swift: Path) -> None:
    lines = [to_line(event) for event in run]
    for count, line in enumerate(lines):
        whole = b"".join(lines[:count])
        for cut in range(len(line)):
            (swift / JOURNAL).write_bytes(whole + line[:cut])
            lost = repair(swift)
            assert (swift / JOURNAL).read_bytes() == whole
            assert (lost.file.read_bytes() if lost and lost.file else b"") == line[:cut]
