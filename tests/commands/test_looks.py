"""`sweep list`, `show`, `failures`, `status`: a sweep that died is seen from its folder alone, whatever its names."""

import csv
import os
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.core import events
from orchestrator.core.errors import UsageError
from orchestrator.core.events import Event, to_line
from orchestrator.core.records import ScenarioSummary, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.rundir.files import JOURNAL, attempt_folder
from orchestrator.rundir.manifest import Manifest, write_manifest
from scripts import demo_sweep

BEGAN: Final = 1_800_000_000.0
HOSTILE: Final = "\x1b]0;pwned\x07cat\u202e漢字"
NAMES: Final = {"s0": "ant", "s1": "bee", "s2": HOSTILE}
ARMS: Final = ("fast", "slow")
#: What an agent printed last, with colours, a progress bar and a title for the terminal.
LOG: Final = b"\x1b[31mthinking\x1b[0m\n 10 %\r 90 %\r\x1b]0;pwned\x07step \x1b[1m7\x1b[0m \xe2\x80\xae\n\n"


def ended(scenario: str, arm: str, trial: int, *, score: float | None, message: str = "", cost: float = 0.0) -> Event:
    failure = {"class": "DevboxLost", "message": message, "stage": "solve"} if message else None
    result = {
        **dict.fromkeys(("agent", "version", "model", "exit_reason"), None),
        "benchmark": "b",
        "scenario": scenario,
        "scenario_name": NAMES[scenario],
        "arm": arm,
        "trial": trial,
        "started": "2027-01-15T08:00:00.000+00:00",
        "finished": "2027-01-15T08:01:00.000+00:00",
        "outcome": "failed" if message else "scored",
        "score": score,
        "scoring": "shared",
        "scorers": [{"name": "tests", "score": score, "state": "complete"}] if score is not None else [],
        "exit_status": 0,
        "flags": ["agent_timed_out"] if score == 0.5 else [],
        "failure": failure,
        "attempts": [{"attempt": 1, "failure": failure}],
        "stages": {"boot": {"seconds": 1.0, "waited": 30.0}, "solve": {"seconds": 60.0 * trial, "waited": 0.0}},
        "usage": {"cost_usd": cost, "input_tokens": 5000},
        "network": {"reached": {"api.example.org": 12}, "refused": {"evil.example.org": 1}},
        "rewards": {},
        "files": {},
    }
    return events.TrialFinished(trial=f"{scenario}/{arm}/{trial}", attempt=1, at=BEGAN + 100, result=result)


