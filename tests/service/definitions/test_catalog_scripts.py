"""The scripts that `solution/` and `tests/` become, run in real devboxes."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.service.definitions.task_file import ScenarioContext, read_scenario
from orchestrator.service.sandbox.commands import Finished, read_file, run, write_file
from orchestrator.service.sandbox.provider import Box, BoxSpec, Command, Provider, shell

pytestmark = pytest.mark.anyio
Make = Callable[..., Path]


@dataclass(frozen=True, slots=True)
class Desk:
    """A devbox and a scenario's scripts."""

    box: Box
    view: Mapping[str, Any]

    async def script(self, text: str) -> Finished:
        await write_file(self.box, "/tmp/script", text.encode())
        return await run(self.box, Command(argv=("bash", self.box.path("/tmp/script")), cwd="/"), timeout=30)

    async def solve(self) -> Finished:
        return await self.script(self.view["reference_output"])

    async def score(self) -> Finished:
        functions = self.view["scoring_contract"]["scoring_function_parameters"]
        return await self.script(functions[0]["scorer"]["bash_script"])

    async def do(self, command: str) -> None:
        finished = await run(self.box, shell(command), timeout=30)
        assert finished.status == 0, finished.output


@asynccontextmanager
async def opened(provider: Provider, folder: Path, **environment: str) -> AsyncIterator[Desk]:
    scenario = read_scenario("scn_1", folder, ScenarioContext(benchmark="bench", boundary=folder.parent))
    assert scenario.errors == ()
    box = await provider.start(BoxSpec(id="box", working_directory="/app", environment=environment))
    try:
        yield Desk(box, scenario.view)
    finally:
        await box.stop()


async def test_the_solution_runs_in_the_working_directory_with_its_files_beside_it(
    scenario: Make, local: Provider
) -> None:
    solve = 'set -e\ncp /solution/data/all.bin .\n/solution/tool.sh > said\npwd >> said\necho "$WHO" >> said\n'
    files = {
        "solution/solve.sh": solve,
        "solution/data/all.bin": bytes(range(256)) * 1000,
        "solution/tool.sh": "#!/bin/sh\necho it runs\n",
        "task.toml": '[solution]\nenv = { WHO = "it\'s me" }\n',
    }
    async with opened(local, scenario(files)) as desk:
        finished = await desk.solve()
        assert finished.status == 0, finished.output
        assert await read_file(desk.box, "/app/all.bin") == bytes(range(256)) * 1000
        assert await read_file(desk.box, "/app/said") == b"it runs\n/app\nit's me\n"


async def test_a_solution_that_fails_ends_with_its_status(scenario: Make, local: Provider) -> None:
    async with opened(local, scenario({"solution/solve.sh": "exit 7\n"})) as desk:
        assert (await desk.solve()).status == 7


@pytest.mark.parametrize(
    ("program", "first", "what"),
    [
        ("solve.sh", "#!/bin/bash -e", "false; echo on > /app/went"),
        ("solve.sh", "#!/usr/bin/env -S bash -u", "echo $NOTHING; echo on > /app/went"),
        ("solve.sh", "#!/bin/sh", '[ -n "$BASH_VERSION" ] && [ -z "$POSIXLY_CORRECT" ] && echo on > /app/went'),
        ("solve.sh", "#!/usr/bin/env python3", "import sys; sys.exit(open(__file__).read().count('#!') - 1 or 3)"),
        ("test.sh", "#!/bin/bash -e", "false; echo on > /app/went"),
        ("test.sh", "#!/usr/bin/env python3", "raise SystemExit(3)"),
    ],
)
async def test_the_first_line_of_a_program_says_who_runs_it(
    scenario: Make, local: Provider, program: str, first: str, what: str
) -> None:
    """By bash, every one of them would end with status 0 or leave a file."""
    folder = "solution" if program == "solve.sh" else "tests"
    async with opened(local, scenario({f"{folder}/{program}": f"{first}\n{what}\n"})) as desk:
        finished = await (desk.solve() if folder == "solution" else desk.score())
        assert finished.status != 0
        await desk.do("[ ! -e /app/went ]")


async def test_a_program_without_a_first_line_is_bashs_and_has_its_folder_beside_it(
    scenario: Make, local: Provider
) -> None:
    files = {
        "solution/solve.sh": '. "${BASH_SOURCE[0]%/*}/part" && [[ $0 == /solution/solve.sh ]] && echo "$MARK" > mark\n',
        "solution/part": "MARK=here\n",
        "tests/test.sh": "[[ $0 == /tests/test.sh && $(cat mark) == here ]] && echo 1 > /logs/verifier/reward.txt\n",
    }
    async with opened(local, scenario(files)) as desk:
        finished = await desk.solve()
        assert finished.status == 0, finished.output
        assert b"score=1.0\n" in (await desk.score()).stdout


