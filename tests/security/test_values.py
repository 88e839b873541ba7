"""Values that no client means, in every place of every body: each is refused in words, or taken and does no harm."""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import httpx
import orjson
import pytest

from orchestrator.common.address import Address
from orchestrator.core.protocol import Isolation
from orchestrator.service.http.app import MAX_MESSAGE

from .conftest import served

pytestmark = pytest.mark.anyio
Serving = Callable[..., AbstractAsyncContextManager[tuple[Address, httpx.AsyncClient]]]

#: What no value in JSON can be, or none that could be kept.
IMPOSSIBLE: Final[Mapping[str, str]] = {
    "a lone surrogate": r'"\ud800"',
    "a lone surrogate as a key": r'{"\ud800": "x"}',
    "a whole number of 401 digits": "1" + "0" * 400,
    "a negative one": "-1" + "0" * 400,
    "not a number": "NaN",
    "infinity": "Infinity",
    "an overflow": "1e999",
    "nesting without end": "[" * 5000 + "]" * 5000,
    "nesting beyond what can be written again": '{"a":' * 200 + "1" + "}" * 200,
}
#: What could be meant somewhere, and mostly is not.
STRANGE: Final[Mapping[str, str]] = {
    "nul": r'"a\u0000b"',
    "nothing": '""',
    "upwards": '"../../../etc/passwd"',
    "an option": '"-rf"',
    "an escape": r'"\u001b[2J\u2028\ufeff\uffff"',
    "lines": r'"a\nb\r\n"',
    "very long": '"' + "x" * 200_000 + '"',
    "beyond 64 bits": "18446744073709551616",
    "a large float": "1e308",
    "below zero": "-1",
    "yes": "true",
    "a list": "[null, [], {}]",
    "an object": r'{"": "x", "a\u0000": "b", "C=D": "e"}',
}
MARK: Final = "@hostile@"
PROFILE: Final = {
    "envVars": {"A": "1"},
    "launchParameters": {
        "keep_alive_time_seconds": 60,
        "launch_commands": ["true"],
        "resource_size_request": "SMALL",
        "after_idle": {"idle_time_seconds": 60, "on_idle": "shutdown"},
    },
    "mounts": [{"type": "file_mount", "target": "a", "content": "x"}],
    "purpose": "p",
    "secrets": {},
}
SCORERS: Final[tuple[dict[str, Any], ...]] = (
    {"type": "command_scorer", "command": "true"},
    {"type": "bash_script_scorer", "bash_script": "echo score=1.0"},
    {"type": "python_script_scorer", "python_script": "print(1)", "requirements_contents": "a"},
    {"type": "test_based_scorer", "test_command": "true", "test_files": [{"file_path": "a", "file_contents": "b"}]},
    {"type": "ast_grep_scorer", "pattern": "x", "search_directory": ".", "lang": "python"},
    {"type": "custom_scorer", "custom_scorer_type": "mine", "scorer_params": {"a": 1}},
)
BENCHMARK: Final = {
    "name": "n",
    "attribution": "a",
    "description": "d",
    "metadata": {"a": "b"},
    "required_environment_variables": ["A"],
    "required_secret_names": ["B"],
}
POLICY: Final = {"name": "n", "description": "d", "allow_all": False, "allowed_hostnames": ["a.example"]}


def scenario(scorer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": "n",
        "input_context": {"problem_statement": "p", "additional_context": {"a": 1}},
        "scoring_contract": {"scoring_function_parameters": [{"name": "it", "weight": 1.0, "scorer": scorer}]},
        "environment_parameters": {"working_directory": "/srv/a", "launch_parameters": PROFILE["launchParameters"]},
        "metadata": {"a": "b"},
        "reference_output": "r",
        "scorer_timeout_sec": 10,
        "validation_type": "FORWARD",
    }


@pytest.fixture
async def client(serving: Serving, sandboxes: None) -> AsyncIterator[httpx.AsyncClient]:
    """Devboxes are sandboxes: some of what they are told is obeyed."""
    async with serving(Isolation.LOCAL) as (_, client):
        yield client