def in_flight(trial: str) -> Iterator[Event]:
    """A trial that has been solving for ten minutes, and silent for eight."""
    of: dict[str, Any] = {"trial": trial, "attempt": 1}
    yield events.StageEntered(**of, at=BEGAN + 100, stage=Stage.START)
    yield events.RunStarted(**of, at=BEGAN + 100, run="scr_1", devbox="dbx_1")
    for stage in (Stage.BOOT, Stage.PREPARE, Stage.SOLVE):
        yield events.StageEntered(**of, at=BEGAN + 110, stage=stage)
    yield events.OutputKept(**of, at=BEGAN + 220, offset=9, length=9)
    yield events.OutputKept(**of, at=BEGAN + 700, offset=9, length=9)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a sweep whose process was killed, and of one that is damaged."""
    runs = tmp_path_factory.mktemp("looks") / "runs"
    night = runs / "night"
    night.mkdir(parents=True)
    manifest = Manifest(
        schema=1,
        sweep="0190",
        identity={"benchmark": "b"},
        config={"arms": [{"name": arm} for arm in ARMS], "trials": 2, "devboxes": 8, "max_cost": 10.0},
        scenarios={id_: ScenarioSummary(id=id_, name=name) for id_, name in NAMES.items()},
    )
    write_manifest(night, manifest)
    happened = [
        events.SweepOpened(at=BEGAN, sweep="0190", schema=1, version="0", pid=1),
        ended("s0", "fast", 1, score=1.0, cost=0.5),
        ended("s0", "fast", 2, score=1.0),
        ended("s0", "slow", 1, score=1.0),
        ended("s0", "slow", 2, score=0.0, cost=1.25),
        ended("s1", "fast", 1, score=None, message="devbox dbx_1 died"),
        ended("s1", "fast", 2, score=None, message="devbox dbx_2 died"),
        ended("s1", "slow", 1, score=0.5),
        *in_flight("s2/fast/1"),
    ]
    with (night / JOURNAL).open("wb") as file:
        file.writelines(map(to_line, happened))
    lines = [orjson.dumps(each.result) + b"\n" for each in happened if isinstance(each, events.TrialFinished)]
    (night / "results.jsonl").write_bytes(b"".join(lines))
    place = attempt_folder(night, TrialKey("s0", "slow", 2), "ant", 1)
    (place / "scorers").mkdir(parents=True)
    (place / "scorers" / "tests.log").write_bytes(b"\x1b[32m3 passed\x1b[0m\n1 failed\n")
    (place / "patch.diff").write_text("diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1,60 @@\n-old\n" + "+new\n" * 60)
    (place / "agent.log").write_bytes(LOG)
    (place / "artifacts").symlink_to("/etc/passwd")
    flying = attempt_folder(night, TrialKey("s2", "fast", 1), HOSTILE, 1)
    flying.mkdir(parents=True)
    (flying / "agent.log").write_bytes(LOG)
    (runs / "damaged").mkdir()
    (runs / "damaged" / "manifest.json").write_text("{}")
    os.utime(runs / "damaged" / "manifest.json", (1, 1))  # the other is the newest
    return runs


def look(runs: Path, *words: str) -> str:
    """What a command prints; it holds nothing that a terminal would obey."""
    environment = {"TZ": "UTC", "SWEEP_RUNS": str(runs)}
    ended = CliRunner().invoke(app, list(words), env=environment)
    assert ended.exception is None, ended.output
    assert all(each.isprintable() for line in ended.output.split("\n") for each in line)
    return ended.stdout


def test_sweeps_are_listed_arm_by_arm_and_a_damaged_one_is_named(runs: Path) -> None:
    lines = [line.split() for line in look(runs, "list").splitlines()]
    rows = {tuple(line[:3]): line[3:] for line in lines[1:]}
    assert rows["night", "fast", "died"][:2] == ["4/6", "1.000"]
    assert rows["night", "slow", "died"][:2] == ["3/6", "0.500"]
    assert rows["night", "slow", "died"][-1] == "$1.25"
    assert ("damaged", "-", "damaged") in rows
    table = [*csv.DictReader(StringIO(look(runs, "list", "--csv")))]
    night = next(row for row in table if row["arm"] == "slow")
    assert (night["done"], night["trials"], night["cost_usd"], night["seconds"]) == ("3", "6", "1.25", "700.0")
    assert look(runs, "list", "--md").startswith("| name | arm | state |")


def test_the_next_command_is_what_a_shell_reads(tmp_path: Path) -> None:
    demo_sweep.write(tmp_path / "my runs" / "quiet", scenarios=1, arms=1)
    last = look(tmp_path / "my runs", "show", "quiet").splitlines()[-1]
    assert last == f"Next: sweep view '{tmp_path}/my runs/quiet'"


def test_a_table_without_rows_has_its_headings(tmp_path: Path) -> None:
    demo_sweep.write(tmp_path / "quiet", scenarios=1, arms=1)
    for words in (("failures", "quiet"), ("status", "quiet")):
        assert look(tmp_path, *words, "--csv").startswith("scenario,scenario_name,arm,trial,")
    (tmp_path / "none").mkdir()
    assert look(tmp_path / "none", "list", "--csv").startswith("name,folder,state,")


def test_what_the_journal_has_lost_is_told_where_results_are_shown_or_exported(tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    demo_sweep.write(folder, scenarios=2, arms=1)
    (folder / JOURNAL).write_bytes(b"")
    told = "results.jsonl has 2 results more than the journal, which was cut"
    assert told in look(tmp_path, "show", "cut")
    exported = CliRunner().invoke(app, ["export", str(folder), "--to", "jsonl"])
    assert exported.stderr.startswith(told)
    assert exported.stdout == (folder / "results.jsonl").read_text()
    (folder / "manifest.json").unlink()
    listed = CliRunner().invoke(app, ["list", "--runs", str(tmp_path), "--json"])
    assert (listed.stdout, listed.stderr) == ("", "Not listed, because manifest.json is missing: cut.\n")


def test_a_sweep_is_shown_as_scenarios_by_arm_and_what_is_remarkable(runs: Path) -> None:
    text = look(runs, "show", "night")
    lines = text.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["scenario", "fast", "slow"],
        ["ant", "2/2", "1/2"],
        ["bee", "2", "failed", "0/1", "0.500", "1", "left"],
    ]
    assert "night: died · 7/12 trials · started 2027-01-15 08:00 · took 11:40 · $1.75" in lines
    assert "  2  DevboxLost: devbox dbx_1 died" in lines
    assert "  $1.25  ant slow #2" in lines
    assert "  1 of 2  ant slow" in lines
    assert lines[-1].startswith("Next: sweep resume ")
    sweep, *cells = [orjson.loads(line) for line in look(runs, "show", "--json").splitlines()]
    assert (sweep["event"], sweep["state"], sweep["done"]) == ("sweep", "died", 7)
    assert {(cell["scenario_name"], cell["arm"]): (cell["solved"], cell["failed"]) for cell in cells} == {
        ("ant", "fast"): (2, 0),
        ("ant", "slow"): (1, 0),
        ("bee", "fast"): (0, 2),
        ("bee", "slow"): (0, 0),
        (HOSTILE, "fast"): (0, 0),
        (HOSTILE, "slow"): (0, 0),
    }
    assert "| ant | 2/2 | 1/2 |" in look(runs, "show", "--md")
    assert len([*csv.reader(StringIO(look(runs, "show", "--csv")))]) == 7


def test_a_trial_is_shown_with_all_that_was_kept_of_it(runs: Path) -> None:
    text = look(runs, "show", "night", "ant", "--arm", "slow", "--trial", "2")
    shown = text.splitlines()
    assert shown[0] == "ant slow #2: scored 0.000"
    for words in (
        "  boot         1.0 s    waited 30 s",
        f"  solve         2:00  {'█' * 30}",
        "Scorers in a new devbox, over the agent's files",
        "  3 passed",
        "Patch: 1 file, +60 -1",
        "  api.example.org 12",
        "  evil.example.org 1",
        "  step 7 \\u202e",
    ):
        assert words in shown
    assert any(line.endswith("--file patch.diff") for line in shown), "what is cut has the command that prints it"
    assert "root:" not in text, "what an agent linked to is not read"
    (record,) = map(
        orjson.loads, look(runs, "show", "night", "ant", "--arm", "slow", "--trial", "2", "--json").splitlines()
    )
    assert (record["state"], record["result"]["score"]) == ("scored 0.000", 0.0)

    several = look(runs, "show", "night", "ant").splitlines()
    assert len(several) == 1 + 4 + 1
    flying = orjson.loads(look(runs, "show", "night", "s2", "--arm", "fast", "--trial", "1", "--json"))
    assert (flying["state"], flying["stage"], flying["result"]) == ("solving", "solve", None)


def test_failures_are_grouped_by_their_reason_and_each_has_its_command(runs: Path) -> None:
    lines = look(runs, "failures", "night").splitlines()
    assert lines[0] == "2  DevboxLost (fast 2): devbox dbx_1 died"
    assert [line.split()[:3] for line in lines[-2:]] == [["bee", "fast", "1"], ["bee", "fast", "2"]]
    rows = [orjson.loads(line) for line in look(runs, "failures", "--json").splitlines()]
    assert [row["message"] for row in rows] == ["devbox dbx_1 died", "devbox dbx_2 died"]
    assert rows[1]["command"].endswith(" bee --arm fast --trial 2")


def test_a_stuck_trial_stands_out_on_another_machine_too(runs: Path) -> None:
    lines = look(runs, "status", "night").splitlines()
    assert "Budgets: $1.75 of $10.00" in lines
    assert lines[-1].split()[-6:] == ["10:00", "solving", "8:00", "step", "7", "\\u202e"]
    sweep, row = map(orjson.loads, look(runs, "status", "night", "--json").splitlines())
    assert (sweep["event"], sweep["process"], sweep["budgets"]) == ("sweep", None, ["$1.75 of $10.00"])
    assert (row["event"], row["devbox"], row["seconds"], row["idle_seconds"]) == ("in_flight", "dbx_1", 600.0, 480.0)


def test_what_is_not_there_is_named(runs: Path, tmp_path: Path) -> None:
    for words, says in (
        (("show", "nigth"), "Did you mean night?"),
        (("show", "night", "amt"), "Did you mean ant?"),
        (("status", "--runs", str(tmp_path)), "There is no sweep in"),
    ):
        ended = CliRunner().invoke(app, list(words), env={"SWEEP_RUNS": str(runs)})
        assert isinstance(ended.exception, UsageError)
        assert says in ended.exception.message