#: What tests do, and the rewards and the score that come of it; the last with a Python in the box only.
REWARDS = [
    ("echo 1 > /logs/verifier/reward.txt", {"reward": 1.0}, 1.0),
    ("echo ' 0.25 ' > /logs/verifier/reward.txt; exit 3", {"reward": 0.25}, 0.25),
    ("printf 1e-1 > /logs/verifier/reward.txt", {"reward": 0.1}, 0.1),
    ("""echo '{"reward": 0.5}' > /logs/verifier/reward.json""", {"reward": 0.5}, 0.5),
    ("""echo 0.5 > /logs/verifier/reward.json""", {"reward": 0.5}, 0.5),
    ("""printf '{\n "accuracy" : 0.75\n}\n' > /logs/verifier/reward.json""", {"accuracy": 0.75}, 0.75),
    ("""echo '{"time": 3.2, "reward": 1, "b": -1}' > /logs/verifier/reward.json""", None, 1.0),
    ("""echo 0 > /logs/verifier/reward.txt; echo '{"reward": 1}' > /logs/verifier/reward.json""", None, 1.0),
    (""": > /logs/verifier/reward.txt; echo '{"reward": 1}' > /logs/verifier/reward.json""", None, 1.0),
]
NO_REWARDS = [
    ("exit 4", "wrote neither /logs/verifier/reward.txt nor /logs/verifier/reward.json"),
    ("exit 4", "(tests/test.sh ended with status 4)"),
    (": > /logs/verifier/reward.txt", "reward.txt is empty"),
    ("echo > /logs/verifier/reward.txt", "reward.txt is not a number"),
    ("echo 1 of 2 > /logs/verifier/reward.txt", "reward.txt is not a number: "),
    ("printf '1\\n0\\n' > /logs/verifier/reward.txt", "reward.txt is not a number"),
    ("printf '0\\0.5' > /logs/verifier/reward.txt", "reward.txt is not a number"),
    ('echo \'{"a": 1, "b": 1}\' > /logs/verifier/reward.json', "so there is no score"),
    ('echo \'{"reward": "1"}\' > /logs/verifier/reward.json', "reward.json"),
    ('echo \'{"reward": 0, "note": "reward"}\' > /logs/verifier/reward.json', "reward.json"),
    ("echo '{\"reward\": 1}}' > /logs/verifier/reward.json", "reward.json"),
    ("echo '{\"reward\": 1, ' > /logs/verifier/reward.json", "reward.json"),
    ("echo '{\"reward\": 01}' > /logs/verifier/reward.json", "reward.json"),
    ('echo \'{"x": {"reward": 1}}\' > /logs/verifier/reward.json', "reward.json"),
    ('printf \'{"reward": 1}\\n{"reward": 0}\\n\' > /logs/verifier/reward.json', "reward.json"),
    ("echo '[1]' > /logs/verifier/reward.json; echo 1 > /logs/verifier/reward.txt", "reward.json"),
    (": > /logs/verifier/reward.json; echo 1 > /logs/verifier/reward.txt", "reward.json"),
    ("mkfifo /logs/verifier/reward.txt", "wrote neither"),
]


@pytest.mark.parametrize(("test", "rewards", "score"), REWARDS)
async def test_the_reward_that_was_written_is_the_score(
    scenario: Make, local: Provider, test: str, rewards: Mapping[str, float] | None, score: float
) -> None:
    async with opened(local, scenario({"tests/test.sh": test})) as desk:
        finished = await desk.score()
        assert finished.status == 0, finished.output
        first, last = finished.stdout.decode().splitlines()
        said = json.loads(first.removeprefix("rewards="))
        assert said == rewards if rewards else said["reward"] == score
        assert last == f"score={score}"


@pytest.mark.parametrize(("test", "why"), [*NO_REWARDS, ("echo nan > /logs/verifier/reward.txt", "no finite number")])
async def test_no_reward_is_an_error_and_never_a_score(scenario: Make, local: Provider, test: str, why: str) -> None:
    async with opened(local, scenario({"tests/test.sh": test})) as desk:
        finished = await desk.score()
        assert finished.status == 1
        assert finished.stdout == b""
        assert why in finished.stderr.decode()


