"""`sweep export`, read back as its readers do."""

import csv
import json
import os
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID
from xml.etree import ElementTree as ET

import atif
import pytest

from orchestrator.core.errors import JournalError, UsageError
from orchestrator.results import load

from .conftest import CLOSED, new_desk, reward, write_scenario
from .test_steps import steps, write_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Desk


#: Solves its scenario, prints a session with its usage, and leaves an artifact.
TALKER: Final = """
run = '''
touch /app/done
echo why >/app/why.txt
printf '{"type": "text", "timestamp": 1780000000000, "part": {"type": "text", "text": "All done."}}\\n'
'''
trajectory = { from = "output", format = "opencode" }
model = { default = "acme/small" }

[gather]
files = ["/app/why.txt"]
"""
#: The mean of each agent.
SCORES: Final = {"oracle": 1.0, "nop": 0.0, "talker": 1.0}
#: Some columns of each type, in Parquet and in pandas.
TYPES: Final = {
    "arm": "string",
    "failure_class": "string",
    "patch_file": "string",
    "flags": "list<element: string>",
    "trial": "int64",
    "turns": "int64",
    "cost_usd": "double",
    "solve_seconds": "double",
    "reward_reward": "double",
    "started": "timestamp[ms, tz=UTC]",
}
PANDAS: Final = {
    "arm": "string",
    "flags": "object",
    "turns": "Int64",
    "score": "float64",
    "started": "datetime64[ms, UTC]",
}
#: A Python that has Harbor: its viewer shows ours where there is one.
HARBOR: Final = os.environ.get("SWEEP_TEST_HARBOR")
#: Asks Harbor's viewer for the pages of a folder of jobs, and prints what they show.
VIEW: Final = """
import json, pathlib, sys
from fastapi.testclient import TestClient
from harbor.viewer import create_app
from harbor.viewer.scanner import JobScanner

folder = pathlib.Path(sys.argv[1])
viewer = TestClient(create_app(folder))

def ask(path):
    answer = viewer.get("/api/jobs" + path)
    answer.raise_for_status()
    return answer.json()

(job,) = ask("")["items"]
trials = [ask("/it/trials/" + each["name"]) for each in ask("/it/trials")["items"]]
(talker,) = [each for each in trials if (each["task_name"], each["agent_info"]["name"]) == ("one", "talker")]
page = "/it/trials/" + talker["trial_name"]
found = JobScanner(folder)
print(json.dumps({
    "agents": job["agents"],
    "benchmarks": job["datasets"],
    "counts": [job["n_total_trials"], job["n_completed_trials"], job["n_errored_trials"]],
    "rewards": sorted(
        [each["task_name"], each["agent_info"]["name"], (each["verifier_result"] or {}).get("rewards")]
        for each in trials
    ),
    "same": all(
        found.get_trial_config("it", name) == found.get_trial_result("it", name).config
        for name in found.list_trials("it")
    ),
    "said": ask(page + "/trajectory")["steps"][-1]["message"],
    "artifacts": [each["path"] for each in ask(page + "/artifacts")["files"]],
    "log": ask(page + "/agent-logs")["commands"][0]["content"].count("All done."),
}))
"""


