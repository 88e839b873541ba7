"""Folders of other forms become scenarios: what the agent finds, what is hidden, how it is tested, what is refused."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from orchestrator.core.errors import UsageError
from orchestrator.service.definitions.importers import terminal_bench
from orchestrator.service.definitions.importers.polyglot import read_polyglot
from orchestrator.service.definitions.importers.scenario_folder import ImportedScenario
from orchestrator.service.definitions.importers.terminal_bench import read_terminal_bench
from tests.images.base_images import base_image
from tests.images.debian_registry import debian_registry
from tests.images.packing import PackedImage
from tests.service.images.layers import entry, layer

from .test_imports import scores

if TYPE_CHECKING:
    from .conftest import Desk

TASK: Final = {
    "task.yaml": "instruction: |-\n  Write hello to hello.txt.\ndifficulty: easy\ntags: [files]\nparser_name: pytest\n"
    "max_agent_timeout_sec: 60.0\nmax_test_timeout_sec: 30\n",
    "docker-compose.yaml": "services:\n  client:\n    build:\n      dockerfile: Dockerfile\n"
    "    image: ${T_BENCH_TASK_DOCKER_CLIENT_IMAGE_NAME}\n"
    "    container_name: ${T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME}\n"
    '    command: [ "sh", "-c", "sleep infinity" ]\n'
    "    environment:\n      - TEST_DIR=${T_BENCH_TEST_DIR}\n      - WHO=world\n"
    "    volumes:\n      - ${T_BENCH_TASK_LOGS_PATH}:${T_BENCH_CONTAINER_LOGS_PATH}\n"
    "    deploy: {resources: {limits: {cpus: '1', memory: 1G}}}\n",
    "Dockerfile": "FROM testbed\nWORKDIR /app\nCOPY data ./data\n",
    "data/words.txt": "hello\n",
    "solution.sh": "#!/bin/bash\ncp data/words.txt hello.txt\n",
    "run-tests.sh": "set -e\nsed -i s/hullo/hello/ $TEST_DIR/test_outputs.py\n"
    "python3 -m pytest $TEST_DIR/test_outputs.py -rA\n",
    "tests/test_outputs.py": "from pathlib import Path\n\n\ndef test_it():\n"
    "    assert Path('hello.txt').read_text() == 'hullo\\n'\n",
}
EXERCISE: Final = {
    ".meta/config.json": json.dumps(
        {"files": {"solution": ["twice.py"], "test": ["twice_test.py"], "example": [".meta/example.py"]}}
    ),
    ".meta/example.py": "def twice(number):\n    return 2 * number\n",
    ".docs/instructions.md": "# Twice\n\nReturn twice the number.\n",
    ".docs/instructions.append.md": "# More\n\nOf any number.\n",
    "twice.py": "def twice(number):\n    pass\n",
    "twice_test.py": "from twice import twice\n\n\ndef test_twice():\n    assert twice(2) == 4\n",
    "data.txt": "2\n",
}


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def the_one(found: Iterator[ImportedScenario | UsageError]) -> ImportedScenario:
    (scenario,) = found
    assert isinstance(scenario, ImportedScenario), str(scenario)
    return scenario


def test_of_terminal_bench_the_image_has_no_tests_and_no_solution(tmp_path: Path) -> None:
    scenario = the_one(read_terminal_bench(write(tmp_path / "hello", TASK)))
    assert sorted(scenario.files) == [
        "environment/Dockerfile",
        "environment/data/words.txt",
        "solution/solution.sh",
        "solution/solve.sh",
        "tests/run-tests.sh",
        "tests/test.sh",
        "tests/test_outputs.py",
    ]
    assert (scenario.name, scenario.variables) == ("hello", {"WHO": "world"})
    assert scenario.environment == {"cpus": 1.0, "memory": "1G"}
    assert (scenario.agent_timeout, scenario.verifier_timeout) == (60.0, 90.0)


LATER: Final = "services: {client: {image: debian, command: sleep infinity}"
REFUSALS: Final = {
    "several containers": ({"docker-compose.yaml": LATER + ", db: {image: postgres}}"}, "services: client, db: only a"),
    "a program": ({"docker-compose.yaml": "services: {client: {image: debian, command: [nginx]}}"}, "command: 'nginx'"),
    "a mount": ({"docker-compose.yaml": "services: {client: {image: x, volumes: ['./:/app']}}"}, "volumes: ./:/app"),
    "rights": ({"docker-compose.yaml": "services: {client: {image: x, privileged: true}}"}, "client: privileged: "),
    "no image": (
        {"docker-compose.yaml": "services: {client: {tty: true}}"},
        "client: image: is missing",
    ),
    "no YAML": ({"task.yaml": "instruction: [\n"}, "task.yaml: while parsing"),
    "another parser": (
        {"task.yaml": "instruction: x\nparser_name: mlebench\n"},
        "parser_name: 'mlebench': only pytest",
    ),
    "no instruction": ({"task.yaml": "parser_name: pytest\n"}, "task.yaml: instruction: is missing"),
    "its own test.sh": ({"tests/test.sh": "true\n"}, "tests/test.sh: rename it"),
}


@pytest.mark.parametrize("which", REFUSALS)
def test_what_would_change_a_task_of_terminal_bench_is_refused_by_its_key(which: str, tmp_path: Path) -> None:
    other, words = REFUSALS[which]
    (found,) = read_terminal_bench(write(tmp_path / "hello", {**TASK, **other}))
    assert isinstance(found, UsageError)
    assert words in str(found)


def test_a_solution_that_is_typed_is_refused_and_can_be_left_out_by_name(desk: "Desk") -> None:
    write(desk.folder / "tasks/good", TASK)
    typed = {name: text for name, text in TASK.items() if name != "solution.sh"}
    write(desk.folder / "tasks/typed", {**typed, "solution.yaml": "- command: ls\n"})
    words = ("benchmarks", "import", "terminal-bench", "tasks", "--to", "set")
    assert "tasks/typed/solution.yaml: keys that are typed" in desk.refused(*words)
    assert not (desk.folder / "set").exists()
    ended = desk.sweep(*words, "--skip-unsupported")
    assert "Left out: tasks/typed/solution.yaml: " in ended.out
    assert [each.name for each in (desk.folder / "set").iterdir()] == ["good"]
    assert desk.sweep("check", "./set", "--static").out.splitlines()[-1] == "set: sound"
    assert "no task.yaml is in it" in desk.refused("benchmarks", "import", "terminal-bench", "set", "--to", "more")


PYTEST: Final = "== short test summary info ==\n"
OUTPUTS: Final = {
    "all passed": (
        "pytest",
        f"FAILED before\n{PYTEST}PASSED a.py::one\nXFAIL b\nSKIPPED [1] c\n== 3 ==\n",
        True,
    ),
    "one failed": ("pytest", f"{PYTEST}PASSED a.py::one\nFAILED a.py::two - assert 1 == 2 - really\n", False),
    "an error, and no newline": ("pytest", f"{PYTEST}PASSED a.py::one\nERROR a.py", False),
    "passed the second time": ("pytest", f"{PYTEST}FAILED a.py::one - x\n{PYTEST}PASSED a.py::one\n", True),
    "no summary": ("pytest", "PASSED a.py::one\n1 passed\n", False),
    "an empty summary": ("pytest", PYTEST, False),
    "marked": ("swebench", "x\nSWEBench results starts here\nPASSED\nSWEBench results ends here\n", True),
    "marked as failed": ("swebench", "SWEBench results starts here\nFAILED\nSWEBench results ends here\n", False),
    "marked by half": ("swebench", "SWEBench results starts here\nPASSED\n", False),
}


@pytest.mark.parametrize("which", OUTPUTS)
def test_verdicts_are_read_as_terminal_bench_reads_them(which: str, tmp_path: Path) -> None:
    parser, output, is_resolved = OUTPUTS[which]
    (tmp_path / "log").write_text(output)
    script = f"log={tmp_path}/log\n{terminal_bench._READINGS[parser]}\necho resolved"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout == "resolved\n", done.stderr) == (is_resolved, "")


def test_of_an_exercise_the_agent_finds_the_stub_and_no_tests(tmp_path: Path) -> None:
    write(tmp_path / "python/exercises/practice/twice", EXERCISE)
    scenario = the_one(read_polyglot(tmp_path))
    assert sorted(scenario.files) == [
        "environment/Dockerfile",
        "environment/data.txt",
        "environment/twice.py",
        "solution/files/twice.py",
        "solution/solve.sh",
        "tests/exercise/twice_test.py",
        "tests/run.sh",
        "tests/test.sh",
    ]
    assert scenario.name == "python_twice"
    assert scenario.statement.startswith("# Twice\n\nReturn twice the number.\n\n# More\n")
    assert "working directory: twice.py." in scenario.statement


def test_examples_go_where_their_stubs_are(tmp_path: Path) -> None:
    """A class of Java without a stub goes beside the one with one; packages that an example in Rust needs come too."""
    java, rust = tmp_path / "exercises/practice/a", tmp_path / "exercises/practice/b"
    parts = {
        java: {
            "solution": ["src/main/java/A.java"],
            "test": ["src/test/java/ATest.java"],
            "example": [".meta/src/reference/java/A.java", ".meta/src/reference/java/B.java"],
        },
        rust: {"solution": ["src/lib.rs", "Cargo.toml"], "test": ["tests/b.rs"], "example": [".meta/example.rs"]},
    }
    for folder, files in parts.items():
        names = [name for part in files.values() for name in part]
        write(folder, {**dict.fromkeys(names, "x\n"), ".meta/config.json": json.dumps({"files": files})})
    (rust / ".meta/Cargo-example.toml").write_text("x\n")
    found = [each for each in read_polyglot(tmp_path) if isinstance(each, ImportedScenario)]
    solutions = [sorted(name for name in each.files if name.startswith("solution/files/")) for each in found]
    assert [[name.removeprefix("solution/files/") for name in names] for names in solutions] == [
        ["src/main/java/A.java", "src/main/java/B.java"],
        ["Cargo.toml", "src/lib.rs"],
    ]


@pytest.mark.slow
@pytest.mark.root
def test_folders_of_both_forms_are_solved_by_their_solutions_only(desk: "Desk", tmp_path: Path) -> None:
    write(desk.folder / "tasks/hello", TASK)
    write(desk.folder / "twice", EXERCISE)
    desk.sweep("benchmarks", "import", "terminal-bench", "tasks", "--to", "set")
    desk.sweep("benchmarks", "import", "polyglot", "twice", "--to", "more")
    (desk.folder / "more/python_twice").rename(desk.folder / "set/python_twice")
    programs = {"pip": "exit 0", "pytest": 'exec python3 -m pytest "$@"'}
    entries = [
        entry(f"usr/local/bin/{name}", data=f"#!/bin/sh\n{text}\n".encode(), mode=0o755)
        for name, text in programs.items()
    ]
    image = PackedImage.of(base_image("testbed"), layer(*entries))
    with debian_registry(tmp_path / "registry") as registry:
        for name in ("library/testbed:latest", "library/python:3.11"):
            registry.push(name, image)
        mirror = f"--registry-mirror=docker.io=http://{registry.host}"
        wrong = "command:echo hullo >hello.txt; sed -i 's/pass/return 3/' twice.py || true"
        found = scores(desk, "set", "oracle", "nop", wrong, words=[mirror])
    agents = {"oracle": 1.0, "nop": 0.0, wrong: 0.0}
    assert found == {(name, agent): agents[agent] for name in ("hello", "python_twice") for agent in agents}
