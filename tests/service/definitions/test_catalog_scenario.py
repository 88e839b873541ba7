"""A scenario folder on the wire."""

import copy
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.protocol import ScoringMode
from orchestrator.endpoint import parsing
from orchestrator.service import records
from orchestrator.service.content import digest, listing
from orchestrator.service.definitions.scoring_plan import ScoringPlan
from orchestrator.service.definitions.task_file import Scenario, ScenarioContext, read_scenario
from orchestrator.service.definitions.task_toml import Artifact, Collect, Reach
from orchestrator.service.devboxes.requests import parse_launch
from orchestrator.service.sandbox.provider import Resources

Make = Callable[..., Path]

# As written by tools of the Harbor world, with keys that mean nothing here.
HARBOR = """\
schema_version = "1.1"
source = "somewhere"
artifacts = ["/app/out.txt"]

[task]
name = "org/task"
description = "d"
authors = [{ name = "A", email = "a@example.org" }]

[metadata]
author_name = "A"
difficulty = "medium"
category = "software-engineering"
tags = ["coding", "c"]
expert_time_estimate_min = 20

[verifier]
timeout_sec = 900.0
user = "root"
env = { MODEL = "${MODEL:-small one}", LEVEL = "3" }

[agent]
timeout_sec = 900.0

[environment]
build_timeout_sec = 300.0
docker_image = "org/task:20251031"
cpus = 2
memory = "4G"
storage = "10G"
gpus = 0
allow_internet = true
mcp_servers = []
env = { TOKEN = "${TOKEN}", MODE = "fast" }

[solution]
env = {}
"""


def read(folder: Path, *, rebuild: bool = False, **scorers: str) -> Scenario:
    around = ScenarioContext(benchmark="bench", boundary=folder.parent, custom_scorers=scorers, rebuild=rebuild)
    return read_scenario("scn_1", folder, around)


def test_a_plain_folder_becomes_a_scenario(scenario: Make) -> None:
    found = read(scenario())
    assert found.problems == ()
    view = found.view
    assert (view["id"], view["name"], view["status"], view["is_public"]) == ("scn_1", "first", "active", True)
    assert view["input_context"] == {"problem_statement": "Mend it.\n"}
    assert view["metadata"].keys() == {"benchmark", "source", "difficulty", "digest"}
    assert view["environment"] == {"blueprint_id": found.blueprint.id, "working_directory": "/app"}
    assert (view["scorer_timeout_sec"], view["validation_type"]) == (600, "FORWARD")
    functions = view["scoring_contract"]["scoring_function_parameters"]
    assert [(each["name"], each["weight"], each["scorer"]["type"]) for each in functions] == [
        ("tests", 1.0, "bash_script_scorer")
    ]


def test_an_image_that_is_named_is_built_all_the_same_if_that_is_asked(scenario: Make) -> None:
    folder = scenario({"task.toml": HARBOR, "environment/Dockerfile": "FROM ubuntu:24.04\n"})
    recipes = [read(folder, rebuild=rebuild).blueprint.image for rebuild in (False, True)]
    assert [each and each.text for each in recipes] == ["FROM org/task:20251031", "FROM ubuntu:24.04\n"]
    (folder / "environment/Dockerfile").unlink()
    again = read(folder, rebuild=True).blueprint.image
    assert again is not None
    assert again.text.startswith("FROM org/task:20251031")