READ_STEPS: Final = """
import sys
from harbor.models.trial.result import TrialResult

print(*(each.step_name for each in TrialResult.model_validate_json(open(sys.argv[1]).read()).step_results))
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, isolation: str) -> "Iterator[Desk]":
    """A sweep of three agents over two scenarios, one of which cannot be tried."""
    desk = new_desk(tmp_path_factory.mktemp("swept"), isolation)
    write_scenario(desk.folder / "mine/one")
    write_scenario(desk.folder / "mine/two", task=f"{CLOSED}gpus = 1\n", solution="")
    (desk.folder / "agents").mkdir()
    (desk.folder / "agents/talker.toml").write_text(TALKER)
    agents = ("--agent", "oracle", "--agent", "nop", "--agent", "talker")
    desk.sweep("run", "mine", *agents, "--name", "it", status=1)
    yield desk
    desk.clear()


def test_each_form_of_text_has_every_trial(swept: "Desk") -> None:
    results = swept.results("runs/it")
    assert len(results) == 6
    assert [json.loads(line) for line in swept.sweep("export", "it", "--to", "jsonl").out.splitlines()] == results

    table = list(csv.DictReader(swept.sweep("export", "it", "--to", "csv").out.splitlines()))
    assert {(row["scenario_name"], row["arm"], row["outcome"], row["score"]) for row in table} == {
        *(("one", arm, "scored", str(score)) for arm, score in SCORES.items()),
        *(("two", arm, "failed", "") for arm in SCORES),
    }
    assert {row["failure_class"] for row in table if row["scenario_name"] == "two"} == {"Unsupported"}

    swept.sweep("export", "it", "--to", "junit", "-o", "junit.xml")
    suites = ET.parse(swept.folder / "junit.xml").getroot()
    counts = {each.get("name"): [each.get(key) for key in ("tests", "failures", "errors")] for each in suites}
    assert counts == {"oracle": ["2", "0", "1"], "nop": ["2", "1", "1"], "talker": ["2", "0", "1"]}
    (failure,) = suites.iter("failure")
    assert failure.get("message") == "score 0"


def test_tables_have_the_columns_of_the_csv_with_their_types(swept: "Desk") -> None:
    """In Parquet and in the frames of both libraries, also where no trial has a value, or none has ended."""
    parquet = pytest.importorskip("pyarrow.parquet")
    header = swept.sweep("export", "it", "--to", "csv").out.partition("\n")[0].split(",")
    swept.sweep("export", "it", "--to", "parquet", "-o", "it.parquet")
    table = parquet.read_table(swept.folder / "it.parquet")
    assert table.column_names == header
    of_parquet = {field.name: str(field.type) for field in table.schema}
    for name, kind in TYPES.items():
        assert of_parquet[name] == kind, name

    results = load(swept.folder / "runs/it")
    started = datetime.fromisoformat(results[0]["started"])
    pandas, polars = results.as_pandas(), results.as_polars()
    assert list(pandas.columns) == polars.columns == header
    assert pandas.dtypes.astype(str).to_dict() | PANDAS == pandas.dtypes.astype(str).to_dict()
    assert pandas.groupby("arm").score.mean().to_dict() == SCORES
    assert pandas.started[0] == polars["started"][0] == table["started"][0].as_py() == started
    assert polars["flags"].to_list() == table["flags"].to_pylist() == [row["flags"] for row in results]
    nothing = type(results)()
    assert len(nothing.as_pandas().input_tokens) == len(nothing.as_polars()["input_tokens"]) == 0


def test_predictions_have_the_patch_of_each_scenario(swept: "Desk") -> None:
    (result,) = (each for each in swept.results("runs/it") if (each["scenario_name"], each["arm"]) == ("one", "oracle"))
    lines = swept.sweep("export", "it", "--to", "swebench", "--arm", "oracle").out.splitlines()
    patches = {each["instance_id"]: each["model_patch"] for each in map(json.loads, lines)}
    assert patches == {"one": (swept.folder / "runs/it" / result["files"]["patch"]).read_text(), "two": ""}
    assert "done" in patches["one"]


def test_a_job_for_harbor_has_every_trial_with_its_files(swept: "Desk") -> None:
    results = {(each["scenario_name"], each["arm"]): each for each in swept.results("runs/it")}
    swept.sweep("export", "it", "--to", "harbor", "-o", "jobs/it")
    job = swept.folder / "jobs/it"
    trials = {}
    for file in job.glob("*/result.json"):
        trial = json.loads(file.read_bytes())
        assert trial["config"] == json.loads(file.with_name("config.json").read_bytes())
        assert trial["trial_name"] == file.parent.name
        trials[trial["task_name"], trial["agent_info"]["name"]] = file.parent, trial
    assert trials.keys() == results.keys()
    assert len({UUID(trial["id"]) for _, trial in trials.values()}) == 6

    folder, trial = trials["one", "talker"]
    assert trial["verifier_result"] == {"rewards": {"reward": 1.0}}
    assert trial["agent_info"]["model_info"] == {"name": "small", "provider": "acme"}
    assert trial["started_at"] <= trial["agent_execution"]["started_at"] < trial["verifier"]["finished_at"]
    assert atif.Trajectory.model_validate_json((folder / "agent/trajectory.json").read_bytes()).steps[-1].message
    assert "All done." in (folder / "agent/command-0/stdout.txt").read_text()
    assert (folder / "verifier/reward.txt").read_text() == "1\n"
    found = {str(file.relative_to(folder / "artifacts")) for file in (folder / "artifacts").rglob("*.*")}
    assert found == {"patch.diff", "app/why.txt"}

    folder, trial = trials["two", "nop"]
    failure = results["two", "nop"]["failure"]
    assert (trial["verifier_result"], trial["exception_info"]["exception_type"]) == (None, "Unsupported")
    assert (folder / "exception.txt").read_text() == failure["message"]

    whole = json.loads((job / "result.json").read_bytes())
    counts = [whole["stats"][key] for key in ("n_completed_trials", "n_errored_trials", "n_retries")]
    assert counts == [6, 3, 0]
    assert {key: each["metrics"] for key, each in whole["stats"]["evals"].items()} == {
        "oracle__mine": [{"mean": 1}],
        "nop__mine": [{"mean": 0}],
        "talker__small__mine": [{"mean": 1}],
    }


@pytest.mark.skipif(not HARBOR, reason="SWEEP_TEST_HARBOR names no Python that has harbor")
def test_the_viewer_of_harbor_shows_its_job(swept: "Desk") -> None:
    swept.sweep("export", "it", "--to", "harbor", "-o", "for-harbor/it")
    command = [str(HARBOR), "-c", VIEW, str(swept.folder / "for-harbor")]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    scores = {arm: {"reward": score} for arm, score in SCORES.items()}
    assert json.loads(said) == {
        "agents": sorted(SCORES),
        "benchmarks": ["mine"],
        "counts": [6, 6, 3],
        "rewards": [
            *(["one", arm, scores[arm]] for arm in sorted(SCORES)),
            *(["two", arm, None] for arm in sorted(SCORES)),
        ],
        "same": True,
        "said": "All done.",
        "artifacts": ["app/why.txt", "patch.diff"],
        "log": 1,
    }


@pytest.mark.slow
def test_each_step_of_a_scenario_has_its_own_in_a_job_and_among_trajectories(desk: "Desk") -> None:
    task = steps("first", "second")
    write_steps(desk.folder / "mine/both", task, {"tests/test.sh": reward("test -e /app/done")})
    (desk.folder / "agents").mkdir()
    (desk.folder / "agents/talker.toml").write_text(TALKER)
    desk.sweep("run", "mine", "--agent", "talker", "--name", "it")
    (result,) = desk.results("runs/it")
    desk.sweep("export", "it", "--to", "harbor", "-o", "jobs/it")
    (folder,) = desk.folder.glob("jobs/it/both__*")
    trial = json.loads((folder / "result.json").read_bytes())
    assert (trial["verifier_result"]["rewards"]["reward"], trial.get("agent_result")) == (result["score"], None)
    ended = trial["started_at"]
    for step in trial["step_results"]:
        assert step["verifier_result"] == {"rewards": {"reward": 1.0}}
        assert ended <= step["agent_execution"]["started_at"] < step["verifier"]["finished_at"]
        ended = step["verifier"]["finished_at"]
        assert (folder / "steps" / step["step_name"] / "verifier/reward.txt").read_text() == "1\n"
    assert ended == trial["finished_at"]
    assert (folder / "trial.log").read_text().count("All done.") == 2
    assert not (folder / "exception.txt").exists()
    desk.sweep("export", "it", "--to", "atif", "-o", "trajectories")
    index = [json.loads(line) for line in (desk.folder / "trajectories/index.jsonl").read_text().splitlines()]
    assert [each["step"] for each in index] == ["first", "second"]
    assert {each["file"] for each in index} | {"index.jsonl"} == {
        file.name for file in (desk.folder / "trajectories").iterdir()
    }
    if HARBOR:
        said = subprocess.check_output([HARBOR, "-c", READ_STEPS, str(folder / "result.json")], text=True)
        assert said == "first second\n"


def test_trajectories_are_a_folder_with_an_index(swept: "Desk") -> None:
    swept.sweep("export", "it", "--to", "atif", "-o", "trajectories/")
    (entry,) = map(json.loads, (swept.folder / "trajectories/index.jsonl").read_text().splitlines())
    assert (entry["scenario_name"], entry["arm"], entry["score"]) == ("one", "talker", 1.0)
    document = atif.Trajectory.model_validate_json((swept.folder / "trajectories" / entry["file"]).read_bytes())
    assert document.agent.name == "talker"
    assert "left a trajectory" in swept.refused("export", "it", "--to", "atif", "-o", "no", "--arm", "nop")
    assert not list(swept.folder.glob("*no*"))


def test_hugging_face_loads_its_folder(swept: "Desk", monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    swept.sweep("export", "it", "--to", "huggingface-folder", "-o", "dataset")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = str(swept.folder / "dataset")
    (rows,) = datasets.load_dataset(folder, cache_dir=str(swept.folder / "cache")).values()
    (row,) = (each for each in rows if (each["scenario_name"], each["arm"]) == ("one", "talker"))
    assert len(rows) == 6
    assert (row["score"], row["flags"], row["started"].utcoffset()) == (1.0, [], timedelta(0))
    assert "done" in row["patch"]
    assert json.loads(row["trajectory"])["agent"]["name"] == "talker"
    assert "| talker | acme/small | 2 | 1 | 1.000 |" in (swept.folder / "dataset/README.md").read_text()


def test_results_are_loaded_as_far_as_they_are_whole(swept: "Desk", tmp_path: Path) -> None:
    """A line that is being written is left out, and a damaged one is said, by `load` and by the command."""
    whole = (swept.folder / "runs/it/results.jsonl").read_bytes()
    file = tmp_path / "results.jsonl"
    file.write_bytes(whole[:-1])
    assert list(load(file)) == swept.results("runs/it")[:-1]
    for damage, message in ((b"{\n", "line 1: "), (b"{}\n", "line 1: benchmark, "), (b"[]\n", "an object is missing")):
        file.write_bytes(damage + whole)
        with pytest.raises(JournalError, match="`sweep repair` makes it anew") as error:
            load(tmp_path)
        assert message in str(error.value)
    with pytest.raises(UsageError, match=r"is no sweep: .* was expected"):
        load(tmp_path / "gone")


def test_what_is_not_there_is_refused_by_name(swept: "Desk") -> None:
    words = ("export", "it", "--to", "csv")
    assert "--arm nobody: it has results of nop, oracle, talker" in swept.refused(*words, "--arm", "nobody")
    assert "no result of trial 2 yet" in swept.refused(*words, "--trial", "2")
    assert "Did you mean it?" in swept.refused("export", "itt", "--to", "csv")
    gone = swept.sweep(*words, "-o", "gone/x.csv", status=1)
    assert gone.err == "sweep: gone/x.csv cannot be written: No such file or directory.\n"
    for form in ("harbor", "atif", "huggingface-folder"):
        assert f"--to {form} writes a folder: give its place with -o DIR" in swept.refused(*words[:3], form)
    assert "runs is there already: give a new folder" in swept.refused(*words[:3], "harbor", "-o", "runs")


def test_predictions_are_scored_without_an_agent(swept: "Desk") -> None:
    """What was exported scores as it did; a scenario without a patch stays as it is, and a bad patch is said."""
    write_scenario(swept.folder / "mine/three")
    swept.sweep("export", "it", "--to", "swebench", "--arm", "oracle", "-o", "good.jsonl")
    more = {"instance_id": "four", "model_patch": "a text may have \u2028 and \x85 in a line"}
    with (swept.folder / "good.jsonl").open("a") as file:
        file.write(json.dumps(more, ensure_ascii=False) + "\n")
    (swept.folder / "bad.jsonl").write_text('{"instance_id": "one", "model_patch": "no patch\\n"}\n')
    words = ("--agent", "predictions:good.jsonl", "--agent", "predictions:bad.jsonl", "--exclude", "two")
    swept.sweep("run", "mine", *words, "--name", "again")
    found = {(each["scenario_name"], each["agent"]): each for each in swept.results("runs/again")}
    good, bad = words[1], words[3]
    assert [found[name, good]["score"] for name in ("one", "three")] == [1, 0]
    assert [found[name, bad]["score"] for name in ("one", "three")] == [0, 0]
    assert found["one", bad]["flags"] == ["agent_crashed"]


def test_predictions_that_are_none_are_refused_by_line(swept: "Desk") -> None:
    file = swept.folder / "p.jsonl"
    for content, message in (
        ('{"instance_id": "a", "model_patch": ""}\n{"instance_id": "a"}\n', "p.jsonl: line 2: a has two patches"),
        ('[{"model_patch": ""}]', "an object with instance_id and model_patch was expected"),
        ('{"instance_id": "a", "model_patch": 3}', "p.jsonl: line 1: model_patch: a text was expected"),
        ("{", "p.jsonl: line 1: "),
        ("", "p.jsonl has no predictions"),
    ):
        file.write_text(content)
        assert message in swept.refused("run", "mine", "--agent", "predictions:p.jsonl")
    assert "cannot be read" in swept.refused("run", "mine", "--agent", "predictions:gone.jsonl")