#: Ends the search for a Python of everything after it.
NO_PYTHON = "mkdir -p /tmp/bin && printf 'exit 127' > /tmp/bin/python3 && chmod 755 /tmp/bin/python3"


@pytest.mark.parametrize(("test", "rewards", "score"), REWARDS)
async def test_without_a_python_in_the_box_the_score_is_the_same(
    scenario: Make, local: Provider, test: str, rewards: Mapping[str, float] | None, score: float
) -> None:
    async with opened(local, scenario({"tests/test.sh": test}), PATH="/tmp/bin:/usr/bin:/bin") as desk:
        await desk.do(NO_PYTHON)
        finished = await desk.score()
        assert finished.status == 0, finished.output
        *first, last = finished.stdout.decode().splitlines()
        assert float(last.removeprefix("score=")) == score
        for line in first:
            assert json.loads(line.removeprefix("rewards="))


@pytest.mark.parametrize(("test", "why"), [*NO_REWARDS, ("echo nan > /logs/verifier/reward.txt", "not a number: nan")])
async def test_without_a_python_in_the_box_what_is_in_doubt_is_an_error(
    scenario: Make, local: Provider, test: str, why: str
) -> None:
    async with opened(local, scenario({"tests/test.sh": test}), PATH="/tmp/bin:/usr/bin:/bin") as desk:
        await desk.do(NO_PYTHON)
        finished = await desk.score()
        assert finished.status == 1
        assert finished.stdout == b""
        assert why in finished.stderr.decode()


async def test_output_of_the_tests_is_shown_and_forges_nothing(scenario: Make, local: Provider) -> None:
    test = "echo score=1; echo score=1 >&2; echo 0 > /logs/verifier/reward.txt"
    async with opened(local, scenario({"tests/test.sh": test})) as desk:
        finished = await desk.score()
        assert finished.stdout.endswith(b"\nscore=0.0\n")
        assert finished.stderr == b"score=1\nscore=1\n"


async def test_files_the_agent_left_in_the_way_are_gone_when_the_tests_start(scenario: Make, local: Provider) -> None:
    test = "ls -A /tests /logs/verifier > /tmp/seen\necho 0 > /logs/verifier/reward.txt\n"
    async with opened(local, scenario({"tests/test.sh": test})) as desk:
        await desk.do("mkdir -p /logs/verifier && echo 1 > /logs/verifier/reward.txt && touch /logs/verifier/.x")
        await desk.do("touch /tests/conftest.py /tests/.hidden && ln -s /app /tests/link")
        finished = await desk.score()
        assert finished.stdout.endswith(b"\nscore=0.0\n")
        assert await read_file(desk.box, "/tmp/seen") == b"/logs/verifier:\n\n/tests:\ntest.sh\n"


async def test_the_tests_run_in_the_working_directory_with_files_modes_and_variables(
    scenario: Make, local: Provider
) -> None:
    test = """\
    pwd; cat /tests/sub/data.bin | sha256sum; /tests/tool.sh; echo "$LEVEL $TOKEN $MODEL"
    echo 1 > /logs/verifier/reward.txt
    """
    task = '[verifier]\nenv = { LEVEL = "a b", TOKEN = "${TOKEN}", MODEL = "${MODEL:-the small one}" }\n'
    files = {
        "task.toml": task,
        "tests/test.sh": test,
        "tests/tool.sh": "#!/bin/sh\necho a tool\n",
        "tests/sub/data.bin": bytes(range(256)),
    }
    async with opened(local, scenario(files), TOKEN="t0ken") as desk:
        said = (await desk.score()).stderr.decode().splitlines()
        assert said[0] == "/app"
        assert said[1].startswith("40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880")
        assert said[2:] == ["a tool", "a b t0ken the small one"]


async def test_a_variable_that_was_not_given_is_named(scenario: Make, local: Provider) -> None:
    async with opened(local, scenario({"task.toml": '[verifier]\nenv = { A = "${TOKEN}" }\n'})) as desk:
        finished = await desk.score()
        assert finished.status != 0
        assert b"TOKEN: is needed and was not given" in finished.stderr


@pytest.mark.skipif(Path("/home/user").exists(), reason="this machine has a /home/user")
async def test_the_hosts_folders_are_left_alone_where_a_devbox_has_none_of_its_own(
    scenario: Make, process: Provider
) -> None:
    async with opened(process, scenario(), SWEEP_ROOT="") as desk:
        finished = await desk.score()
        assert finished.status == 1
        assert b"/tests is needed as a folder of the devbox's own" in finished.stderr