def test_a_harbor_task_is_read_without_change(scenario: Make) -> None:
    dockerfile = 'FROM ubuntu:24.04\nWORKDIR /workspace\nCOPY main.py ./\nCMD ["bash"]\n'
    found = read(scenario({"task.toml": HARBOR, "environment/Dockerfile": dockerfile}))
    assert not [problem for problem in found.problems if problem.severity == "error"]
    view = found.view
    assert view["metadata"] | {"digest": ""} == {
        "benchmark": "bench",
        "source": "folder",
        "category": "software-engineering",
        "difficulty": "medium",
        "tags": "coding,c",
        "agent_timeout_sec": "900",
        "reaches": "internet",
        "optional_variables": "MODEL",
        "digest": "",
    }
    assert view["scorer_timeout_sec"] == 900
    assert view["required_environment_variables"] == ["TOKEN"]
    assert "working_directory" not in view["environment"], "it is the image's"
    assert view["environment"]["launch_parameters"] == {
        "resource_size_request": "CUSTOM_SIZE",
        "custom_cpu_cores": 2,
        "custom_gb_memory": 4,
        "custom_disk_size": 10,
    }
    assert found.blueprint.network is True
    assert found.blueprint.environment == {"MODE": "fast"}
    assert found.blueprint.resources == Resources(cpus=2, memory=4 << 30, disk=10 << 30)
    script = view["scoring_contract"]["scoring_function_parameters"][0]["scorer"]["bash_script"]
    assert "MODEL=${MODEL:-'small one'}; export MODEL" in script
    assert "export LEVEL=3" in script


@pytest.mark.parametrize(
    ("table", "network"),
    [
        ("", True),
        ("allow_internet = false", False),
        ("allow_internet = true", True),
        ('network_mode = "public"', True),
        ('network_mode = "no-network"', False),
        ('allow_internet = true\nnetwork_mode = "no-network"', False),
        ('allow_internet = true\nnetwork_mode = "allowlist"\nallowed_hosts = ["a.test"]', False),
    ],
)
def test_a_task_has_the_internet_unless_it_says_otherwise(scenario: Make, table: str, *, network: bool) -> None:
    found = read(scenario({"task.toml": f"[environment]\n{table}\n"}))
    assert found.blueprint.network is network
    assert found.problems == ()


@pytest.mark.parametrize("section", ["environment", "agent", "verifier"])
def test_an_empty_list_of_hosts_alone_closes_nothing_as_in_harbor_and_that_is_noted(
    scenario: Make, section: str
) -> None:
    found = read(scenario({"task.toml": f"[{section}]\nallowed_hosts = []\n"}))
    assert found.blueprint.network is True
    assert [(each.severity, each.key) for each in found.problems] == [("warning", f"{section}.allowed_hosts")]
    closed = f'[{section}]\nnetwork_mode = "allowlist"\nallowed_hosts = []\n'
    assert read(scenario({"task.toml": closed})).problems == ()


def test_hosts_that_a_task_may_reach_are_part_of_its_environment(scenario: Make) -> None:
    allowed = 'allowed_hosts = ["a.test", "*.b.test:8443"]'
    found = read(scenario({"task.toml": f'[environment]\nnetwork_mode = "allowlist"\n{allowed}\n'}))
    assert found.blueprint.hosts == ("a.test", "*.b.test:8443")
    closed = read(scenario({"task.toml": f'[environment]\nnetwork_mode = "no-network"\n{allowed}\n'}))
    assert closed.blueprint.hosts == ()
    assert closed.blueprint.id != found.blueprint.id


@pytest.mark.parametrize(
    ("table", "size"),
    [
        ("cpus = 1\nmemory_mb = 1024", (1, 2, None)),
        ("cpus = 3", (4, 8, None)),
        ("memory_mb = 20480", (4, 20, None)),
        ("cpus = 0.5\nstorage_mb = 1024", (1, 2, 2)),
        ('memory = "1.5G"\nstorage = "5000M"', (1, 2, 6)),
        ("cpus = 64\nmemory_mb = 1000000\nstorage_mb = 1000000", (16, 64, 64)),
    ],
)
def test_sizes_are_rounded_up_to_what_the_api_knows(
    scenario: Make, table: str, size: tuple[int, int, int | None]
) -> None:
    found = read(scenario({"task.toml": f"[environment]\nallow_internet = false\n{table}\n"}))
    launch = found.view["environment"]["launch_parameters"]
    assert (launch["custom_cpu_cores"], launch["custom_gb_memory"], launch.get("custom_disk_size")) == size
    assert parse_launch(launch).resources is not None


