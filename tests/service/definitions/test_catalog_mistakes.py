"""Mistakes in a scenario folder are found all at once, each by its file and key."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from orchestrator.service.definitions.catalog import problems
from orchestrator.service.definitions.task_file import ScenarioContext, read_scenario
from orchestrator.service.diagnostics import Problem

Make = Callable[..., Path]
Write = Callable[[Path, Mapping[str, str]], Path]
QUIET = "[environment]\nallow_internet = false\n"


def found(folder: Path, severity: str = "error") -> dict[tuple[str, str], str]:
    return {(each.file, each.key): each.message for each in problems(folder) if each.severity == severity}


def test_a_folder_that_is_right_has_no_problems(scenario: Make) -> None:
    assert problems(scenario()) == []


def test_all_mistakes_are_reported_at_once(scenario: Make) -> None:
    task = """\
    [agnet]
    timeout_sec = 1.0
    [agent]
    timeout_secs = 60.0
    [verifier]
    timeout_sec = -1
    [environment]
    cpus = "two"
    memory = "lots"
    allow_internet = "no"
    workdir = "app"
    network_mode = "sometimes"
    allowed_hosts = ["https://a.test"]
    env = { "1A" = "x", B = 3 }
    """
    files = {"task.toml": task, "instruction.md": " \n", "tests/test.sh": None, "tests/other": "x"}
    assert found(scenario(files)) == {
        ("task.toml", "verifier.timeout_sec"): "expected a number above 0, got -1",
        ("task.toml", "environment.cpus"): "expected a number above 0, got 'two'",
        ("task.toml", "environment.memory"): 'expected a size such as "512M" or "2G", got \'lots\'',
        ("task.toml", "environment.allow_internet"): "expected true or false, got 'no'",
        ("task.toml", "environment.workdir"): "expected an absolute path below /, got 'app'",
        ("task.toml", "environment.network_mode"): (
            'expected "public", "no-network" or "allowlist", got \'sometimes\''
        ),
        ("task.toml", "environment.allowed_hosts"): (
            "'https://a.test' is not a host: write name, *.name, name:port or an address"
        ),
        ("task.toml", "environment.env.1A"): "is not the name of an environment variable: use letters, digits and _",
        ("task.toml", "environment.env.B"): "expected a string, got 3",
        ("instruction.md", ""): "is empty: agents would be told nothing",
        ("tests/test.sh", ""): "is missing: write it, or describe [[scorers]] in task.toml",
    }


def test_a_key_that_nobody_knows_is_harbors_and_only_warned_of(scenario: Make) -> None:
    task = "[brand_new]\nx = 1\n[agent]\ntimeout_secs = 60\n[environment]\nallow_internet = false\nquantum_bits = 3\n"
    folder = scenario({"task.toml": task})
    assert found(folder) == {}
    assert found(folder, "warning") == {
        ("task.toml", "agent.timeout_secs"): "unknown key, ignored; did you mean timeout_sec?",
        ("task.toml", "brand_new"): "unknown key, ignored",
        ("task.toml", "environment.quantum_bits"): "unknown key, ignored",
    }


def test_unsupported_environments_are_refused_by_key_and_stay_readable(scenario: Make) -> None:
    task = """\
    [environment]
    docker_image = "org/Image"
    gpus = 1
    os = "windows"
    """
    folder = scenario({"task.toml": task, "environment/docker-compose.yaml": "services: {main: {}, db: {}}\n"})
    errors = found(folder)
    assert {key: message.split(":")[0] for key, message in errors.items()} == {
        ("task.toml", "environment.gpus"): "devboxes have none",
        ("task.toml", "environment.os"): "devboxes run Linux only",
        ("task.toml", "environment.docker_image"): "'org/Image' names no image",
        ("environment/docker-compose.yaml", "services.db, line 1"): "is a container beside main",
    }


@pytest.mark.parametrize(
    ("task", "where", "why"),
    [
        (f"{QUIET}gpus = 1", "environment.gpus", "devboxes have none"),
        (f'{QUIET}tpu = {{ type = "v4", topology = "2x2" }}', "environment.tpu", "devboxes have none"),
        (f'{QUIET}os = "Windows"', "environment.os", "run Linux only"),
        (
            f'{QUIET}[verifier]\nenvironment_mode = "live"\nnetwork_mode = "public"',
            "verifier.network_mode",
            "the agent's network",
        ),
        (f"{QUIET}[verifier.environment]\nallow_internet = false\ngpus = 1", "verifier.environment.gpus", "have none"),
        (
            f'{QUIET}[verifier.environment]\nallow_internet = false\ndocker_image = "a"',
            "verifier.environment.docker_image",
            "give that one too",
        ),
        (f'artifacts = [{{ source = "/x", service = "db" }}]\n{QUIET}', "artifacts[0].service", "one container only"),
        (
            f'{QUIET}[verifier]\ncollect = [{{ command = "true" }}, {{ command = "true", service = "db" }}]',
            "verifier.collect[1].service",
            "one container only",
        ),
    ],
)
def test_unsupported_keys_that_change_the_score_are_refused(scenario: Make, task: str, where: str, why: str) -> None:
    errors = found(scenario({"task.toml": f"{task}\n"}))
    assert [(file.partition(":")[0], key or file.partition(": ")[2]) for file, key in errors] == [("task.toml", where)]
    assert why in next(iter(errors.values()))


def test_mistakes_in_the_image_of_a_verifier_are_reported_by_its_file(scenario: Make) -> None:
    files = {"tests/Dockerfile": "FROM debian:12\nCOPY gone /\n", "environment/Dockerfile": "FROM debian:12\n"}
    folder = scenario({"task.toml": f'{QUIET}[verifier]\nenvironment_mode = "separate"\n', **files})
    assert "not in the context" in found(folder)["tests/Dockerfile", "line 2"]
    assert found(scenario({"task.toml": QUIET, **files}, name="shared")) == {}


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff"])
def test_a_trajectory_to_start_from_is_a_document(scenario: Make, text: bytes) -> None:
    assert list(found(scenario({"trajectory.json": text}))) == [("trajectory.json", "")]


def test_what_no_build_here_has_is_refused_by_line_before_anything_starts(scenario: Make) -> None:
    dockerfile = """\
