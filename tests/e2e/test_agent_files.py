"""Agent files as people use them: listed, explained, begun, given their keys, and run."""

import hashlib
from typing import TYPE_CHECKING, Final

import orjson
import pytest

from .conftest import KEY as TOKEN
from .conftest import LAST_RITES, new_desk, write_shelf

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Desk

pytestmark = pytest.mark.slow

SECRET: Final = "sesame-open-2f8c"
#: Solves its scenario if it has the right key, which no file of the test's desk but the one meant for it has.
AGENT: Final = f"""
run = '''
[ "$(printf %s "$MY_KEY" | sha256sum | cut -c 1-64)" = {hashlib.sha256(SECRET.encode()).hexdigest()} ] && touch done
'''
[env]
required = ["MY_KEY"]
secret = ["MY_KEY"]
"""


def define(desk: "Desk", name: str, text: str) -> None:
    (desk.folder / "agents").mkdir(exist_ok=True)
    (desk.folder / "agents" / f"{name}.toml").write_text(text)


def written(folder: "Path", word: str) -> list["Path"]:
    """The files below a folder that have a word in them."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return [file for file in files if word.encode() in file.read_bytes()]


def test_a_new_agent_is_listed_explained_and_runs_as_it_stands(served: "Desk") -> None:
    ended = served.sweep("agents", "new", "mine")
    assert "agents/mine.toml" in ended.out
    listed = {line["name"]: line for line in served.sweep("agents", "list", "--json").json}
    assert {"mine", "oracle", "nop", "command"} <= set(listed)
    assert (listed["mine"]["where"], listed["mine"]["file"]) == ("devbox", "agents/mine.toml")
    assert "One sentence about the agent." in served.sweep("agents", "list").out
    assert "SWEEP_PROBLEM_FILE" in served.sweep("agents", "show", "mine").out
    served.sweep("run", "six", "--agent", "mine", "--limit", "1", "--name", "it")
    (result,) = served.results("runs/it")
    assert (result["score"], result["flags"]) == (0.0, [])
    assert "bytes to read" in served.log("runs/it", result)
    assert "exists already" in served.refused("agents", "new", "mine")
    assert "wins over the built-in nop" in served.sweep("agents", "new", "nop").out
    assert "key name" in served.refused("agents", "new", "../mine")


def test_the_template_of_an_agent_file_is_valid_line_by_line(desk: "Desk") -> None:
    """Every line that is commented out, taken in, leaves a file that can be read."""
    desk.sweep("agents", "new", "mine")
    file = desk.folder / "agents" / "mine.toml"
    lines = [
        line.removeprefix("# ") if line.startswith("# [") or line.partition(" = ")[0].count(" ") == 1 else line
        for line in file.read_text().splitlines()
    ]
    file.write_text("\n".join(lines))
    document = orjson.loads(desk.sweep("agents", "show", "mine", "--json").out)
    said = {name for name, value in document.items() if value not in (None, {}, [])}
    assert {"version", "install", "time_limit", "env", "model", "network", "usage", "trajectory", "gather"} <= said
    assert set(document["usage"]) == {
        *("from", "format", "input_tokens", "output_tokens", "cached_tokens", "cost_usd", "turns", "exit_reason")
    }
    assert (document["model"]["variable"], document["gather"]["files"]) == ("MY_AGENT_MODEL", ["~/report.md"])


def test_show_says_what_is_missing_and_never_what_is_there(desk: "Desk") -> None:
    define(desk, "mine", AGENT)
    assert "Missing:     MY_KEY" in desk.sweep("agents", "show", "mine").out
    there = desk.sweep("agents", "show", "mine", environment={"MY_KEY": SECRET}).out
    assert "MY_KEY (secret, set)" in there
    assert "Missing:     nothing" in there
    assert SECRET not in there
    document = orjson.loads(desk.sweep("agents", "show", "mine", "--json", environment={"MY_KEY": SECRET}).out)
    assert (document["given"], document["missing"]) == ({"MY_KEY": True}, [])
    assert "Did you mean mine?" in desk.refused("agents", "show", "mime")


def test_the_python_agents_that_come_with_us_are_listed_and_explained_like_the_others(desk: "Desk") -> None:
    """Their package is looked for without an import, by the interpreter that would run them."""
    listed = {line["name"]: line for line in desk.sweep("agents", "list", "--json").json}
    assert (listed["mini"]["where"], listed["mini"]["version"]) == ("host", None)
    assert "mini-swe-agent" in listed["mini"]["needs"]
    document = orjson.loads(desk.sweep("agents", "show", "mini", "--json").out)
    assert document["missing"] == [[document["package"]]]
    shown = desk.sweep("agents", "show", "mini").out
    assert "Missing:     mini-swe-agent" in shown
    assert document["install"] in shown
    (desk.folder / "minisweagent").mkdir()
    (desk.folder / "minisweagent" / "__init__.py").write_text("raise SystemExit(3)")
    there = desk.sweep("agents", "show", "mini", environment={"PYTHONPATH": str(desk.folder)}).out
    assert "Missing:     nothing" in there
    assert "--python nowhere: there is no such program" in desk.refused("agents", "show", "mini", "--python", "nowhere")
    assert "Did you mean mini" in desk.refused("agents", "show", "minj")


def test_a_model_that_an_agents_file_names_is_the_one_in_its_results(served: "Desk") -> None:
    said = '{"type": "text", "part": {"type": "text", "text": "I am done."}}'
    define(
        served,
        "mine",
        f"""
        run = '''echo "$SWEEP_MODEL" >done; echo '{said}''''
        model = {{ default = "small" }}
        trajectory = {{ from = "output", format = "opencode" }}
        """,
    )
    served.sweep("run", "six", "--agent", "mine", "--agent", "nop", "--limit", "1", "--name", "it")
    results = {each["arm"]: each for each in served.results("runs/it")}
    assert {arm: each["model"] for arm, each in results.items()} == {"mine": "small", "nop": None}
    document = orjson.loads((served.folder / "runs" / "it" / results["mine"]["files"]["trajectory_atif"]).read_bytes())
    assert document["agent"]["model_name"] == "small"
    served.sweep("resume", "it", "--trials", "2")
    assert [each["model"] for each in served.results("runs/it") if each["arm"] == "mine"] == ["small", "small"]


def test_a_broken_agent_file_is_listed_with_what_is_wrong_with_it(desk: "Desk") -> None:
    define(desk, "mine", "run = 'x'\n[env]\nrequird = []\n")
    listed = {line["name"]: line for line in desk.sweep("agents", "list", "--json").json}
    assert "line 3: key env.requird" in listed["mine"]["description"]
    assert "did you mean required?" in desk.refused("run", "bugfix-mini", "--agent", "mine")


def test_a_key_in_a_file_reaches_the_agent_and_nothing_that_is_kept(served: "Desk") -> None:
    """It wins over the environment; a resume needs it again."""
    define(served, "mine", AGENT)
    (served.folder / "keys").write_text(f"# mine\nMY_KEY={SECRET}\n")
    run = ("run", "six", "--agent", "mine", "--limit", "1", "--name", "it")
    assert "mine needs MY_KEY: export it, or put it in a file and give --env-file FILE" in served.refused(*run)
    served.sweep(*run, "--env-file", "keys", environment={"MY_KEY": "another"})
    (result,) = served.results("runs/it")
    assert (result["score"], result["flags"]) == (1.0, [])
    assert "needs MY_KEY" in served.refused("resume", "it", "--trials", "2")
    served.sweep("resume", "it", "--trials", "2", "--env-file", "keys")
    assert [each["score"] for each in served.results("runs/it")] == [1.0, 1.0]
    assert written(served.folder, SECRET) == [served.folder / "keys"]


def test_a_wrong_line_of_a_file_of_keys_is_named_without_its_value(served: "Desk") -> None:
    (served.folder / "keys").write_text(f"A=1\n{SECRET}\n")
    message = served.refused("run", "six", "--agent", "nop", "--env-file", "keys")
    assert "--env-file keys, line 2: expected KEY=VALUE" in message
    assert SECRET not in message


def test_a_key_that_the_endpoint_keeps_is_not_needed_here(tmp_path: "Path", isolation: str) -> None:
    """Only what the service's owner gave out: else the sweep is refused before it begins."""
    desk = new_desk(tmp_path, isolation)
    try:
        write_shelf(desk.folder / "shelf")
        define(desk, "mine", AGENT)
        define(desk, "other", AGENT.replace("MY_KEY", "OTHER_KEY"))
        serving = desk.start(
            *("serve", "--port", "0", "--token", TOKEN, "--state", "state", "--benchmarks", "shelf"),
            *("--secret", "MY_KEY"),
            environment={"MY_KEY": SECRET, "OTHER_KEY": SECRET},
        )
        serving.wait_for("RUNLOOP_API_KEY=")
        url = serving.out.split("RUNLOOP_BASE_URL=")[1].split()[0]
        there = {"RUNLOOP_BASE_URL": url, "RUNLOOP_API_KEY": TOKEN}
        run = ("run", "six", "--limit", "1", "--name", "it", "--agent")
        assert "other needs OTHER_KEY" in desk.refused(*run, "other", environment=there)
        desk.sweep(*run, "mine", environment=there)
        (result,) = desk.results("runs/it")
        assert (result["score"], result["flags"]) == (1.0, [])
        assert written(desk.folder, SECRET) == []
        serving.process.terminate()
        serving.end(LAST_RITES)
    finally:
        desk.clear()