def test_scorers_carry_the_files_they_name(scenario: Make) -> None:
    task = """\
    [environment]
    allow_internet = false
    [[scorers]]
    name = "behaviour"
    weight = 0.4
    type = "test_based_scorer"
    test_command = "python3 hidden.py"
    test_files = { "hidden.py" = "hidden.py", "data/x.txt" = "sub/x.txt" }
    [[scorers]]
    name = "script"
    weight = 0.1
    type = "bash_script_scorer"
    bash_script = "script.sh"
    [[scorers]]
    name = "python"
    weight = 0.1
    type = "python_script_scorer"
    python_script = "score.py"
    requirements = "requirements.txt"
    python_version_constraint = ">=3.11"
    [[scorers]]
    name = "command"
    weight = 0.1
    type = "command_scorer"
    command = "true"
    [[scorers]]
    name = "search"
    weight = 0.1
    type = "ast_grep_scorer"
    pattern = "f($X)"
    search_directory = "."
    lang = "python"
    [[scorers]]
    name = "custom"
    weight = 0.2
    type = "custom_scorer"
    custom_scorer_type = "half"
    scorer_params = { cases = ["a"] }
    """
    files = {
        "task.toml": task,
        "tests/test.sh": None,
        "tests/hidden.py": "import main\n",
        "tests/sub/x.txt": "ü\n",
        "tests/script.sh": "echo score=1\n",
        "tests/score.py": "print(1)\n",
        "tests/requirements.txt": "attrs\n",
    }
    found = read(scenario(files), half="echo score=0.5")
    assert found.problems == ()
    functions = found.view["scoring_contract"]["scoring_function_parameters"]
    scorers = {each["name"]: each["scorer"] for each in functions}
    assert [each["weight"] for each in functions] == [0.4, 0.1, 0.1, 0.1, 0.1, 0.2]
    assert scorers["behaviour"]["test_files"] == [
        {"file_path": "hidden.py", "file_contents": "import main\n"},
        {"file_path": "data/x.txt", "file_contents": "ü\n"},
    ]
    assert scorers["script"]["bash_script"] == "echo score=1\n"
    assert scorers["python"] == {
        "type": "python_script_scorer",
        "python_script": "print(1)\n",
        "requirements_contents": "attrs\n",
        "python_version_constraint": ">=3.11",
    }
    assert scorers["search"] == {
        "type": "ast_grep_scorer",
        "pattern": "f($X)",
        "search_directory": ".",
        "lang": "python",
    }
    assert scorers["custom"]["scorer_params"] == {"cases": ["a"]}
    assert json.dumps(records.view(found.view))


def test_the_digest_tells_contents_names_and_executable_bits_apart(scenario: Make) -> None:
    def now() -> Any:
        return read(folder).view["metadata"]["digest"]

    folder = scenario()
    first = now()
    assert now() == first
    (folder / "environment" / "main.py").chmod(0o755)
    assert now() != first
    (folder / "environment" / "main.py").chmod(0o600)
    assert now() == first
    (folder / "environment" / "main.py").rename(folder / "environment" / "other.py")
    assert now() != first


def test_files_that_tools_leave_behind_do_not_change_a_digest(scenario: Make, tmp_path: Path) -> None:
    folder = scenario()
    before = read(folder)
    cache = folder / "environment" / "__pycache__"
    cache.mkdir()
    (cache / "main.cpython-311.pyc").write_bytes(b"x")
    after = read(folder)
    assert before.view == after.view
    assert before.stamps == after.stamps
    assert digest(listing(folder, tmp_path).nodes) == digest(listing(folder, folder).nodes)


def test_a_custom_scorers_script_is_part_of_the_digest(scenario: Make) -> None:
    task = '[[scorers]]\nname = "it"\ntype = "custom_scorer"\ncustom_scorer_type = "half"\n'
    folder = scenario({"task.toml": task})
    first, second = read(folder, half="echo score=0.5"), read(folder, half="echo score=0.4")
    assert first.errors == ()
    assert first.view["metadata"]["digest"] != second.view["metadata"]["digest"]