async def post(client: httpx.AsyncClient, path: str, body: Any) -> Any:
    answer = await client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def bodies(client: httpx.AsyncClient) -> dict[str, list[dict[str, Any]]]:
    """Good bodies for every route that reads one, about things that are there."""
    scorer = (await post(client, "scenarios/scorers", {"type": "mine", "bash_script": "echo score=1.0"}))["id"]
    known = (await post(client, "scenarios", scenario(SCORERS[0])))["id"]
    benchmark = (await post(client, "benchmarks", {"name": "n", "scenario_ids": [known]}))["id"]
    devbox = (await post(client, "devboxes/create_and_await_running", {}))["id"]
    policy = (await post(client, "network-policies", POLICY))["id"]
    command = {"command": "cat", "attach_stdin": True}
    execution = (await post(client, f"devboxes/{devbox}/execute_async", command))["execution_id"]
    wait = {"statuses": ["running"], "timeout_seconds": 0.01}
    at, it = f"devboxes/{devbox}", f"devboxes/{devbox}/executions/{execution}"
    return {
        "benchmarks": [{**BENCHMARK, "scenario_ids": [known]}],
        f"benchmarks/{benchmark}": [{**BENCHMARK, "scenario_ids": [known]}],
        f"benchmarks/{benchmark}/scenarios": [{"scenarios_to_add": [known], "scenarios_to_remove": ["x"]}],
        "benchmarks/start_run": [
            {"benchmark_id": benchmark, "run_name": "r", "metadata": {"a": "b"}, "runProfile": PROFILE}
        ],
        "scenarios": [scenario(each) for each in SCORERS],
        f"scenarios/{known}": [scenario(SCORERS[0])],
        "scenarios/start_run": [{"scenario_id": known, "benchmark_run_id": "bmr_1", "runProfile": PROFILE}],
        "scenarios/scorers": [{"type": "other", "bash_script": "x"}],
        f"scenarios/scorers/{scorer}": [{"type": "mine", "bash_script": "x"}],
        # With a blueprint that is not there, so that what is taken boots nothing.
        "devboxes": [
            {
                "name": "n",
                "metadata": {"a": "b"},
                "environment_variables": {"A": "b"},
                "launch_parameters": PROFILE["launchParameters"],
                "file_mounts": {"a": "y"},
                "mounts": PROFILE["mounts"],
                "blueprint_id": "x",
            }
        ],
        at: [{"name": "n", "metadata": {"a": "b"}}],
        f"{at}/wait_for_status": [wait],
        f"{at}/execute": [{"command": "true", "command_id": "c", "optimistic_timeout": 0, "shell_name": "s"}],
        f"{at}/execute_async": [{"command": "true", "shell_name": "s", "attach_stdin": False}],
        f"{at}/execute_sync": [{"command": "true", "shell_name": "s", "attach_stdin": False}],
        f"{at}/read_file_contents": [{"file_path": "a"}],
        f"{at}/write_file_contents": [{"file_path": "a", "contents": "y"}],
        f"{at}/download_file": [{"path": "a"}],
        f"{it}/wait_for_status": [wait],
        f"{it}/send_std_in": [{"text": "x"}, {"signal": "INTERRUPT"}],
        "network-policies": [POLICY],
        f"network-policies/{policy}": [POLICY],
        "sweep/heartbeat": [{"client": "c"}],
        "sweep/goodbye": [{"client": "c"}],
    }


