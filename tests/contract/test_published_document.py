"""The published OpenAPI document against the served service: what it can make up for our routes is asked for.

The document is data of somebody else and no part of this project: where it lies beside it, these tests run.
"""

import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import httpx
import pytest
import requests
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from orchestrator.core.protocol import Isolation
from orchestrator.service.server import serve

Operation: TypeAlias = "APIOperation[Any, Any, Any, Any]"
Case: TypeAlias = "schemathesis.Case[Any]"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("published-document")]

PROJECT: Final = Path(__file__).parents[2]
#: How many requests are made up for each route, of those that the document permits and of those that it does not.
EXAMPLES: Final = 15
EXAMPLES_UNSERVED: Final = 2
#: What is answered 404 or 405 in words, by why: operations by their id, or all below a path.
UNSERVED: Final[Mapping[str, tuple[str, ...]]] = {
    "no account, and nothing of one": ("/v1/apikeys", "/v1/restricted_keys", "/v1/agents", "/v1/axons"),
    "no servers beside a devbox": ("/v1/gateway-configs", "/v1/mcp-configs", "/pty"),
    "`sweep` itself is what runs a job": ("/v1/benchmark_jobs",),
    "nothing is found out about a repository": ("createBlueprintFromInspection",),
    "secrets are the owner's; they are listed and no more": (
        "createSecret",
        "getSecret",
        "updateSecret",
        "deleteSecret",
    ),
    "no provider here can do it": (
        "createDevboxSshKey",
        "createDevboxPtyTunnel",
        "enableDevboxTunnel",
        "removeDevboxTunnel",
        "getDevboxResourceUsage",
    ),
    "no published client ever asked for it": (
        "tailDevboxLogs",
        "archiveBenchmark",
        "unarchiveBenchmark",
        "downloadBenchmarkRunLogs",
        "downloadBenchmarkRunLogsDeprecated",
        "getBenchmarkMetadataKeys",
        "getBenchmarkMetadataValues",
        "getDevboxMetadataKeys",
        "getDevboxMetadataValues",
        "getScenarioMetadataKeys",
        "getScenarioMetadataValues",
        "/v1/blueprints/metadata",
        "/v1/blueprints/public",
        "/v1/objects/metadata",
        "/v1/devboxes/disk_snapshots/metadata",
        "/v1/devboxes/disk_snapshots/public",
        "listPublicSnapshots",
    ),
}
#: These end what the others need, so they come last.
ENDING: Final = (
    "suspendDevbox",
    "resumeDevbox",
    "killAsyncExecution",
    "archiveScenario",
    "unarchiveScenario",
    "completeScenarioRun",
    "cancelScenarioRun",
    "completeBenchmarkRun",
    "completeBenchmarkRunDeprecated",
    "cancelBenchmarkRun",
    "cancelBenchmarkRunDeprecated",
    "shutdownDevbox",
    "deleteNetworkPolicy",
    "deleteBlueprint",
    "deleteObject",
    "deleteSnapshot",
)
#: What our views have and the document's do not, by view.
ADDED: Final[Mapping[str, Mapping[str, str]]] = {
    "BenchmarkRunView": {
        "pending_scenarios": "what is owed, as clients before 0.40 read it",
        "scenario_runs": "the results, as clients before 1.0 read them",
    },
    "ScenarioRunView": {
        "failure_reason": "why it failed or timed out",
        "scoring": "where its scorers ran, and what its agent left",
    },
    "ScoringFunctionResultView": {"seconds": "how long it took"},
    "DevboxView": {
        "failure_message": "the failure in words",
        "isolation": "where it came from",
        "enforced_limits": "what the kernel really holds it to",
        "network": "what it reaches, and how",
        "home": "its user's folder, as commands in it see it",
        "working_directory": "where commands start",
    },
    "DevboxStateTransition": {"failure_reason": "younger than the document; the client has it"},
    "EgressRulesView": {
        "allow_runloop_mirrors": "younger than the document; the client has it",
        "allowed_cidrs": "younger than the document; the client has it",
    },
}
#: A status of devboxes that the client knows and the document does not.
ADDED_STATUS: Final = "queued"
#: The kind of thing that `{id}` stands for, by the longest path that fits.
KINDS: Final[Mapping[str, str]] = {
    "/v1/benchmarks": "benchmark",
    "/v1/benchmarks/runs": "benchmark_run",
    "/v1/benchmark_runs": "benchmark_run",
    "/v1/scenarios": "scenario",
    "/v1/scenarios/runs": "scenario_run",
    "/v1/scenarios/scorers": "scorer",
    "/v1/devboxes": "devbox",
    "/v1/devboxes/disk_snapshots": "snapshot",
    "/v1/network-policies": "policy",
    "/v1/blueprints": "blueprint",
    "/v1/objects": "object",
}
SCORER: Final = {"type": "command_scorer", "command": "test -f done"}
CONTRACT: Final = {"scoring_function_parameters": [{"name": "it", "weight": 1.0, "scorer": SCORER}]}