def test_the_same_folder_gives_the_same_bytes_wherever_it_is(scenario: Make) -> None:
    files = {"solution/data.bin": bytes(range(256))}
    first, second = read(scenario(files)), read(scenario(files, benchmark="copy"))
    assert first.view["reference_output"] == second.view["reference_output"]
    assert first.view["scoring_contract"] == second.view["scoring_contract"]
    assert first.view["metadata"]["digest"] == second.view["metadata"]["digest"]
    assert first.blueprint.id == second.blueprint.id


def test_a_blueprint_is_another_one_when_the_devbox_would_be(scenario: Make) -> None:
    base = read(scenario()).blueprint
    statement = read(scenario({"instruction.md": "Other words.\n", "tests/test.sh": "true\n"}, name="b")).blueprint
    assert statement.id == base.id
    others = [
        {"environment/main.py": "print('other')\n"},
        {"environment/setup.sh": "true\n"},
        {"task.toml": "[environment]\nallow_internet = true\n"},
        {"task.toml": '[environment]\nallow_internet = false\nworkdir = "/work"\n'},
        {"task.toml": '[environment]\nallow_internet = false\nenv = { A = "1" }\n'},
    ]
    ids = {read(scenario(files, name=f"c{number}")).blueprint.id for number, files in enumerate(others)}
    assert len(ids | {base.id}) == 6


def test_without_a_solution_there_is_no_reference_and_a_warning(scenario: Make) -> None:
    found = read(scenario({"solution/solve.sh": None}))
    assert (found.view["reference_output"], found.view["validation_type"]) == (None, "UNSPECIFIED")
    assert [(each.severity, each.file) for each in found.problems] == [("warning", "solution/solve.sh")]


def test_the_hidden_files_are_not_in_the_environment(scenario: Make) -> None:
    found = read(scenario({"tests/hidden.py": "secret\n"}))
    assert [node.path for node in found.blueprint.files.nodes] == ["main.py"]


def test_links_stay_inside(scenario: Make) -> None:
    """One in its own folder is kept, one to a file of the benchmark becomes that file; any other is a mistake."""
    folder = scenario({"environment/real.txt": "x"})
    environment = folder / "environment"
    (folder.parent / "shared.txt").write_text("shared")
    (environment / "kept").symlink_to("real.txt")
    (environment / "shared").symlink_to("../../shared.txt")
    found = read(folder)
    assert not found.errors
    assert {node.path: (node.kind, node.target) for node in found.blueprint.files.nodes} == {
        "kept": ("link", "real.txt"),
        "main.py": ("file", ""),
        "real.txt": ("file", ""),
        "shared": ("file", ""),
    }
    (environment / "out").symlink_to("/etc/passwd")
    (environment / "cheat").symlink_to("../tests/test.sh")
    (folder / "tests" / "up").symlink_to("../../../")
    found = read(folder)
    assert {problem.file: problem.message.split(":")[0] for problem in found.problems} == {
        "tests/up": "is a link to ../../../, which leaves the benchmark's folder",
        "environment/cheat": "is a link into tests/, which the agent must not see",
        "environment/out": "is a link to /etc/passwd, which leaves the benchmark's folder",
    }