def places(value: Any, so_far: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places for another value: the whole, each value of an object, each item of a list."""
    yield so_far
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from places(each, (*so_far, key))


def marked(value: Any, place: tuple[Any, ...]) -> Any:
    if not place:
        return MARK
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    changed = {key: marked(each, place[1:]) if key == place[0] else each for key, each in inside}
    return changed if isinstance(value, dict) else list(changed.values())


async def ask(client: httpx.AsyncClient, path: str, body: Any, place: tuple[Any, ...], value: str) -> httpx.Response:
    text = orjson.dumps(marked(body, place)).decode().replace(f'"{MARK}"', value)
    # A body of another request is not this one's because it carries the same command's id.
    text = text.replace('"command_id":"c"', f'"command_id":"{uuid.uuid4().hex}"')
    return await client.post(f"/v1/{path}", content=text.encode(), headers={"content-type": "application/json"})


def is_refusal(answer: httpx.Response) -> bool:
    """A failure of the agreed form that is the client's, and not longer than anybody reads."""
    if not 400 <= answer.status_code < 500:
        return False
    body = answer.json()
    return body.keys() == {"message", "code"} and 0 < len(body["message"]) <= MAX_MESSAGE + 2


@pytest.mark.slow
async def test_impossible_values_are_refused_in_every_field(client: httpx.AsyncClient) -> None:
    for path, known in (await bodies(client)).items():
        for body in known:
            for place in places(body):
                for name, value in IMPOSSIBLE.items():
                    answer = await ask(client, path, body, place, value)
                    assert is_refusal(answer), f"{path} {place}: {name}: {answer.status_code} {answer.text[:500]}"
    assert (await client.get("/v1/devboxes")).status_code == 200


@pytest.mark.slow
async def test_strange_values_are_refused_in_words_or_do_no_harm(client: httpx.AsyncClient) -> None:
    """Accepted values can be read again, and the service and the devbox work as before."""
    all_bodies = await bodies(client)
    for path, known in all_bodies.items():
        for body in known:
            for place in places(body):
                for name, value in STRANGE.items():
                    answer = await ask(client, path, body, place, value)
                    is_fine = answer.status_code == 200 or is_refusal(answer)
                    assert is_fine, f"{path} {place}: {name}: {answer.status_code} {answer.text[:500]}"
    for kind in ("benchmarks", "benchmark_runs", "scenarios", "scenarios/runs", "scenarios/scorers", "devboxes"):
        answer = await client.get(f"/v1/{kind}", params={"limit": 5000})
        assert answer.status_code == 200, f"{kind}: {answer.text[:500]}"
        assert isinstance(answer.json(), dict)
    (devbox,) = (path for path in all_bodies if path.startswith("devboxes/") and path.count("/") == 1)
    said = await post(client, f"{devbox}/execute", {"command": "echo well", "command_id": "last"})
    assert said["stdout"] == "well\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """A service that only refuses, and good bodies for it."""

    client: httpx.AsyncClient
    bodies: Mapping[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
async def sound(sandboxes: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sound]:
    async with served(tmp_path_factory.mktemp("values") / "state", Isolation.LOCAL) as (_, client):
        yield Sound(client=client, bodies=await bodies(client))


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("benchmarks", ("scenario_ids", 0)),
        ("benchmarks/start_run", ("benchmark_id",)),
        ("benchmarks/start_run", ("runProfile", "envVars", "A")),
        ("benchmarks/start_run", ("runProfile", "mounts", 0, "target")),
        ("benchmarks/start_run", ("runProfile", "launchParameters", "launch_commands", 0)),
        ("scenarios", ("environment_parameters", "working_directory")),
        ("scenarios", ("scoring_contract", "scoring_function_parameters", 0, "name")),
        ("scenarios/start_run", ("scenario_id",)),
        ("scenarios/start_run", ("benchmark_run_id",)),
        ("devboxes", ("environment_variables", "A")),
        ("devboxes", ("mounts", 0, "target")),
        ("devboxes", ("launch_parameters", "launch_commands", 0)),
    ],
)
async def test_resources_that_no_devbox_could_have_are_refused_before_there_is_one(
    sound: Sound, path: str, place: tuple[Any, ...]
) -> None:
    """Refused later, it would cost a devbox for each scenario of a night."""
    answer = await ask(sound.client, path, sound.bodies[path][0], place, STRANGE["nul"])
    assert is_refusal(answer), answer.text


@pytest.mark.parametrize("value", ["nul", "upwards"])
async def test_a_scenario_whose_folder_no_devbox_could_have_is_refused(sound: Sound, value: str) -> None:
    place = ("environment_parameters", "working_directory")
    answer = await ask(sound.client, "scenarios", scenario(SCORERS[0]), place, STRANGE[value])
    assert is_refusal(answer), answer.text


@pytest.mark.parametrize("path", ["nul", "nothing"])
async def test_a_file_is_not_put_where_no_file_can_be(sound: Sound, path: str) -> None:
    answer = await sound.client.post("/v1/devboxes", content=f'{{"file_mounts": {{{STRANGE[path]}: "x"}}}}')
    assert is_refusal(answer), answer.text


@pytest.mark.parametrize(
    "value", ["1" + "0" * 400, "-1", "NaN", "a\0b", "../..", "\ud800", "x" * 20_000, "\u202e", ","]
)
async def test_strange_words_in_a_query_are_refused_or_find_nothing(sound: Sound, value: str) -> None:
    (devbox,) = (path for path in sound.bodies if path.startswith("devboxes/") and path.count("/") == 1)
    (execution,) = (path.removesuffix("/send_std_in") for path in sound.bodies if path.endswith("/send_std_in"))
    questions = {
        **dict.fromkeys(("benchmarks", "scenarios"), ("limit", "starting_after", "search", "name", "benchmark_id")),
        **dict.fromkeys(
            ("benchmark_runs", "scenarios/runs"), ("limit", "starting_after", "state", "name", "benchmark_id")
        ),
        "devboxes": ("limit", "starting_after", "status"),
        "network-policies": ("id", "name", "limit", "starting_after"),
        "scenarios/scorers": ("limit", "search"),
        "secrets": ("limit",),
        f"{devbox}/logs": ("execution_id", "shell_name"),
        execution: ("last_n",),
        f"{execution}/stream_stdout_updates": ("offset",),
        "sweep/proof": ("nonce",),
    }
    word = value.encode(errors="surrogatepass")
    for path, names in questions.items():
        for name in names:
            url = f"/v1/{path}?{name}={quote(word)}"
            async with sound.client.stream("GET", url) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    assert is_refusal(answer), f"{url[:200]}: {answer.status_code} {answer.text[:500]}"
