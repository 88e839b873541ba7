"""A sweep that is read from its folder while somebody works in it, or nobody."""

from pathlib import Path

import orjson
import pytest

from orchestrator.common import locks
from orchestrator.core.errors import UsageError
from orchestrator.core.events import Event, SweepEnded, SweepOpened, TrialFinished, to_line
from orchestrator.core.records import TrialKey
from orchestrator.rundir.files import JOURNAL, MANIFEST, RESULTS
from orchestrator.rundir.recorded import RecordedSweep, SweepState

from .conftest import python

#: A line of results.jsonl, as far as one is read.
ROW: dict[str, object] = {
    **dict.fromkeys(("benchmark", "scenario_name", "agent", "version", "model", "started", "finished", "scoring")),
    **dict.fromkeys(("exit_status", "exit_reason", "failure")),
    "flags": [],
    "attempts": [{"attempt": 1, "failure": None}],
    "stages": {},
    "usage": {},
    "rewards": {},
    "files": {},
    "score": 1.0,
}


def write(folder: Path, *happened: Event) -> None:
    with (folder / JOURNAL).open("ab") as journal:
        journal.writelines(map(to_line, happened))
    with (folder / RESULTS).open("ab") as results:
        results.writelines(orjson.dumps(each.result) + b"\n" for each in happened if isinstance(each, TrialFinished))


def finished(scenario: str) -> TrialFinished:
    result = ROW | {"scenario": scenario, "arm": "a", "trial": 1, "outcome": "scored"}
    return TrialFinished(trial=f"{scenario}/a/1", attempt=1, result=result)


def ask_for(folder: Path, *scenarios: str) -> None:
    manifest = {
        "sweep": "0190",
        "identity": {"benchmark": "b"},
        "config": {"arms": [{"name": "a"}], "trials": 1},
        "scenarios": {each: {"name": f"name of {each}"} for each in scenarios},
    }
    (folder / MANIFEST).write_bytes(orjson.dumps(manifest))


def test_what_is_written_meanwhile_is_taken_in(folder: Path) -> None:
    ask_for(folder, "s1")
    write(folder, SweepOpened(sweep="0190", schema=1, version="", pid=1), finished("s1"))
    sweep = RecordedSweep(folder)
    assert list(sweep.results) == [TrialKey("s1", "a", 1)]
    assert (len(sweep.plan), sweep.ledger.is_finished(TrialKey("s1", "a", 1))) == (1, True)
    assert not sweep.catch_up()

    ask_for(folder, "s1", "s2")
    write(folder, finished("s2"))
    assert sweep.catch_up()
    assert [key.scenario for key in sweep.results] == [key.scenario for key in sweep.plan] == ["s1", "s2"]
    assert sweep.names["s2"] == "name of s2"
    place = sweep.attempt_folder(TrialKey("s2", "a", 1), 3)
    assert (place.name, place.parents[3].name) == ("attempt-3", "trials")


def test_where_a_sweep_is_shows_in_its_folder_alone(folder: Path) -> None:
    ask_for(folder, "s1")
    write(folder, SweepOpened(sweep="0190", schema=1, version="", pid=1))
    sweep = RecordedSweep(folder)
    states = [sweep.state]
    script = "import sys; from pathlib import Path; from orchestrator.rundir.files import locked\n"
    script += f"with locked(Path({str(folder)!r})): print('held', flush=True); sys.stdin.read()"
    with python(script) as process:
        assert process.stdout is not None
        process.stdout.readline()
        states.append(sweep.state)
    write(folder, SweepEnded(reason="interrupted: SIGINT"))
    sweep.catch_up()
    states.append(sweep.state)
    write(folder, finished("s1"), SweepEnded(reason="finished"))
    sweep.catch_up()
    states.append(sweep.state)
    assert states == [SweepState.DIED, SweepState.RUNNING, SweepState.STOPPED, SweepState.FINISHED]


def test_a_sweep_that_ends_while_it_is_read_has_not_died_and_lost_nothing(folder: Path) -> None:
    ask_for(folder, "s1")
    write(folder, SweepOpened(sweep="0190", schema=1, version="", pid=1))
    with locks.hold(folder):
        sweep = RecordedSweep(folder)
        write(folder, finished("s1"), SweepEnded(reason="finished"))
    assert (sweep.state, sweep.lost) == (SweepState.RUNNING, 0)
    sweep.catch_up()
    assert sweep.state is SweepState.FINISHED
    (folder / JOURNAL).write_bytes(to_line(SweepOpened(sweep="0190", schema=1, version="", pid=1)))
    assert RecordedSweep(folder).state is SweepState.DIED


def test_results_that_the_journal_has_lost_are_counted_as_such(folder: Path) -> None:
    ask_for(folder, "s1", "s2")
    write(folder, SweepOpened(sweep="0190", schema=1, version="", pid=1))
    begun = (folder / JOURNAL).read_bytes()
    write(folder, finished("s1"), finished("s2"))
    assert RecordedSweep(folder).lost == 0
    (folder / JOURNAL).write_bytes(begun)
    assert RecordedSweep(folder).lost == 2


def test_a_folder_that_is_no_sweep_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="is not a sweep"):
        RecordedSweep(folder)