def test_scoring_settings_of_a_scenario_never_reach_the_wire(scenario: Make) -> None:
    task = """
    artifacts = ["/app/out", { source = "log", destination = "logs/it", exclude = ["*.tmp"], service = "main" }]
    [verifier]
    environment_mode = "separate"
    env = { LEVEL = "a b", TOKEN = "${TOKEN}" }
    [[verifier.collect]]
    command = "pg_dump > /app/out/dump"
    [[verifier.collect]]
    command = "true"
    timeout_sec = 3
    [environment]
    allow_internet = false
    workdir = "/srv/it"
    """
    found = read(scenario({"task.toml": task}))
    assert found.errors == ()
    plan = found.view["_scoring"]
    tests = plan.tests
    assert replace(plan, tests=None) == ScoringPlan(
        mode=ScoringMode.SEPARATE,
        artifacts=(
            Artifact(source="/app/out"),
            Artifact(source="log", destination="logs/it", exclude=("*.tmp",)),
        ),
        collect=(Collect(command="pg_dump > /app/out/dump", timeout=60.0), Collect(command="true", timeout=3.0)),
    )
    assert tests.variables == {"LEVEL": "a b", "TOKEN": "${TOKEN}"}
    assert copy.deepcopy(plan) == plan
    assert "_scoring" not in records.view(found.view)


@pytest.mark.parametrize(
    ("task", "mode"),
    [
        ("", "shared"),
        ('[verifier]\nenvironment_mode = "shared"', "shared"),
        ('[verifier]\nenvironment_mode = "live"', "live"),
        ('[verifier]\nenvironment_mode = "separate"', "separate"),
        ("[verifier.environment]\ncpus = 1", "separate"),
    ],
)
def test_scorers_run_where_declared_and_by_default_in_the_agents_devbox(scenario: Make, task: str, mode: str) -> None:
    plan = read(scenario({"task.toml": f"{task}\n[environment]\nallow_internet = false\n"})).view["_scoring"]
    assert plan.mode == mode


@pytest.mark.parametrize(
    ("task", "agent", "verifier"),
    [
        ('agent.network_mode = "public"\n', Reach(network=True), None),
        ('agent.network_mode = "no-network"\nenvironment.network_mode = "public"\n', Reach(), Reach(network=True)),
        ('verifier.network_mode = "public"\n', Reach(), Reach(network=True)),
        (
            'verifier.network_mode = "allowlist"\nverifier.allowed_hosts = ["a.test"]\n',
            Reach(),
            Reach(hosts=("a.test",)),
        ),
        ('verifier.environment.network_mode = "public"\n', Reach(), Reach(network=True)),
        ("verifier.environment.cpus = 1\n", Reach(), Reach(network=True)),
        ('verifier.environment_mode = "separate"\n', Reach(), None),
    ],
)
def test_agent_and_scorers_reach_what_their_tables_say(
    scenario: Make, task: str, agent: Reach, verifier: Reach | None
) -> None:
    """Scorers have the network of the agent's environment where they do not say, not that of its own phase."""
    given = task if "\nenvironment." in task else f"{task}environment.allow_internet = false\n"
    found = read(scenario({"task.toml": given}))
    assert Reach(network=found.blueprint.network, hosts=found.blueprint.hosts) == agent
    assert found.view["_scoring"].reach == verifier or "agent.network_mode" in task


IMAGES = {
    "environment/Dockerfile": "FROM debian:12\n",
    "tests/Dockerfile": "FROM debian:13\nCOPY . /tests/\n",
    "task.toml": """\
[environment]
allow_internet = false
workdir = "/srv"
env = { MODE = "fast" }
cpus = 2
[verifier]
user = "judge"
environment_mode = "separate"
""",
}
OWN = """
[verifier.environment]
allow_internet = true
docker_image = "org/judge:1"
workdir = "/judge"
memory = "512M"
storage_mb = 1024.0
cpus = 0.5
build_timeout_sec = 7
env = { LEVEL = "3", KEY = "${KEY}" }
healthcheck = { command = "true" }
"""