FROM --platform=linux/riscv64 busybox
ADD https://example.com/it.git /it
RUN --mount=type=secret,id=key,required=true true
"""
    errors = found(scenario({"task.toml": QUIET, "environment/Dockerfile": dockerfile}))
    assert {key for _, key in errors} == {"line 1", "line 2", "line 3"}
    assert "clone it by a RUN" in errors["environment/Dockerfile", "line 2"]


def test_unsupported_keys_that_change_no_score_are_warned_of_and_noted(scenario: Make) -> None:
    folder = scenario({"task.toml": f'agent.user = "me"\n{QUIET}odd = 1\ncpus = 64\n'})
    around = ScenarioContext(benchmark="b", boundary=folder.parent)
    notes = read_scenario("scn", folder, around).view["metadata"]["notes"]
    assert notes.splitlines() == [
        "task.toml: environment.odd: unknown key, ignored",
        "task.toml: environment.cpus: asks for more than a devbox can have; it gets 16",
        "task.toml: agent.user, verifier.user: ignored: without an image everything runs as one user",
    ]
    assert len(found(folder, "warning")) == 3


@pytest.mark.parametrize(
    ("table", "key", "why"),
    [
        ('artifacts = ["/app/../x"]', "artifacts[0].source", "without '..'"),
        ("artifacts = [3]", "artifacts[0]", "expected a path"),
        ('artifacts = [{ source = "x", destination = "/x" }]', "artifacts[0].destination", "a relative path"),
        ('artifacts = [{ source = "x", destination = "a/../../x" }]', "artifacts[0].destination", "a relative path"),
        ('artifacts = [{ source = "x", exclude = "y" }]', "artifacts[0].exclude", "a list of patterns"),
        ("verifier.collect = [{}]", "verifier.collect[0].command", "a shell command"),
        (
            'verifier.collect = [{ command = "x", timeout_sec = 0 }]',
            "verifier.collect[0].timeout_sec",
            "a number above 0",
        ),
        ('verifier.environment_mode = "apart"', "verifier.environment_mode", '"separate", "shared" or "live"'),
        (
            'verifier = { environment_mode = "shared", environment = { cpus = 1 } }',
            "verifier.environment_mode",
            'needs "separate"',
        ),
    ],
)
def test_mistakes_in_the_input_of_a_scoring_are_reported_by_key(scenario: Make, table: str, key: str, why: str) -> None:
    errors = found(scenario({"task.toml": f"{table}\n{QUIET}"}))
    assert list(errors) == [("task.toml", key)]
    assert why in errors["task.toml", key]


@pytest.mark.parametrize(
    ("table", "key", "why"),
    [
        ("{}", "command", "is missing"),
        ('{ command = "x", retries = -1 }', "retries", "a whole number"),
        ('{ command = "x", retries = 1.5 }', "retries", "a whole number"),
        ('{ command = "x", interval_sec = -1 }', "interval_sec", "a number above 0"),
        ('{ command = "x", timeout_sec = 0 }', "timeout_sec", "a number above 0"),
    ],
)
def test_mistakes_in_a_health_check_are_reported_by_key(scenario: Make, table: str, key: str, why: str) -> None:
    errors = found(scenario({"task.toml": f"{QUIET}healthcheck = {table}\n"}))
    assert list(errors) == [("task.toml", f"environment.healthcheck.{key}")]
    assert why in errors["task.toml", f"environment.healthcheck.{key}"]


def test_a_first_line_that_the_kernel_does_not_understand_is_reported(scenario: Make) -> None:
    folder = scenario(
        {"tests/test.sh": "#!/usr/bin/env bash\r\necho 1\r\n", "solution/solve.sh": "#!/bin/bash\r\ntrue"}
    )
    why = "ends with CR LF, so the kernel looks for a program '{}\\x0d': save it with LF alone"
    assert found(folder) == {("tests/test.sh", "line 1"): why.format("/usr/bin/env bash")}
    assert found(folder, "warning") == {("solution/solve.sh", "line 1"): why.format("/bin/bash")}
    setup = scenario({"environment/setup.sh": "#!/bin/sh\r\ntrue\r\n"}, name="setup")
    assert found(setup) == {("environment/setup.sh", "line 1"): why.format("/bin/sh")}
    marked = scenario({"tests/test.sh": b"\xef\xbb\xbf#!/bin/bash\n"}, name="marked")
    assert "opens with a byte order mark" in found(marked)["tests/test.sh", "line 1"]


def test_files_that_the_agent_has_too_are_warned_of(scenario: Make) -> None:
    data = "one of the many lines that tests and environment share\n"
    folder = scenario({"tests/data.csv": data, "environment/data.csv": data})
    assert found(folder) == {}
    assert found(folder, "warning") == {
        ("tests/data.csv", ""): "the agent finds this file in its environment, as environment/data.csv"
    }


def test_missing_files_are_named(scenario: Make) -> None:
    folder = scenario({"instruction.md": None, "solution/solve.sh": None, "solution/notes": "x"})
    assert found(folder) == {
        ("instruction.md", ""): "is missing: every scenario needs it",
        ("solution/solve.sh", ""): "is missing, though solution/ has other files",
    }


def test_text_that_is_not_utf_8_is_named(scenario: Make) -> None:
    folder = scenario({"instruction.md": b"\xff"})
    assert found(folder)["instruction.md", ""].startswith("is not UTF-8 text")


STEPS = QUIET + '[[steps]]\nname = "one"\n[[steps]]\nname = "two"\n'


@pytest.mark.parametrize(
    ("task", "mistakes"),
    [
        (
            STEPS.replace('"two"', '"one"'),
            {("task.toml", "steps[1].name"): "'one' is the name of a step before it, too"},
        ),
        (
            STEPS.replace('"two"', '"../two"'),
            {
                (
                    "task.toml",
                    "steps[1].name",
                ): "expected letters, digits, '.', '_' and '-', as its folder in steps/ is named, got '../two'"
            },
        ),
        (
            f"{STEPS}min_reward = {{ reward = true }}\n[steps.agent]\ntimeout_sec = 0\n",
            {
                ("task.toml", "steps[1].min_reward"): "expected a number, or a table of them, got {'reward': True}",
                ("task.toml", "steps[1].agent.timeout_sec"): "expected a number above 0, got 0",
            },
        ),
        (
            f'multi_step_reward_strategy = "best"\n{STEPS}',
            {("task.toml", "multi_step_reward_strategy"): 'expected "mean" or "final", got \'best\''},
        ),
        (
            f'{STEPS}[[scorers]]\nname = "a"\ntype = "command_scorer"\ncommand = "true"\n',
            {("task.toml", "scorers"): "each of [[steps]] is scored by tests of its own: put them into its tests/"},
        ),
    ],
)
def test_mistakes_of_steps_are_named_by_the_step(
    scenario: Make, task: str, mistakes: dict[tuple[str, str], str]
) -> None:
    files = {f"steps/{name}/instruction.md": "Mend it.\n" for name in ("one", "two")}
    assert found(scenario({"task.toml": task, "instruction.md": None, **files})) == mistakes


def test_the_last_step_is_judged_where_it_alone_counts(scenario: Make) -> None:
    task = f'multi_step_reward_strategy = "final"\n{STEPS}min_reward = 1\n'
    files = {f"steps/{name}/instruction.md": "Mend it.\n" for name in ("one", "two")}
    files |= {"steps/one/tests/test.sh": "true\n", "task.toml": task}
    folder = scenario({"instruction.md": None, "tests/test.sh": None, **files})
    why = "the last step, two, has no tests, so there is no score"
    assert found(folder) == {("task.toml", "multi_step_reward_strategy"): why}
    assert found(folder, "warning")["task.toml", "steps[1].min_reward"] == "ends every run: the step has no tests"


def test_a_step_needs_a_statement_and_some_step_needs_tests(scenario: Make) -> None:
    files = {"instruction.md": None, "tests/test.sh": None, "steps/one/instruction.md": "Mend it.\n"}
    assert found(scenario({"task.toml": STEPS, **files})) == {
        ("steps/two/instruction.md", ""): "is missing: every scenario needs it",
        ("tests/", ""): "is missing, in every step: nothing would be judged",
    }


def test_a_folder_beside_the_steps_that_is_none_of_them_is_named(scenario: Make) -> None:
    files = {f"steps/{name}/instruction.md": "Mend it.\n" for name in ("one", "two", "tow")}
    folder = scenario({"task.toml": STEPS, "instruction.md": None, **files})
    assert found(folder, "warning")["steps/tow", ""] == "is no step: no [[steps]] of task.toml has this name"


@pytest.mark.parametrize(
    ("table", "key", "message"),
    [
        ('name = "a b"\ntype = "command_scorer"\ncommand = "true"', "name", "expected letters, digits, - and _"),
        ('name = "a"\ntype = "comand_scorer"', "type", "unknown type 'comand_scorer'; did you mean command_scorer?"),
        ('name = "a"', "type", "unknown type None; expected one of"),
        ('name = "a"\ntype = "command_scorer"', "command", "is missing: a command_scorer needs it"),
        ('name = "a"\ntype = "command_scorer"\ncommand = ""', "command", "expected a string"),
        (
            'name = "a"\ntype = "command_scorer"\ncomand = "true"\ncommand = "true"',
            "comand",
            "unknown key; did you mean command?",
        ),
        (
            'name = "a"\ntype = "command_scorer"\ncommand = "true"\nlang = "python"',
            "lang",
            "unknown key; a command_scorer knows name, weight, type, command",
        ),
        ('name = "a"\ntype = "bash_script_scorer"\nbash_script = "tset.sh"', "bash_script", "did you mean test.sh?"),
        ('name = "a"\ntype = "bash_script_scorer"\nbash_script = "../x"', "bash_script", "does not exist"),
        ('name = "a"\ntype = "python_script_scorer"\npython_script = "data"', "python_script", "is not UTF-8 text"),
        (
            'name = "a"\ntype = "test_based_scorer"\ntest_command = "x"\ntest_files = { "../x" = "test.sh" }',
            'test_files."../x"',
            "expected a path inside the working directory",
        ),
        (
            'name = "a"\ntype = "test_based_scorer"\ntest_command = "x"\ntest_files = ["test.sh"]',
            "test_files",
            "expected { ",
        ),
        (
            'name = "a"\ntype = "custom_scorer"\ncustom_scorer_type = "hlaf"',
            "custom_scorer_type",
            "'hlaf' is not in benchmark.toml, [custom_scorers] (there: half)",
        ),
        ('name = "a"\nweight = 0\ntype = "command_scorer"\ncommand = "x"', "weight", "expected a number above 0"),
        ('name = "a"\nweight = true\ntype = "command_scorer"\ncommand = "x"', "weight", "expected a number above 0"),
    ],
)
def test_a_scorers_mistake_is_reported_by_its_key(
    scenario: Make, write: Write, table: str, key: str, message: str
) -> None:
    folder = scenario({"task.toml": f"{QUIET}[[scorers]]\n{table}\n", "tests/data": b"\xff\xfe"})
    write(folder.parent, {"benchmark.toml": '[custom_scorers]\nhalf = "half.sh"\n', "half.sh": "echo score=0.5"})
    errors = found(folder)
    assert list(errors) == [("task.toml", f"scorers[0].{key}")]
    assert message in errors["task.toml", f"scorers[0].{key}"]


def test_weights_must_sum_to_one_and_names_differ(scenario: Make) -> None:
    one = '[[scorers]]\nname = "a"\nweight = 0.4\ntype = "command_scorer"\ncommand = "true"\n'
    messages = [each.message for each in problems(scenario({"task.toml": QUIET + one + one}))]
    assert messages == ["the name 'a' is used more than once", "the weights must sum to 1, they sum to 0.8"]


def test_a_scorer_alone_needs_no_weight(scenario: Make) -> None:
    one = '[[scorers]]\nname = "a"\ntype = "command_scorer"\ncommand = "true"\n'
    assert problems(scenario({"task.toml": QUIET + one})) == []


def test_a_benchmarks_problems_are_placed_below_it(scenario: Make, write: Write, tmp_path: Path) -> None:
    scenario({"instruction.md": None}, name="one")
    scenario({"task.toml": None}, name="two")
    toml = 'nmae = "x"\ndescription = 3\n[custom_scorers]\na = "../../a.sh"\nb = "none.sh"\n'
    write(tmp_path / "bench", {"benchmark.toml": toml})
    errors = found(tmp_path / "bench")
    assert list(errors) == [
        ("benchmark.toml", "nmae"),
        ("benchmark.toml", "description"),
        ("benchmark.toml", "custom_scorers.a"),
        ("benchmark.toml", "custom_scorers.b"),
        ("one/instruction.md", ""),
    ]
    assert errors["benchmark.toml", "nmae"] == "unknown key; did you mean name?"
    assert found(tmp_path / "bench", "warning") == {
        ("two/task.toml", ""): "is missing, so the folder is not a scenario"
    }
    assert ("bench/one/instruction.md", "") in found(tmp_path)


def test_a_folder_without_scenarios_says_so(tmp_path: Path) -> None:
    assert "has no scenario" in problems(tmp_path)[0].message
    assert problems(tmp_path / "none") == [Problem("error", str(tmp_path / "none"), "", "is not a folder")]


def test_a_problem_reads_as_one_line() -> None:
    assert str(Problem("error", "task.toml", "agent", "is odd")) == "task.toml: agent: is odd"
    assert str(Problem("error", "instruction.md", "", "is missing")) == "instruction.md: is missing"


def test_the_bundled_benchmarks_have_no_errors() -> None:
    folder = Path(__file__).parents[3] / "orchestrator" / "benchmarks"
    assert [str(each) for each in problems(folder) if each.severity == "error"] == []


def test_a_header_with_half_a_variable_is_a_mistake(scenario: Make) -> None:
    servers = '[{ name = "x", url = "http://x", headers = { A = "Bearer ${KEY" } }]'
    mistakes = found(scenario({"task.toml": f"[environment]\nmcp_servers = {servers}\n"}))
    assert mistakes == {
        ("task.toml", "environment.mcp_servers[0].headers"): (
            "a variable in a header is written ${NAME}, or ${NAME:-default}"
        )
    }


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "10.0.0.5:8080", "168.63.129.16", "[fd00:ec2::254]", "[::ffff:127.0.0.1]:80", "0.0.0.0"]
)
def test_a_scenario_cannot_name_hosts_of_the_users_network(scenario: Make, host: str) -> None:
    """A service of this machine at a port of its own can be named, and is told before the sweep starts."""
    table = '[environment]\nnetwork_mode = "allowlist"\nallowed_hosts = ["a.test", "127.0.0.1:8765", "1.1.1.1", "{}"]\n'
    mistakes = found(scenario({"task.toml": table.format(host)}))
    assert list(mistakes) == [("task.toml", "environment.allowed_hosts")]
    assert "is not a public address" in next(iter(mistakes.values()))
