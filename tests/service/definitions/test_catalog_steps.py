"""A scenario folder of several steps: each has the task's settings, and its own laid over them."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.protocol import RewardStrategy, ScoringMode
from orchestrator.service.definitions.steps import Steps, is_enough, rewards_of_all
from orchestrator.service.definitions.task_file import ScenarioContext, read_scenario
from orchestrator.service.definitions.task_toml import Artifact, Reach

Make = Callable[..., Path]

TASK = """\
schema_version = "1.4"
multi_step_reward_strategy = "final"
artifacts = ["/app/log"]
[environment]
network_mode = "no-network"
healthcheck = { command = "true" }
[agent]
timeout_sec = 100
[verifier]
timeout_sec = 50
env = { A = "task", B = "task" }
[[steps]]
name = "read"
min_reward = 0.5
artifacts = [{ source = "/app/notes", exclude = ["*.tmp"] }]
[steps.healthcheck]
command = "test -e ready"
retries = 7
[[steps]]
name = "write"
min_reward = { quality = 0.2, reward = 1 }
[steps.agent]
timeout_sec = 20
[steps.verifier]
environment_mode = "separate"
timeout_sec = 5
env = { B = "step" }
"""
FILES: Mapping[str, str | None] = {
    "task.toml": TASK,
    "instruction.md": None,
    "solution/solve.sh": None,
    "tests/common.sh": "true\n",
    "steps/read/instruction.md": "Read it.\n",
    "steps/read/tests/test.sh": "exit 7\n",
    "steps/read/workdir/setup.sh": "touch ready\n",
    "steps/read/workdir/book/page": "x\n",
    "steps/read/solution/solve.sh": "cat book/page\n",
    "steps/write/instruction.md": "Write it.\n",
}


def members(archive: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        files = [(each.name, tar.extractfile(each)) for each in tar if each.isfile()]
        return {name: file.read().decode() for name, file in files if file is not None}


def read(folder: Path) -> dict[str, Any]:
    scenario = read_scenario("scn_1", folder, ScenarioContext(benchmark="bench", boundary=folder.parent))
    assert scenario.errors == ()
    return scenario.view


def test_a_client_that_knows_of_no_steps_sees_the_first_and_ours_sees_all(scenario: Make) -> None:
    view = read(scenario(FILES))
    assert view["input_context"] == {"problem_statement": "Read it.\n"}
    first, second = view["steps"]
    assert first["reference_output"] == view["reference_output"]
    assert (first["name"], first["problem_statement"]) == ("read", "Read it.\n")
    assert (first["agent_timeout_sec"], first["scorer_timeout_sec"]) == (100.0, 50)
    assert second == {
        "name": "write",
        "problem_statement": "Write it.\n",
        "reference_output": None,
        "agent_timeout_sec": 20.0,
        "scorer_timeout_sec": 5,
        "artifacts": [{"source": "/app/log", "exclude": []}],
    }


def test_a_step_without_a_solution_has_the_one_of_the_task(scenario: Make) -> None:
    alone = read(scenario(FILES))["steps"]
    first, second = read(scenario({**FILES, "solution/solve.sh": "echo shared\n"}, name="shared"))["steps"]
    assert (first["reference_output"], alone[1]["reference_output"]) == (alone[0]["reference_output"], None)
    assert second["reference_output"] not in {None, first["reference_output"]}


def test_a_step_has_the_settings_of_the_task_with_its_own_laid_over_them(scenario: Make) -> None:
    steps: Steps = read(scenario(FILES))["_steps"]
    first, second = steps.steps
    assert steps.strategy is RewardStrategy.FINAL
    assert (first.min_reward, second.min_reward) == ({"reward": 0.5}, {"quality": 0.2, "reward": 1.0})
    assert (first.plan.mode, second.plan.mode) == (ScoringMode.SHARED, ScoringMode.SEPARATE)
    assert first.plan.artifacts == (Artifact(source="/app/log"), Artifact(source="/app/notes", exclude=("*.tmp",)))
    assert second.plan.artifacts == (Artifact(source="/app/log"),)
    assert first.start.healthcheck is not None
    assert (first.start.healthcheck.retries, second.start.healthcheck) == (7, None)
    assert first.start.has_setup
    assert members(first.start.workdir) == {"setup.sh": "touch ready\n", "book/page": "x\n"}
    assert second.start.workdir == b""


def test_the_tests_of_a_step_are_laid_over_those_of_the_task(scenario: Make) -> None:
    first, second = read(scenario(FILES))["_steps"].steps
    assert members(first.plan.tests.archive) == {"common.sh": "true\n", "test.sh": "exit 7\n"}
    assert first.plan.tests.variables == {"A": "task", "B": "task"}
    assert set(members(second.plan.tests.archive)) == {"common.sh", "test.sh"}
    assert members(second.plan.tests.archive)["test.sh"] != "exit 7\n"
    assert second.plan.tests.variables == {"A": "task", "B": "step"}


def test_the_verifier_of_a_step_is_its_own_or_else_the_tasks(scenario: Make) -> None:
    """Of a step's image and Dockerfile, and then of the task's, the first that is there."""
    task = (
        '[environment]\nnetwork_mode = "no-network"\n[verifier]\nuser = "judge"\nenvironment_mode = "separate"\n'
        '[[steps]]\nname = "read"\n[[steps]]\nname = "write"\n[steps.verifier.environment]\ndocker_image = "org/it:1"\n'
        '[[steps]]\nname = "ask"\nverifier = { environment_mode = "shared", user = "asker", network_mode = "public" }\n'
        '[[steps]]\nname = "end"\n'
    )
    files = {f"steps/{name}/instruction.md": "Do it.\n" for name in ("read", "write", "ask", "end")}
    files |= {"environment/Dockerfile": "FROM debian:12\n", "tests/Dockerfile": "FROM debian:13\n"}
    files |= {f"steps/{name}/tests/Dockerfile": f"FROM org/{name}\n" for name in ("read", "write")}
    found = read_scenario(
        "scn_1", scenario({**FILES, **files, "task.toml": task}), ScenarioContext(benchmark="bench", boundary=Path("/"))
    )
    assert found.errors == ()
    assert "unsupported" not in found.view["metadata"]
    known = found.blueprints
    plans = [step.plan for step in found.view["_steps"].steps]
    images = [plan.environment and known[plan.environment].image for plan in plans]
    assert [image and image.text.strip() for image in images] == [
        "FROM org/read",
        "FROM org/it:1",
        None,
        "FROM debian:13",
    ]
    assert [plan.user for plan in plans] == [None, None, "asker", None]
    assert [plan.reach for plan in plans] == [None, Reach(network=True), Reach(network=True), None]
    assert {each.verifier_user for each in known.values()} == {"judge"}


def test_a_step_without_tests_is_not_judged(scenario: Make) -> None:
    task = TASK.replace('"final"', '"mean"')
    first, second = read(scenario({**FILES, "task.toml": task, "tests/test.sh": None}))["_steps"].steps
    assert first.contract["scoring_function_parameters"]
    assert (second.plan.tests, second.contract) == (None, {"scoring_function_parameters": []})


def test_a_changed_step_is_another_scenario(scenario: Make) -> None:
    folder = scenario(FILES)
    before = read(folder)["metadata"]["digest"]
    (folder / "steps/write/instruction.md").write_text("Write more.\n")
    assert read(folder)["metadata"]["digest"] != before


@pytest.mark.parametrize(
    ("strategy", "rewards", "whole"),
    [
        ("mean", [{"reward": 1.0}, {"reward": 0.5}], {"reward": 0.75}),
        ("mean", [{"reward": 1.0}, None, {"reward": 0.0}], {"reward": 0.5}),
        ("mean", [{"reward": 1.0, "style": 0.5}, {"reward": 1.0}], {"reward": 1.0, "style": 0.25}),
        ("mean", [None], {}),
        ("final", [{"reward": 1.0}, {"reward": 0.5, "style": 1.0}], {"reward": 0.5, "style": 1.0}),
        ("final", [{"reward": 1.0}, None], {}),
    ],
)
def test_the_rewards_of_all_steps_become_one(strategy: str, rewards: list[Any], whole: dict[str, float]) -> None:
    assert rewards_of_all(RewardStrategy(strategy), rewards) == whole


def test_a_reward_below_the_least_or_missing_lets_no_step_follow() -> None:
    assert is_enough({"reward": 0.5}, {})
    assert is_enough({"reward": 0.5}, {"reward": 0.5})
    assert not is_enough({"reward": 0.4}, {"reward": 0.5})
    assert not is_enough({"reward": 1.0}, {"style": 0.0})
