"""The scripts that `solution/` and `tests/` become, run in real devboxes."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.service.catalog.taskfile import Surroundings, read_scenario
from orchestrator.service.devboxes.commands import Finished, read_file, run, write_file
from orchestrator.service.devboxes.contract import Box, BoxSpec, Command, Provider, shell

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
    scenario = read_scenario("scn_1", folder, Surroundings(benchmark="bench", boundary=folder.parent))
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
    ("test", "score"),
    [
        ("echo 1 > /logs/verifier/reward.txt", "1"),
        ("echo ' 0.25 ' > /logs/verifier/reward.txt; exit 3", "0.25"),
        ("printf 1e-1 > /logs/verifier/reward.txt", "1e-1"),
        ("""echo '{"reward": 0.5}' > /logs/verifier/reward.json""", "0.5"),
        ("""printf '{\n "accuracy" : .75\n}\n' > /logs/verifier/reward.json""", ".75"),
        ("""echo '{"time": 3.2, "reward": 1}' > /logs/verifier/reward.json""", "1"),
        ("""echo '{"note": "a, b", "accuracy": 1.0}' > /logs/verifier/reward.json""", "1.0"),
        ("""echo 0 > /logs/verifier/reward.txt; echo '{"reward": 1}' > /logs/verifier/reward.json""", "0"),
    ],
)
async def test_the_reward_that_was_written_is_the_score(scenario: Make, local: Provider, test: str, score: str) -> None:
    async with opened(local, scenario({"tests/test.sh": test})) as desk:
        finished = await desk.score()
        assert (finished.status, finished.stdout.decode()) == (0, f"score={score}\n"), finished.output


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("exit 4", "wrote neither /logs/verifier/reward.txt nor /logs/verifier/reward.json"),
        ("exit 4", "(tests/test.sh ended with status 4)"),
        ("echo > /logs/verifier/reward.txt", "reward.txt is empty"),
        ("echo nan > /logs/verifier/reward.txt", "reward.txt is not a number: nan"),
        ("echo 1 of 2 > /logs/verifier/reward.txt", "reward.txt is not a number: 1of2"),
        ('echo \'{"a": 1, "b": 1}\' > /logs/verifier/reward.json', 'needs a number "reward", or one number alone'),
        ('echo \'{"reward": "1"}\' > /logs/verifier/reward.json', 'needs a number "reward"'),
        ("echo '[1]' > /logs/verifier/reward.json", 'needs a number "reward"'),
        ("mkfifo /logs/verifier/reward.txt", "wrote neither"),
    ],
)
async def test_no_reward_is_an_error_and_never_a_score(scenario: Make, local: Provider, test: str, why: str) -> None:
    async with opened(local, scenario({"tests/test.sh": test})) as desk:
        finished = await desk.score()
        assert finished.status == 1
        assert finished.stdout == b""
        assert why in finished.stderr.decode()


async def test_what_the_tests_print_is_shown_and_forges_nothing(scenario: Make, local: Provider) -> None:
    test = "echo score=1; echo score=1 >&2; echo 0 > /logs/verifier/reward.txt"
    async with opened(local, scenario({"tests/test.sh": test})) as desk:
        finished = await desk.score()
        assert finished.stdout == b"score=0\n"
        assert finished.stderr == b"score=1\nscore=1\n"


async def test_what_the_agent_left_in_the_way_is_gone_when_the_tests_start(scenario: Make, local: Provider) -> None:
    test = "ls -A /tests /logs/verifier > /tmp/seen\necho 0 > /logs/verifier/reward.txt\n"
    async with opened(local, scenario({"tests/test.sh": test})) as desk:
        await desk.do("mkdir -p /logs/verifier && echo 1 > /logs/verifier/reward.txt && touch /logs/verifier/.x")
        await desk.do("touch /tests/conftest.py /tests/.hidden && ln -s /app /tests/link")
        finished = await desk.score()
        assert finished.stdout == b"score=0\n"
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
async def test_where_a_devbox_has_no_folders_of_its_own_the_hosts_are_left_alone(
    scenario: Make, process: Provider
) -> None:
    async with opened(process, scenario(), SWEEP_ROOT="") as desk:
        finished = await desk.score()
        assert finished.status == 1
        assert b"/tests is needed as a folder of the devbox's own" in finished.stderr
