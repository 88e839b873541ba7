"""SWE-bench's instances: imported with the package, run on their images, and judged as the package itself judges."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from orchestrator.service.definitions.importers import swe_bench_judge
from tests.images.debian_registry import debian_registry

from .conftest import INSTALLING, settings
from .swe_bench import Instance, judged_by_swebench, make_instance, swebench_python, write_lines

if TYPE_CHECKING:
    from tests.e2e.conftest import Desk

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.xdist_group("toolchain")]

#: Of pytest and of Django by turns.
COUNT: Final = int(os.environ.get("SWEEP_TEST_INSTANCES", "4"))
NEWEST: Final = "5.0.2"


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> list[Instance]:
    place = tmp_path_factory.mktemp("instances")
    return [make_instance(number, place / str(number)) for number in range(2, COUNT + 2)]


@pytest.fixture
def mirror(instances: list[Instance], tmp_path: Path) -> Iterator[str]:
    """Words that lead to a registry with the images, by the names under which they are published."""
    with debian_registry(tmp_path / "registry") as registry:
        for each in instances:
            registry.push(each.row["image"], each.image)
        yield f"--registry-mirror=docker.io=http://{registry.host}"


def command_of(version: str) -> list[str]:
    """The import with a version of swebench."""
    words = ("benchmarks", "import", "swebench", "rows.jsonl", "--to", "set")
    return [str(swebench_python(version)), "-m", "orchestrator", *words]


def imported(desk: "Desk", instances: list[Instance], version: str) -> None:
    write_lines(desk.folder / "rows.jsonl", [each.row for each in instances])
    ended = desk.spawn(command_of(version)).end()
    assert ended.status == 0, str(ended)


def resolved(desk: "Desk", mirror: str, *agents: str) -> Mapping[str, set[str]]:
    """Run the set, and return the names of the scenarios that each agent resolved; the others have a score of 0."""
    words = [word for agent in agents for word in ("--agent", agent)]
    ended = desk.start("run", "./set", mirror, "--name", "it", *words, environment=settings()).end(INSTALLING)
    assert ended.status == 0, str(ended)
    found = desk.results("runs/it")
    assert {each["score"] for each in found} <= {0.0, 1.0}, found
    return {
        agent: {each["scenario_name"] for each in found if each["agent"] == agent and each["score"]} for agent in agents
    }


def predictions(desk: "Desk", name: str, patches: Mapping[str, str]) -> str:
    write_lines(desk.folder / f"{name}.jsonl", [{"instance_id": key, "model_patch": patches[key]} for key in patches])
    return f"predictions:{name}.jsonl"


def mixture(instances: list[Instance]) -> tuple[dict[str, str], set[str]]:
    """Return patches of which each third mends, breaks something, and does nothing; and whom the first mend."""
    patches = {each.name: (each.row["patch"], each.harm, "")[number % 3] for number, each in enumerate(instances)}
    return patches, {each.name for each in instances if patches[each.name] == each.row["patch"]}


def test_gold_patches_are_resolved_and_others_are_not(
    real_desk: "Desk", instances: list[Instance], mirror: str
) -> None:
    imported(real_desk, instances, NEWEST)
    names, (patches, mended) = {each.name for each in instances}, mixture(instances)
    gold = predictions(real_desk, "gold", {each.name: each.row["patch"] for each in instances})
    empty = predictions(real_desk, "empty", dict.fromkeys(names, ""))
    mixed = predictions(real_desk, "mixed", patches)
    found = resolved(real_desk, mirror, "oracle", gold, empty, mixed)
    assert found == {"oracle": names, gold: names, empty: set(), mixed: mended}
    assert "operator" not in (real_desk.folder / "set" / min(names) / "instruction.md").read_text()


def test_a_repository_that_an_agent_left_runs_nothing_of_its_own(
    real_desk: "Desk", instances: list[Instance], mirror: str
) -> None:
    """A commit is as good as a change, and what git would have run is seen; without a repository it is a 0."""
    imported(real_desk, instances[:1], NEWEST)
    (name,) = (each.name for each in instances[:1])
    planted = (
        "git apply /dev/stdin && git -c user.name=x -c user.email=x commit --quiet --all --message=mine; "
        "printf '#!/bin/sh\\necho planted >&2\\n' >.git/hooks/post-checkout; chmod +x .git/hooks/post-checkout; "
        "git config core.fsmonitor 'echo planted >&2; false'; git config filter.x.smudge 'echo planted >&2; cat'; "
        "echo '* filter=x' >.git/info/attributes"
    )
    (real_desk.folder / "set" / name / "instruction.md").write_text(str(instances[0].row["patch"]))
    words = ("--agent", f"command:{planted}", "--agent", "command:rm -rf .git")
    real_desk.start("run", "./set", mirror, "--name", "it", *words, environment=settings()).end(INSTALLING)
    found = {each["agent"]: (each["score"], each["flags"]) for each in real_desk.results("runs/it")}
    assert found == {words[1]: (1.0, ["system_changed"]), words[3]: (0.0, ["system_changed"])}
    logs = [log.read_text() for log in (real_desk.folder / "runs/it").rglob("verifier/test_output.txt")]
    assert ["planted" in log for log in logs] == [False, False]


def test_swebenchs_own_evaluation_in_containers_comes_to_the_same_verdicts(
    instances: list[Instance], tmp_path: Path
) -> None:
    patches, mended = mixture(instances)
    assert judged_by_swebench(tmp_path / "own", instances, patches) == mended


def test_rows_of_before_version_5_are_judged_by_what_the_package_knows(
    real_desk: "Desk", instances: list[Instance], mirror: str
) -> None:
    imported(real_desk, instances[:2], "4.1.0")
    names = {each.name for each in instances[:2]}
    assert resolved(real_desk, mirror, "oracle", "nop") == {"oracle": names, "nop": set()}


MISTAKES: Final[Mapping[str, tuple[dict[str, Any], str]]] = {
    "before version 5": (
        dict.fromkeys(("image", "eval_script", "log_parser", "eval_type"), ""),
        "line 1: image, eval_script, log_parser, eval_type: missing, and swebench 5.0.2 knows of an evaluation by them",
    ),
    "of another set": ({"version": None}, "line 1: version: is missing"),
    "without tests": ({"FAIL_TO_PASS": []}, "line 1: FAIL_TO_PASS: is missing"),
    "of an unknown parser": ({"log_parser": "parse_log_x"}, "swebench 5.0.2 has none called 'parse_log_x'"),
    "with pictures": ({"image_assets": '{"test_patch": [{"path": "a.png", "url": "x"}]}'}, "line 1: image_assets: "),
    "with a list of pictures": ({"image_assets": ["x"]}, "line 1: image_assets: a table, whose problem_statement is"),
}


@pytest.mark.parametrize("which", MISTAKES)
def test_a_row_that_cannot_be_evaluated_is_refused(which: str, real_desk: "Desk", instances: list[Instance]) -> None:
    other, words = MISTAKES[which]
    write_lines(real_desk.folder / "rows.jsonl", [{**instances[0].row, **other}])
    ended = real_desk.spawn(command_of(NEWEST)).end()
    assert (ended.status, words in ended.err) == (2, True), str(ended)


def test_pictures_of_a_statement_are_named_in_it_by_their_addresses(
    real_desk: "Desk", instances: list[Instance]
) -> None:
    named, other = "https://example.com/named.png", "https://example.com/other.png"
    assets = json.dumps({"problem_statement": [named, other], "patch": [], "test_patch": []})
    row = {**instances[0].row, "problem_statement": f"It looks wrong: ![]({named})", "image_assets": assets}
    write_lines(real_desk.folder / "rows.jsonl", [row, instances[1].row])
    ended = real_desk.spawn(command_of(NEWEST)).end()
    assert (ended.status, "1 scenario: the statement has pictures, of which" in ended.out) == (0, True), str(ended)
    statement = (real_desk.folder / "set" / instances[0].name / "instruction.md").read_text()
    assert statement == f"It looks wrong: ![]({named})\n\nPictures:\n\n{other}\n"


CASES: Final = {
    "ends early": "echo '>>>>> Start Test Output'; echo PASSED a; exit 0",
    "never begins": "echo PASSED a",
    "hangs": "echo '>>>>> Start Test Output'; echo PASSED a; echo '>>>>> End Test Output'; sleep 1000",
    "claims": "echo '>>>>> Start Test Output'; echo PASSED a; echo '>>>>> End Test Output';"
    "echo '>>>>> Test Exit Code: 3'",
    "is killed": "kill -9 $$",
    "breaks": "echo 'Could not resolve host: example.com'",
    "passes": "echo '>>>>> Start Test Output'; echo PASSED a; echo '>>>>> End Test Output'",
}
JUDGE: Final = """
import json, pathlib, sys
LOGS, LIMIT_S = pathlib.Path("logs"), 2.0
LOGS.mkdir()
pathlib.Path(".git").mkdir()
for name, script in json.load(sys.stdin).items():
    try:
        print(name, end=": ")
        main({"instance_id": "x", "version": "1", "repo": "pallets/flask", "FAIL_TO_PASS": ["a"], "PASS_TO_PASS": [],
              "log_parser": "parse_log_flask", "eval_type": "pass_and_fail", "eval_script": script})
    except SystemExit as end:
        print(end)
"""


def test_what_did_not_run_to_its_end_resolves_nothing(tmp_path: Path) -> None:
    """It is a 0 where the patch may be the reason, and no score where the environment is."""
    text = Path(swe_bench_judge.__file__).read_text() + JUDGE
    done = subprocess.run(
        [swebench_python(NEWEST), "-c", text],
        cwd=tmp_path,
        input=json.dumps(CASES).encode(),
        capture_output=True,
        check=False,
    )
    verdicts = dict(line.split(": ", 1) for line in done.stdout.decode().splitlines() if ": " in line)
    assert done.returncode == 0, done.stderr.decode()
    zeros = dict.fromkeys(("ends early", "never begins", "hangs", "claims", "is killed"), "0.0")
    assert verdicts == {**zeros, "breaks": "The environment failed: network_unreachable", "passes": "1.0"}
