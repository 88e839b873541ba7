"""Results of a sweep: its files, its exit code, its output for people and for programs."""

import re
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.waiting import wait_until

from .conftest import json_lines, new_desk

if TYPE_CHECKING:
    from .conftest import Desk, Ended, Service

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("results")]

#: The keys of a line of results.jsonl, as the manual has them, each with what may stand there.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "sweep": str,
    "benchmark": str,
    "scenario": str,
    "scenario_name": str,
    "arm": str,
    "agent": str,
    "version": (str, type(None)),
    "model": (str, type(None)),
    "trial": int,
    "started": str,
    "finished": str,
    "outcome": str,
    "score": (float, type(None)),
    "scorers": list,
    "rewards": dict,
    "scoring": (str, type(None)),
    "processes_left": dict,
    "flags": list,
    "failure": (dict, type(None)),
    "attempts": list,
    "stages": dict,
    "exit_status": (int, type(None)),
    "exit_reason": (str, type(None)),
    "usage": dict,
    "network": dict,
    "ids": dict,
    "files": dict,
    "steps": list,
    "rescored": (dict, type(None)),
}
ARMS = ("--agent", "oracle", "--agent", "nop")


def assert_documented(result: dict[str, Any]) -> None:
    assert list(result) == list(FIELDS)
    for key, kind in FIELDS.items():
        assert isinstance(result[key], kind), key


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, isolation: str, service: "Service") -> "tuple[Desk, Ended]":
    """A sweep of two arms over two scenarios, looked at from several sides."""
    desk = new_desk(tmp_path_factory.mktemp("ended"), isolation, service)
    return desk, desk.sweep("run", "six", *ARMS, "--limit", "2")


def test_a_sweep_leaves_one_documented_line_for_each_trial(ended: "tuple[Desk, Ended]") -> None:
    desk, said = ended
    folder, results = said.folder, desk.results(said.folder)
    for result in results:
        assert_documented(result)
        assert result["files"]["agent_log"]
        assert result["files"]["scorer_tests"]
        assert all((desk.folder / folder / file).exists() for file in result["files"].values())
        assert result["stages"].keys() >= {"start", "boot", "solve", "score"}
        assert (result["outcome"], result["benchmark"], result["failure"]) == ("scored", "six", None)
        assert all(result["ids"].values())
        started, finished = (datetime.fromisoformat(result[key]) for key in ("started", "finished"))
        assert started < finished
        assert started.utcoffset() == finished.utcoffset() == timedelta(0)
        assert abs(finished.timestamp() - time.time()) < 600
    scores = {(result["scenario_name"], result["arm"], result["trial"]): result["score"] for result in results}
    assert len(results) == 4
    assert scores == {(n, arm, 1): score for n in ("ant", "bee") for arm, score in (("oracle", 1.0), ("nop", 0.0))}


def test_a_sweeps_manifest_and_journal_say_what_it_was_and_how_it_ended(
    ended: "tuple[Desk, Ended]", service: "Service"
) -> None:
    desk, said = ended
    manifest = orjson.loads((desk.folder / said.folder / "manifest.json").read_bytes())
    assert {each["name"] for each in manifest["scenarios"].values()} == {"ant", "bee"}
    assert all(re.fullmatch("[0-9a-f]{64}", each["digest"]) for each in manifest["scenarios"].values())
    assert manifest["identity"]["arms"].keys() == {"oracle", "nop"}
    assert manifest["endpoint"] == service.url
    assert {result["sweep"] for result in desk.results(said.folder)} == {manifest["sweep"]}

    journal = desk.journal(said.folder)
    assert (journal[0]["event"], journal[-1]["event"]) == ("sweep.opened", "sweep.ended")
    assert journal[-1]["reason"] == "finished"
    json_lines((desk.folder / said.folder / "sweep.log").read_bytes())


def test_for_a_pipe_the_picture_is_plain_lines_and_a_table(ended: "tuple[Desk, Ended]") -> None:
    desk, said = ended
    assert "\x1b" not in said.out + said.err
    first, *lines = said.out.splitlines()
    assert re.fullmatch(r"Starting six-2-arms-\d{8}-\d{6}: 4 trials, 4 to do\.", first)
    assert sum(bool(re.match(r"\[[1-4]/4\] (ant|bee) (oracle  1\.000|nop  0\.000)  ", line)) for line in lines) == 4
    table = {line.split()[0]: line.split() for line in lines if line.startswith(("oracle ", "nop "))}
    assert table["oracle"][1:8] == ["2/2", "0", "0", "1.000", "0.342", "-", "1.000"]
    assert table["nop"][1:8] == ["2/2", "0", "0", "0.000", "0.000", "-", "0.658"]
    assert (desk.folder / said.folder / "trials").is_dir()