@dataclass(slots=True)
class Found:
    """Results of all requests."""

    #: How often each operation was answered with each status.
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    #: What is neither as documented nor a failure in words, by operation.
    wrong: dict[str, list[str]] = field(default_factory=dict)
    #: Every key of a JSON reply, and every status of a devbox.
    words: set[str] = field(default_factory=set)


class Asker:
    """Asks for things by hand, and has them made that the document's requests are about."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.headers = {"authorization": f"Bearer {token}"}

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any = None) -> Any:
        return self._ask("POST", path, body)

    def things(self) -> dict[str, list[str]]:
        """Ids of things that are there, by kind: devboxes alive and dead, runs of every outcome."""
        about = {"input_context": {"problem_statement": "Make done."}, "scoring_contract": CONTRACT}
        scenario = self.post("scenarios", {"name": "good", **about})["id"]
        broken = {**about, "environment_parameters": {"blueprint_id": "nobody's"}}
        hopeless = self.post("scenarios", {"name": "bad", **broken})["id"]
        benchmark = self.post("benchmarks", {"name": "both", "scenario_ids": [scenario, hopeless]})["id"]
        of_it, empty = (self.post("benchmarks/start_run", {"benchmark_id": benchmark})["id"] for _ in range(2))
        runs = [
            self.post("scenarios/start_run", {"scenario_id": each, "benchmark_run_id": of_it})
            for each in (scenario, scenario, hopeless)
        ]
        for run in runs:
            wait = {"statuses": ["running", "failure"], "timeout_seconds": 30}
            self.post(f"devboxes/{run['devbox_id']}/wait_for_status", wait)
        scored = f"scenarios/runs/{runs[0]['id']}"
        self.post(f"{scored}/score")
        while self.get(scored)["state"] == "scoring":
            pass
        devbox = self.post("devboxes/create_and_await_running", {})["id"]
        command = {"command": "echo out; echo err >&2", "command_id": "one"}
        done = self.post(f"devboxes/{devbox}/execute", command)["execution_id"]
        listening = self.post(f"devboxes/{devbox}/execute_async", {"command": "cat", "attach_stdin": True})
        self.post(f"devboxes/{devbox}/write_file_contents", {"file_path": "known", "contents": "text"})
        scorer = self.post("scenarios/scorers", {"type": "mine", "bash_script": "echo score=1.0"})["id"]
        policy = self.post("network-policies", {"name": "mine", "allowed_hostnames": ["a.example"]})["id"]
        blueprint = self.post("blueprints", {"name": "mine"})["id"]
        objects = [self.post("objects", {"name": "mine", "content_type": "text"}) for _ in range(2)]
        for each in objects:
            assert httpx.put(each["upload_url"], content=b"text", trust_env=False).status_code == 200
        self.post(f"objects/{objects[1]['id']}/complete")
        snapshot = self.post(f"devboxes/{devbox}/snapshot_disk", {"name": "mine"})["id"]
        return {
            "benchmark": [benchmark],
            "benchmark_run": [of_it, empty],
            "scenario": [scenario],
            "scenario_run": [run["id"] for run in runs],
            "scorer": [scorer],
            "devbox": [devbox],
            "execution": [done, listening["execution_id"]],
            "policy": [policy],
            "blueprint": [blueprint],
            "object": [each["id"] for each in objects],
            "snapshot": [snapshot],
        }

    def _ask(self, method: str, path: str, body: Any) -> Any:
        with httpx.Client(base_url=f"{self.url}/v1/", headers=self.headers, timeout=60, trust_env=False) as http:
            answer = http.request(method, path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def document() -> Path:
    """The document's path: in a folder beside the project, or as the environment says."""
    beside = [Path(os.environ["RUNLOOP_OPENAPI"])] if "RUNLOOP_OPENAPI" in os.environ else []
    beside += PROJECT.parent.glob("*/spec/runloop-openapi.yml")
    if not beside:
        pytest.skip("there is no runloop-openapi.yml in a folder spec/ beside the project; RUNLOOP_OPENAPI names one")
    return beside[0]


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return dict(schemathesis.openapi.from_path(document()).raw_schema)


