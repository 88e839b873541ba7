"""`sweep export`, read back as its readers do."""

import csv
import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from .conftest import write_scenario

if TYPE_CHECKING:
    from tests.e2e.conftest import Desk


@pytest.fixture
def swept(desk: "Desk") -> "Desk":
    """A sweep of two scenarios and two agents, one of which cannot be tried."""
    write_scenario(desk.folder / "mine/one")
    write_scenario(desk.folder / "mine/two", task="[environment]\ngpus = 1\n", solution="")
    (desk.folder / "agents").mkdir()
    desk.sweep("run", "mine", "--agent", "oracle", "--agent", "nop", "--name", "it", status=1)
    return desk


def test_each_form_has_every_trial(swept: "Desk") -> None:
    results = swept.results("runs/it")
    assert len(results) == 4
    assert [json.loads(line) for line in swept.sweep("export", "it", "--to", "jsonl").out.splitlines()] == results

    table = list(csv.DictReader(swept.sweep("export", "it", "--to", "csv").out.splitlines()))
    assert {(row["scenario_name"], row["arm"], row["outcome"], row["score"]) for row in table} == {
        ("one", "oracle", "scored", "1.0"),
        ("one", "nop", "scored", "0.0"),
        ("two", "oracle", "failed", ""),
        ("two", "nop", "failed", ""),
    }
    assert {row["failure_class"] for row in table if row["scenario_name"] == "two"} == {"Unsupported"}

    swept.sweep("export", "it", "--to", "junit", "-o", "junit.xml")
    suites = ET.parse(swept.folder / "junit.xml").getroot()
    counts = {each.get("name"): [each.get(key) for key in ("tests", "failures", "errors")] for each in suites}
    assert counts == {"oracle": ["2", "0", "1"], "nop": ["2", "1", "1"]}
    (failure,) = suites.iter("failure")
    assert failure.get("message") == "score 0"


def test_predictions_have_the_patch_of_each_scenario(swept: "Desk") -> None:
    (result,) = (each for each in swept.results("runs/it") if (each["scenario_name"], each["arm"]) == ("one", "oracle"))
    lines = swept.sweep("export", "it", "--to", "swebench", "--arm", "oracle").out.splitlines()
    patches = {each["instance_id"]: each["model_patch"] for each in map(json.loads, lines)}
    assert patches == {"one": (swept.folder / "runs/it" / result["files"]["patch"]).read_text(), "two": ""}
    assert "done" in patches["one"]


def test_what_is_not_there_is_refused_by_name(swept: "Desk") -> None:
    words = ("export", "it", "--to", "csv")
    assert "--arm nobody: it has results of nop, oracle" in swept.refused(*words, "--arm", "nobody")
    assert "no result of trial 2 yet" in swept.refused(*words, "--trial", "2")
    assert "Did you mean it?" in swept.refused("export", "itt", "--to", "csv")
    gone = swept.sweep(*words, "-o", "gone/x.csv", status=1)
    assert gone.err == "sweep: gone/x.csv cannot be written: No such file or directory.\n"


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