def test_a_separate_verifier_has_an_environment_of_its_own_where_it_describes_one(scenario: Make) -> None:
    """An image that is named wins over tests/Dockerfile; both have the tests. Else it is the scenario's image."""
    named = read(scenario({**IMAGES, "task.toml": IMAGES["task.toml"] + OWN}, name="named"))
    assert named.errors == ()
    (own,) = named.verifiers
    assert own.image is not None
    assert own.image.text == "FROM org/judge:1"
    assert (own.working_directory, own.verifier_user) == ("/judge", "judge")
    assert (own.environment, own.network) == ({"LEVEL": "3"}, True)
    assert own.resources == Resources(cpus=0.5, memory=512 << 20, disk=1 << 30)
    assert own.build_timeout == 7
    assert own.healthcheck is not None
    assert (named.view["_scoring"].environment, named.view["_scoring"].tests.archive) == (own.id, None)
    assert named.view["metadata"]["verifier_blueprint_ids"] == own.id
    assert named.view["required_environment_variables"] == ["KEY"]

    shown = "services: {main: {volumes: [{type: bind, source: ./judge.py, target: /tests/judge.py}]}}\n"
    more = {"tests/docker-compose.yaml": shown, "tests/judge.py": "1"}
    beside = read(scenario({**IMAGES, **more, "task.toml": IMAGES["task.toml"] + OWN}, name="beside"))
    (composed,) = beside.verifiers
    assert composed.image is not None
    assert composed.image.text == 'FROM org/judge:1\nCOPY ["judge.py","/tests/judge.py"]'

    built = read(scenario(IMAGES, name="built"))
    (made,) = built.verifiers
    assert made.image is not None
    assert (made.image.text, made.has_tests) == (IMAGES["tests/Dockerfile"], True)
    assert [node.path for node in made.files.nodes] == ["Dockerfile", "test.sh"]
    assert (made.environment, made.working_directory) == ({"MODE": "fast"}, "/srv")

    sized = IMAGES["task.toml"] + "[verifier.environment]\nallow_internet = false\n"
    scenarios = read(scenario({**IMAGES, "task.toml": sized, "tests/Dockerfile": None}, name="sized"))
    (anew,) = scenarios.verifiers
    assert anew.image is not None
    assert (anew.image.text, anew.has_tests) == ("FROM debian:12\n", False)
    assert anew.environment == {}
    same = read(scenario({**IMAGES, "tests/Dockerfile": None}, name="same"))
    assert (same.verifiers, same.view["_scoring"].environment) == ((), None)


def test_the_programs_of_tests_and_solution_are_executable_whatever_their_modes(scenario: Make) -> None:
    folder = scenario()
    (folder / "tests/test.sh").chmod(0o644)
    (folder / "tests/run.sh").write_text("true")
    archive = read(folder).view["_scoring"].tests.archive
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        assert (packed.getmember("test.sh").mode, packed.getmember("run.sh").mode) == (0o755, 0o644)
    (folder / "tests/test.sh").unlink()
    (folder / "tests/test.sh").symlink_to("run.sh")
    archive = read(folder).view["_scoring"].tests.archive
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        assert packed.getmember("run.sh").mode == 0o755


def test_what_a_scenario_gives_beside_its_statement_is_on_the_wire_and_in_its_digest(scenario: Make) -> None:
    task = """\
    [environment]
    skills_dir = "/skills"
    mcp_servers = [
        { name = "far", transport = "http", url = "http://x/mcp", headers = { A = "b" } },
        { name = "near", transport = "stdio", command = "serve", args = ["-x"] },
        { name = "old", url = "http://x/sse" },
    ]
    """
    folder = scenario({"task.toml": task, "trajectory.json": "{}"})
    found = read(folder)
    assert found.errors == ()
    context = parsing.summary_of(found.view).context
    assert [(each.name, each.transport, each.url) for each in context.mcp_servers] == [
        ("far", "streamable-http", "http://x/mcp"),
        ("near", "stdio", ""),
        ("old", "sse", "http://x/sse"),
    ]
    assert (context.mcp_servers[0].headers, context.mcp_servers[1].args) == ({"A": "b"}, ("-x",))
    assert (context.skills_dir, context.trajectory) == ("/skills", "{}")
    (folder / "trajectory.json").write_text('{"steps": []}')
    assert read(folder).digest != found.digest