@pytest.fixture(scope="module")
def found(described: dict[str, Any], sandboxes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """Every operation, asked for in every way."""
    state = tmp_path_factory.mktemp("state")
    load_all_checks()
    with start_blocking_portal() as portal:
        future, address = portal.start_task(partial(serve, "127.0.0.1", 0, None, state, [], Isolation.LOCAL, None))
        asker = Asker(address.url, address.token)
        permit(described)
        aim(described, asker.things())
        yield ask_all(schemathesis.openapi.from_dict(described), asker)
        future.cancel()


def permit(described: dict[str, Any]) -> None:
    """Make the known differences part of the document."""
    schemas = described["components"]["schemas"]
    for view, properties in ADDED.items():
        schemas[view]["properties"] |= {key: {} for key in properties}
    schemas["DevboxViewStatus"]["enum"].append(ADDED_STATUS)
    # The time of a transition, which it takes for an object without any property.
    schemas["Number"] = {"type": "number"}
    for name in ("stdout", "stderr"):
        stream = f"/v1/devboxes/{{devbox_id}}/executions/{{execution_id}}/stream_{name}_updates"
        # It says application/json, and in the header beside it what is meant.
        described["paths"][stream]["get"]["responses"]["200"]["content"] = {"text/event-stream": {}}
    # A list of runs, and not the scenario that it says.
    runs = described["paths"]["/v1/scenarios/{id}/runs"]["get"]["responses"]["200"]["content"]["application/json"]
    runs["schema"] = {"$ref": "#/components/schemas/ScenarioRunListView"}


def aim(described: dict[str, Any], things: Mapping[str, list[str]]) -> None:
    """Have requests made up about things that are there, with commands that end and waits that are short."""
    for path, operations in described["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path" and (kind := kind_of(path, parameter["name"])):
                    ids = things[kind][:1] if path.endswith("/complete") else things[kind]
                    parameter["schema"] = {"type": "string", "enum": ids[-1:] if path.endswith("/cancel") else ids}
                if parameter["name"] == "limit":
                    parameter["schema"] |= {"minimum": 1, "maximum": 5000}
    wait = {"type": "number", "minimum": 0, "maximum": 0.1}
    certain: dict[str, Any] = {
        **{f"{kind}_id": {"type": "string", "enum": ids} for kind, ids in things.items()},
        **dict.fromkeys(("timeout_seconds", "optimistic_timeout"), wait),
        "command": {"type": "string", "enum": ["true", "echo out; echo err >&2", "exit 3"]},
        "scenario_ids": {"type": "array", "items": {"type": "string", "enum": things["scenario"]}},
        "file_path": {"type": "string", "enum": ["known", "new", "/etc/passwd", "/", "../../etc/passwd"]},
        "path": {"type": "string", "enum": ["known", "new", "/etc/passwd", "/", "../../etc/passwd"]},
        "statuses": {"type": "array", "minItems": 1, "items": {"type": "string", "enum": ["running", "completed"]}},
        "scorer_timeout_sec": {"type": "integer", "minimum": 1, "maximum": 1800},
        "scoring_contract": {"enum": [CONTRACT]},
        "environment_parameters": {"enum": [{}, {"working_directory": "/srv/mine"}]},
        "launch_parameters": {"enum": [{}, {"keep_alive_time_seconds": 300}]},
    }
    for name, schema in described["components"]["schemas"].items():
        if name.endswith(("Parameters", "Params", "Request", "Upload")):
            known = certain.keys() & schema.get("properties", {}).keys()
            schema["properties"] = schema.get("properties", {}) | {key: certain[key] for key in known}
            if "timeout_seconds" in known or "optimistic_timeout" in known:
                schema["required"] = [*known]


def kind_of(path: str, parameter: str) -> str | None:
    if parameter in {"devbox_id", "execution_id"}:
        return parameter.removesuffix("_id")
    fitting = [root for root in KINDS if path.startswith(f"{root}/")]
    return KINDS[max(fitting, key=len)] if fitting and parameter == "id" else None


def ask_all(schema: BaseSchema, asker: Asker) -> Found:
    found = Found()
    operations = {name_of(each): each for each in operations_of(schema)}
    with requests.Session() as session:
        session.trust_env = False
        session.headers.update(asker.headers)
        for name in sorted(operations, key=lambda name: (ENDING.index(name) + 1 if name in ENDING else 0, name)):
            found.statuses[name] = Counter()
            for mode in GenerationMode:
                ask(operations[name], mode, asker.url, session, found)
    return found


def operations_of(schema: BaseSchema) -> list[Operation]:
    results = list(schema.get_all_operations())
    understood = [result.ok() for result in results if isinstance(result, Ok)]
    assert len(understood) == len(results), "the document is read whole"
    return understood


def name_of(operation: "Operation") -> str:
    return str(operation.definition.raw["operationId"])


def ask(
    operation: "Operation",
    mode: GenerationMode,
    url: str,
    session: requests.Session,
    found: Found,
) -> None:
    name = name_of(operation)

    @settings(
        max_examples=EXAMPLES_UNSERVED if is_listed(name, operation.path) else EXAMPLES,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def once(case: "Case") -> None:
        if "command_id" in (body := case.body if isinstance(case.body, dict) else {}):
            body["command_id"] = uuid.uuid4().hex
        answer = case.call(base_url=url, session=session, timeout=60)
        found.statuses[name][answer.status_code] += 1
        if trouble := judged(case, answer):
            asked = case.as_curl_command()[:500]
            found.wrong.setdefault(name, []).append(f"{answer.status_code} {trouble[:1000]}\n{asked}")
        if answer.headers.get("content-type", [""])[0].startswith("application/json"):
            found.words |= words_of(answer.json())

    once()


def judged(case: "Case", answer: schemathesis.Response) -> str:
    """Faults of an answer; none if it is as documented, or refuses in words."""
    if answer.status_code >= 500:
        return answer.text
    if answer.status_code >= 400:
        try:
            body = answer.json()
        except ValueError:
            return f"a failure that is no JSON: {answer.text}"
        is_ours = body.keys() == {"message", "code"} and body["message"] and body["code"] == answer.status_code
        return "" if is_ours else f"a failure of another shape: {answer.text}"
    try:
        case.validate_response(answer, checks=[response_schema_conformance, content_type_conformance])
    except FailureGroup as failures:
        return "; ".join(str(failure) for failure in failures.exceptions)
    return ""


def words_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        said = {str(value["status"])} if "status" in value else set()
        return said.union(value, *(words_of(each) for each in value.values()))
    return set().union(*(words_of(each) for each in value)) if isinstance(value, list) else set()


def is_listed(operation: str, path: str) -> bool:
    return any(
        entry in (operation, path) or path.startswith(f"{entry}/") for entries in UNSERVED.values() for entry in entries
    )


def paths_of(described: Mapping[str, Any]) -> dict[str, str]:
    """The path of each operation, by its id."""
    return {each["operationId"]: path for path, each_way in described["paths"].items() for each in each_way.values()}


def test_every_answer_is_as_documented_or_a_refusal_in_words(found: Found) -> None:
    assert not found.wrong, "\n\n".join(f"{name}: {each[0]}" for name, each in found.wrong.items())
    assert sum(map(Counter.total, found.statuses.values())) > 1500, "they were asked for at all"


def test_every_operation_of_the_document_is_served_or_listed_as_not_served(
    found: Found, described: dict[str, Any]
) -> None:
    """A served one was answered with a result at least once, a listed one never."""
    paths = paths_of(described)
    served = {name for name, statuses in found.statuses.items() if statuses[200]}
    assert {name for name in paths if is_listed(name, paths[name])} == paths.keys() - served
    entries = {entry for entries in UNSERVED.values() for entry in entries}
    roots = {entry for entry in entries if any(path.startswith(entry) for path in paths.values())}
    assert entries - roots <= paths.keys(), "listed, but the document has no such thing"


def test_every_difference_that_is_listed_is_there(found: Found) -> None:
    listed = {key for properties in ADDED.values() for key in properties} | {ADDED_STATUS}
    assert listed - found.words == set()