def test_for_programs_standard_output_is_json_lines_and_nothing_else(served: "Desk") -> None:
    ended = served.sweep("run", "six", *ARMS, "--limit", "1", "--json")
    *trials, last = ended.json
    assert [(trial["event"], trial["scenario_name"]) for trial in trials] == [("trial", "ant")] * 2
    assert {(trial["arm"], trial["score"]) for trial in trials} == {("oracle", 1.0), ("nop", 0.0)}
    assert last["event"] == "sweep"
    assert [(arm["arm"], arm["mean"], arm["scored"]) for arm in last["arms"]] == [("oracle", 1.0, 1), ("nop", 0.0, 1)]
    assert len(served.results(last["folder"])) == 2
    assert "Starting " in ended.err


def test_the_same_command_after_a_full_run_starts_another_sweep(served: "Desk") -> None:
    command = ("run", "six", "--agent", "oracle", "--limit", "1")
    first, second = served.sweep(*command), served.sweep(*command)
    assert second.out.startswith("Starting ")
    assert first.folder != second.folder
    assert len(served.results(first.folder)) == len(served.results(second.folder)) == 1


def test_a_named_sweep_that_is_finished_shows_its_summary_and_runs_nothing(served: "Desk", service: "Service") -> None:
    """And takes no results of another kind."""
    command = ("run", "six", *ARMS, "--limit", "1", "--name", "mine")
    first = served.sweep(*command)
    before = len(service.devboxes())
    second = served.sweep(*command)
    assert "0 to do" in second.out
    assert first.out[first.out.index("arm ") :] == second.out[second.out.index("arm ") :]
    assert len(service.devboxes()) == before
    assert len(served.results("runs/mine")) == 2
    line = served.refused("run", "six", "--agent", "nop", "--limit", "1", "--name", "mine")
    assert "runs/mine" in line
    assert "arms.oracle" in line


def test_less_of_an_unfinished_sweep_is_another_sweep_and_more_of_it_the_same(served: "Desk") -> None:
    """A dry run says so too, and both say why."""
    command = ("run", "six", "--agent", "command:false", "--on-agent-failure", "fail", "--devboxes", "1")
    whole = served.sweep(*command, "--limit", "5", "--max-failures", "1", status=1).folder
    why = (
        f"New sweep: {Path(whole).name} has 3 trials that this plan does not have "
        f"(--limit was 5, is 2). To continue {Path(whole).name}: sweep resume {Path(whole).name}"
    )
    assert why in served.sweep(*command, "--limit", "2", "--dry-run").out
    less = served.sweep(*command, "--limit", "2", status=1)
    assert why in less.out.splitlines()
    assert less.folder != whole
    more = served.sweep(*command, "--limit", "6", "--max-failures", "2", status=1)
    assert more.folder == whole
    assert "New sweep: " not in more.out


def test_the_started_service_ends_with_the_sweep_and_nothing_else_is_left(desk: "Desk") -> None:
    """Nothing beside the runs folder is written, and the home stays empty."""
    desk.sweep("run", "bugfix-mini", "--agent", "oracle", "--include", "csv-*")
    wait_until(lambda: not desk.processes(), lambda: f"left behind: {desk.processes()}", seconds=15)
    assert [path.name for path in desk.folder.iterdir()] == ["runs"]
    assert not list(desk.home.iterdir())
    assert not list(desk.folder.glob("runs/.service/*/devboxes/boxes/*"))


def test_a_settings_file_says_what_a_sweep_does_and_typed_options_win(served: "Desk") -> None:
    Path(served.folder / "sweep.toml").write_text(
        'benchmark = "six"\ntrials = 3\ninclude = ["a*", "b*"]\nexclude = ["ant"]\nname = "from-file"\n'
        '[timeouts]\nsolve = 30\n[[arms]]\nagent = "oracle"\nname = "reference"\n[[arms]]\nagent = "nop"\n'
    )
    served.sweep("run", "--config", "sweep.toml", "--trials", "1")
    assert (served.folder / "runs/from-file/sweep.toml").read_text() == (served.folder / "sweep.toml").read_text()
    results = served.results("runs/from-file")
    assert {(result["scenario_name"], result["arm"]) for result in results} == {("bee", "reference"), ("bee", "nop")}
