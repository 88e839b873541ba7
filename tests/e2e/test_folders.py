"""Benchmarks as folders of one's own: run, listed, checked, and one scenario at a time."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.images.base_images import base_image
from tests.images.packing import PackedImage

from .conftest import CLOSED, reward, write_scenario

if TYPE_CHECKING:
    from .conftest import Desk


pytestmark = pytest.mark.slow


def test_a_folder_of_harbor_tasks_is_run_as_it_is(desk: "Desk") -> None:
    """Nothing of ours is in it; the second run finds everything as the first did."""
    for name in ("one", "two"):
        write_scenario(desk.folder / "my tasks" / name)
    ended = desk.sweep("run", "./my tasks", "--agent", "oracle", "--agent", "nop")
    results = desk.results(ended.folder)
    scores = {(result["benchmark"], result["scenario_name"], result["arm"]): result["score"] for result in results}
    assert scores == {
        ("my tasks", name, arm): score for name in ("one", "two") for arm, score in (("oracle", 1.0), ("nop", 0.0))
    }
    again = desk.sweep("run", str(desk.folder / "my tasks"), "--agent", "oracle", "--agent", "nop", "--json").json
    assert {arm["arm"]: arm["mean"] for arm in again[-1]["arms"]} == {"oracle": 1.0, "nop": 0.0}


def test_without_isolation_tasks_run_as_well(desk: "Desk") -> None:
    """Scripts may know the working directory by its name, or not name it at all."""
    test = reward("test -e done")
    write_scenario(desk.folder / "mine" / "one", solution="touch done\n", test=test)
    write_scenario(desk.folder / "mine" / "two")
    ended = desk.sweep("run", "./mine", "--agent", "oracle", "--isolation", "none")
    assert [(result["score"], result["flags"]) for result in desk.results(ended.folder)] == [(1.0, ["scored_live"])] * 2


def test_partial_credit_and_named_rewards_are_kept_as_they_are(desk: "Desk") -> None:
    """Of several names none of which is `reward`, none is the score, and all are in the result."""
    named = "echo '{}' >/logs/verifier/reward.json\n"
    write_scenario(desk.folder / "mine" / "half", test="echo 0.25 >/logs/verifier/reward.txt\n")
    write_scenario(desk.folder / "mine" / "named", test=named.format('{"reward": 0.5, "seconds": 12}'))
    write_scenario(desk.folder / "mine" / "none", test=named.format('{"accuracy": 0.5, "speed": 1}'))
    ended = desk.sweep("run", "./mine", "--agent", "nop", "--attempts", "1", "--scorings", "1", status=1)
    results = {result["scenario_name"]: result for result in desk.results(ended.folder)}
    assert {name: (result["score"], result["rewards"]) for name, result in results.items()} == {
        "half": (0.25, {"reward": 0.25}),
        "named": (0.5, {"reward": 0.5, "seconds": 12}),
        "none": (None, {"accuracy": 0.5, "speed": 1}),
    }
    assert 'none of 2 rewards is named "reward"' in results["none"]["failure"]["message"]
    assert "0.250" in ended.out


def test_variables_of_whoever_runs_it_reach_what_asks_for_them_and_are_missed_before_the_start(desk: "Desk") -> None:
    """What only the verifier asks for does not reach the agent, and nothing that is kept of the sweep has it."""
    task = (
        '[environment]\nallow_internet = false\nenv = { MINE = "${GIVEN_HERE}", SPEED = "${SPEED_HERE:-slow}" }\n'
        '[verifier.env]\nKEY = "${JUDGE_KEY}"\nLEVEL = "${LEVEL_HERE:-3}"\n[solution.env]\nHELP = "${GIVEN_HERE}"\n'
    )
    write_scenario(
        desk.folder / "mine" / "asking",
        task=task,
        solution='test "$MINE$SPEED$HELP" = onefastone && test -z "$JUDGE_KEY" && touch done\n',
        test=reward('test -e done && test "$KEY$LEVEL$MINE" = the-key-of-a-judge3one'),
    )
    write_scenario(desk.folder / "mine" / "other")
    given = {"GIVEN_HERE": "one", "SPEED_HERE": "fast"}
    words = ("run", "./mine", "--agent", "oracle", "--name", "it")
    for more in ((), ("--dry-run",)):
        refusal = desk.refused(*words, *more, environment=given)
        assert "There is no variable JUDGE_KEY, which asking cannot do without" in refusal
    (desk.folder / "keys").write_text("JUDGE_KEY=the-key-of-a-judge\n")
    desk.sweep(*words, "--env-file", "keys", environment=given)
    assert [result["score"] for result in desk.results("runs/it")] == [1.0, 1.0]
    kept = [path for path in (desk.folder / "runs/it").rglob("*") if path.is_file()]
    assert not [path for path in kept if b"the-key-of-a-judge" in path.read_bytes()]
    assert "must come from whoever runs it" in desk.sweep("check", "./mine", "--static").out


def test_headers_of_mcp_servers_take_variables_of_whoever_runs_it_and_nothing_that_is_kept_has_their_values(
    desk: "Desk",
) -> None:
    server = '{ name = "far", url = "http://x", headers = { A = "Bearer ${FAR_TOKEN}", B = "${B_HERE:-b}" } }'
    task = f"[environment]\nallow_internet = false\nmcp_servers = [{server}]\n"
    write_scenario(desk.folder / "mine/asking", task=task)
    (desk.folder / "agents").mkdir()
    (desk.folder / "agents/taking.toml").write_text(
        "run = 'grep ^ $SWEEP_MCP_FILE && test -z $FAR_TOKEN && grep -q Bearer.the-token $SWEEP_MCP_FILE && touch done'"
        '\n[mcp]\nsse = { with = "{headers}" }\n'
    )
    words = ("run", "./mine", "--agent", "taking", "--name", "it")
    assert "There is no variable FAR_TOKEN, which asking cannot do without" in desk.sweep(*words, status=2).err
    desk.sweep(*words, environment={"FAR_TOKEN": "the-token-of-the-server"})
    [result] = desk.results("runs/it")
    assert (result["score"], result["flags"]) == (1.0, [])
    assert '"B": "b"' in desk.log("runs/it", result)
    kept = [path for path in (desk.folder / "runs/it").rglob("*") if path.is_file()]
    assert not [path for path in kept if b"the-token-of-the-server" in path.read_bytes()]
    assert "FAR_TOKEN must come from whoever runs it" in desk.sweep("check", "./mine", "--static").out


def test_a_changed_scenario_does_not_continue_a_sweep(desk: "Desk") -> None:
    scenario = write_scenario(desk.folder / "mine" / "one")
    desk.sweep("run", "./mine", "--agent", "oracle", "--name", "first")
    (scenario / "instruction.md").write_text("Make a file called done, please.\n")
    assert "the content of one" in desk.refused("run", "./mine", "--agent", "oracle", "--name", "first")


def test_a_sound_benchmark_is_reported_as_sound(desk: "Desk") -> None:
    for name in ("one", "two"):
        write_scenario(desk.folder / "mine" / name)
    ended = desk.sweep("check", "./mine")
    assert ended.out.splitlines()[-1] == "mine: sound"
    assert "error" not in ended.out
    assert "warning" not in ended.out
    [results] = (desk.folder / "runs").glob("check-*/results.jsonl")
    assert str(results.relative_to(desk.folder)) in ended.out


def test_a_static_check_runs_nothing(desk: "Desk") -> None:
    write_scenario(desk.folder / "mine" / "one")
    assert desk.sweep("check", "./mine/one", "--static").out == "one: sound\n"
    assert not (desk.folder / "runs").exists()


def test_solutions_that_fail_and_scorers_that_tell_nothing_are_found(desk: "Desk") -> None:
    """Each with its scenario's name, in one go."""
    write_scenario(desk.folder / "mine" / "sound")
    write_scenario(desk.folder / "mine" / "unsolved", solution="true\n")
    write_scenario(desk.folder / "mine" / "given-away", test=reward("true"))
    write_scenario(desk.folder / "mine" / "no-score", test="echo nonsense >/logs/verifier/reward.txt\n")
    errors = [line for line in desk.sweep("check", "./mine", status=1).out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    told = "\n".join(errors)
    assert "unsolved: the reference solution scores 0, not 1.0" in told
    assert "given-away: doing nothing scores 1" in told
    assert "no-score: oracle got no score" in told
    assert "no-score: nop got no score" in told


def test_output_of_a_failed_reference_solution_is_quoted(desk: "Desk") -> None:
    test = "echo first; echo the test saw nothing; echo 0 >/logs/verifier/reward.txt\n"
    write_scenario(desk.folder / "mine" / "one", solution="echo cannot do it >&2\nexit 3\n", test=test)
    assert (
        "error: one: the reference solution scores 0, not 1.0; solve.sh ended with exit status 3: cannot do it; "
        "scorer tests: the test saw nothing"
    ) in desk.sweep("check", "./mine", status=1).out.splitlines()


def leak_tests(scenario: Path) -> str:
    text = "# a test that is long enough to tell something\n" + reward("test -e /app/done")
    (scenario / "tests" / "test.sh").write_text(text)
    (scenario / "environment" / "copied.sh").write_text(text)
    return "tests/test.sh"


def leak_solution(scenario: Path) -> str:
    for folder in ("solution", "environment"):
        (scenario / folder / "fixed.py").write_text("print('the very same forty characters and more')\n")
    return "solution/fixed.py"


def misspell_a_table(scenario: Path) -> str:
    (scenario / "task.toml").write_text('version = "1.0"\n[verifer]\ntimeout_sec = 3\n')
    return "verifer"


def misspell_a_scorer(scenario: Path) -> str:
    scorer = '[[scorers]]\nname = "tests"\ntype = "bash_script_scorer"\nbash_scirpt = "test.sh"\n'
    (scenario / "task.toml").write_text(f'version = "1.0"\n{scorer}')
    return "bash_scirpt: unknown key; did you mean bash_script?"


def forget_the_tests(scenario: Path) -> str:
    (scenario / "tests" / "test.sh").unlink()
    return "test.sh"


def forget_the_statement(scenario: Path) -> str:
    (scenario / "instruction.md").unlink()
    return "instruction.md"


def copy_nothing(scenario: Path) -> str:
    (scenario / "environment" / "Dockerfile").write_text("FROM debian\nCOPY none /app\n")
    return "environment/Dockerfile: line 2: COPY: none is not in the context"


BREAKAGES = (
    leak_tests,
    leak_solution,
    misspell_a_table,
    misspell_a_scorer,
    forget_the_tests,
    forget_the_statement,
    copy_nothing,
)


def test_every_mistake_in_a_definition_is_named_with_its_file_and_key(desk: "Desk") -> None:
    """All of them at once; nothing is run."""
    expected = {}
    for spoil in BREAKAGES:
        scenario = write_scenario(desk.folder / "mine" / spoil.__name__)
        expected[spoil.__name__] = spoil(scenario)
    ended = desk.sweep("check", "./mine", status=1)
    told = [line for line in ended.out.splitlines() if line.startswith(("error: ", "warning: "))]
    for name, words in expected.items():
        assert any(f"{name}/" in line and words in line for line in told), f"{name}: {words}\n{ended}"
    assert "trials" not in ended.out
    assert ended.out.splitlines()[-1] == "mine: not sound"


def test_one_scenario_is_run_by_itself_and_every_step_told(served: "Desk") -> None:
    agent = "command:touch done; echo working on it"
    ended = served.sweep("scenario", "run", "ant", "--benchmark", "six", "--agent", agent)
    steps = [line.removesuffix(" …") for line in ended.out.splitlines() if line.endswith(" …")]
    assert steps == ["start", "boot", "prepare", "solve", "gather", "score", "release"]
    assert "scored, score 1.000" in ended.out
    assert "working on it" in ended.out
    folder = served.folder / ended.out.splitlines()[-1].removeprefix("Files: ")
    assert (folder / "agent.log").read_text() == "working on it\n"


def test_benchmarks_and_their_scenarios_are_listed_for_people_and_for_programs(served: "Desk") -> None:
    lines = served.sweep("benchmarks", "list").out.splitlines()
    assert lines[0].split() == ["id", "name", "scenarios"]
    assert {line.split()[1]: line.split()[2] for line in lines[1:]}.items() >= {"bugfix-mini": "26", "six": "6"}.items()
    listed = served.sweep("benchmarks", "list", "--json").json
    (six,) = [each for each in listed if each["name"] == "six"]
    assert six == {"id": six["id"], "name": "six", "scenarios": 6}
    shown = served.sweep("benchmarks", "show", six["id"], "--json").json
    assert [scenario["name"] for scenario in shown] == ["ant", "bee", "cat", "dog", "eel", "fox"]
    assert all(scenario["agent_timeout"] == 60 for scenario in shown)
    result = served.sweep("run", "six", "--agent", "nop", "--include", shown[3]["id"], "--json").json[0]
    assert result["scenario_name"] == "dog"


def test_the_bundled_benchmark_is_listed_without_an_endpoint(desk: "Desk") -> None:
    lines = desk.sweep("benchmarks", "show", "bugfix-mini").out.splitlines()
    assert lines[0].split() == ["id", "name", "agent", "timeout", "scorer", "timeout"]
    assert len(lines) == 27
    assert any(line.split()[1] == "sqlite-orders-double-count" for line in lines)


def test_a_benchmark_that_is_written_to_begin_with_is_sound(desk: "Desk") -> None:
    desk.sweep("benchmarks", "new", "mine")
    assert desk.sweep("check", "./mine").out.splitlines()[-1] == "mine: sound"
    assert "mine is not empty" in desk.refused("benchmarks", "new", "mine")


@pytest.mark.root
def test_a_benchmark_on_images_is_proved_as_any_other(desk: "Desk") -> None:
    """The image comes from an archive; one environment is the image, one is built on it, one is a compose file's."""
    if desk.isolation == "none":
        pytest.skip("images need devboxes with walls")
    PackedImage.of(base_image("busybox")).save(desk.folder / "busybox.tar", "busybox:latest")
    cache = {"SWEEP_CACHE": str(desk.folder / "cache")}
    desk.sweep("images", "load", "busybox.tar", environment=cache)
    named = f'{CLOSED}docker_image = "busybox"\nworkdir = "/app"\n'
    write_scenario(desk.folder / "mine" / "named", task=named)
    built = write_scenario(
        desk.folder / "mine" / "built", solution="id -u >/srv/done\n", test=reward("test -e /srv/done")
    )
    (built / "environment/Dockerfile").write_text("FROM busybox\nRUN mkdir -p /srv\nWORKDIR /srv\n")
    composed = write_scenario(
        desk.folder / "mine" / "composed",
        solution='test "$MODE$(id -u)" = fast33 && touch done\n',
        test=reward('test -e /work/done && test "$PWD" = /work'),
    )
    (composed / "environment/docker-compose.yaml").write_text(
        "services:\n  main:\n    build: {dockerfile_inline: 'FROM busybox\n\n      RUN mkdir -m 777 /work'}\n"
        "    working_dir: /work\n    user: www-data\n    environment: [MODE=fast]\n    command: sleep infinity\n"
    )
    ended = desk.sweep("check", "./mine", environment=cache)
    assert ended.out.splitlines()[-1] == "mine: sound"
    (built / "tests/test.sh").write_text(reward("true"))
    again = desk.sweep("check", "./mine", status=1, environment=cache)
    assert "built: doing nothing scores 1" in again.out
    (built / "task.toml").write_text(f'{CLOSED}docker_image = "127.0.0.1:1/gone"\n')
    words = ("run", "./mine", "--include", "built", "--agent", "nop")
    desk.sweep(*words, "--name", "rebuilt", "--rebuild", environment=cache)
    assert desk.results("runs/rebuilt")[0]["score"] == 1


@pytest.mark.root
def test_tests_find_all_that_the_agent_left_where_it_left_it(desk: "Desk") -> None:
    """In /tmp too, whether or not there is an image, and in the root folder, where an image names no other."""
    if desk.isolation == "none":
        pytest.skip("images need devboxes with walls")
    PackedImage.of(base_image("busybox")).save(desk.folder / "busybox.tar", "busybox:latest")
    cache = {"SWEEP_CACHE": str(desk.folder / "cache")}
    desk.sweep("images", "load", "busybox.tar", environment=cache)
    work, seen = "echo 42 >/tmp/answer; echo 1 >here", reward("grep -q 42 /tmp/answer && test -e here")
    write_scenario(desk.folder / "mine" / "plain", solution=work, test=seen)
    on_image = write_scenario(desk.folder / "mine" / "on-image", solution=work, test=f"test -e /here && {seen}")
    (on_image / "environment/Dockerfile").write_text("FROM busybox\n")
    desk.sweep("run", "./mine", "--agent", "oracle", "--name", "mine", environment=cache)
    assert {each["scenario_name"]: each["score"] for each in desk.results("runs/mine")} == {"plain": 1, "on-image": 1}


def test_lines_by_which_authors_find_a_statement_again_are_not_the_agents(desk: "Desk") -> None:
    statement = "<!-- bench canary GUID 1 -->\n# BENCH Canary 2\n\n  Say it.\n# no canary\n"
    folder = write_scenario(desk.folder / "bench/task", test=reward("test -e said"))
    (folder / "instruction.md").write_text(statement)
    desk.sweep("run", "bench", "--agent", 'command:cat "$SWEEP_PROBLEM_FILE"; touch said', "--name", "mine")
    (result,) = desk.results("runs/mine")
    assert desk.log("runs/mine", result) == "  Say it.\n# no canary\n"


def test_the_artifacts_that_a_scenario_names_come_home_without_what_it_excludes(desk: "Desk") -> None:
    """Wherever they are in the devbox; what is in /logs/artifacts is one without a name."""
    task = (
        'artifacts = ["out.txt", { source = "/app/a [1]", exclude = ["*.tmp", "deep/cache"] }]\n'
        "[environment]\nallow_internet = false\n"
    )
    folder = write_scenario(desk.folder / "bench/task")
    (folder / "task.toml").write_text(f'version = "1.0"\n{task}')
    (folder / "environment/setup.sh").write_text("mkdir -p '/app/a [1]/deep/cache' /app/a1\n")
    work = (
        "echo 1 >out.txt; cd *1]; echo 2 >x; echo 3 >x.tmp; echo 4 >deep/y; echo 5 >deep/cache/z; echo 6 >deep/w.tmp"
        "; echo 7 >/app/a1/other; cd /logs/artifacts; echo 8 >.hidden; mkdir more; echo 9 >more/n"
    )
    desk.sweep("run", "bench", "--agent", f"command:{work}", "--name", "mine")
    (result,) = desk.results("runs/mine")
    home = desk.folder / "runs/mine" / result["files"]["artifacts"]
    assert sorted(str(each.relative_to(home)) for each in home.rglob("*") if each.is_file()) == [
        "app/a [1]/deep/y",
        "app/a [1]/x",
        "app/out.txt",
        "logs/artifacts/.hidden",
        "logs/artifacts/more/n",
    ]
    assert result["flags"] == []
