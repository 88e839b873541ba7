"""Bodies of requests, with the wire's spelling.

Checks of shape only: what a value means is judged where it is used, so that a scoring contract or launch parameters
are refused with the same words wherever they come from.
"""

from typing import Any, ClassVar

from pydantic import Field

from orchestrator.service.devboxes.requests import MAX_KEEP_ALIVE_S
from orchestrator.service.records import RunProfile
from orchestrator.service.runs.start_request import StartRequest
from orchestrator.service.serialization import MAX_RICH_BODY, Body, Ids, Metadata, Title


class BenchmarkBody(Body):
    """To create or update a benchmark."""

    limit: ClassVar[int] = MAX_RICH_BODY

    name: Title | None = None
    attribution: str | None = None
    description: str | None = None
    metadata: Metadata | None = None
    required_environment_variables: list[str] | None = None
    required_secret_names: list[str] | None = None
    scenario_ids: Ids | None = None


class BenchmarkScenariosBody(Body):
    """To change which scenarios a benchmark has."""

    limit: ClassVar[int] = MAX_RICH_BODY

    scenarios_to_add: Ids | None = None
    scenarios_to_remove: Ids | None = None


class InputContextBody(Body):
    problem_statement: str | None = None
    additional_context: Any = None


class ScoringContractBody(Body):
    scoring_function_parameters: list[dict[str, Any]] | None = None


class EnvironmentBody(Body):
    blueprint_id: str | None = None
    snapshot_id: str | None = None
    working_directory: str | None = None
    launch_parameters: dict[str, Any] | None = None


class ScenarioBody(Body):
    """To create or update a scenario."""

    limit: ClassVar[int] = MAX_RICH_BODY

    name: Title | None = None
    input_context: InputContextBody | None = None
    scoring_contract: ScoringContractBody | None = None
    environment_parameters: EnvironmentBody | None = None
    metadata: Metadata | None = None
    reference_output: str | None = None
    required_environment_variables: list[str] | None = None
    required_secret_names: list[str] | None = None
    scorer_timeout_sec: int | None = Field(default=None, le=MAX_KEEP_ALIVE_S)
    validation_type: str | None = None


class ScorerBody(Body):
    """To create or update a custom scorer."""

    limit: ClassVar[int] = MAX_RICH_BODY

    type: Title | None = None
    bash_script: str | None = None


class NetworkPolicyBody(Body):
    """To create or update a network policy."""

    name: Title | None = None
    description: str | None = None
    allow_all: bool | None = None
    allowed_hostnames: list[str] | None = None
    allowed_cidrs: list[Any] | None = None
    allow_agent_gateway: bool | None = None
    allow_devbox_to_devbox: bool | None = None
    allow_mcp_gateway: bool | None = None
    allow_runloop_mirrors: bool | None = None


class RunProfileBody(Body):
    env_vars: dict[str, str] | None = Field(default=None, alias="envVars")
    launch_parameters: dict[str, Any] | None = Field(default=None, alias="launchParameters")
    mounts: list[dict[str, Any]] | None = None
    purpose: str | None = None
    secrets: dict[str, str] | None = None

    def profile(self) -> RunProfile:
        """Make the record of it; a launch parameter sent as null counts as not sent."""
        return RunProfile(
            environment=self.env_vars or {},
            secrets=self.secrets or {},
            launch_parameters={k: v for k, v in (self.launch_parameters or {}).items() if v is not None},
            mounts=tuple(self.mounts or ()),
            purpose=self.purpose,
        )


class _StartBody(Body):
    limit: ClassVar[int] = MAX_RICH_BODY

    metadata: Metadata | None = None
    run_name: Title | None = None
    run_profile: RunProfileBody | None = Field(default=None, alias="runProfile")

    def request_for(self, definition_id: str, benchmark_run_id: str | None = None) -> StartRequest:
        return StartRequest(
            definition_id=definition_id,
            name=self.run_name,
            metadata=self.metadata or {},
            profile=(self.run_profile or RunProfileBody()).profile(),
            benchmark_run_id=benchmark_run_id or None,
        )


class StartBenchmarkRunBody(_StartBody):
    benchmark_id: str

    def start_request(self) -> StartRequest:
        return self.request_for(self.benchmark_id)


class StartScenarioRunBody(_StartBody):
    scenario_id: str
    benchmark_run_id: str | None = None

    def start_request(self) -> StartRequest:
        return self.request_for(self.scenario_id, self.benchmark_run_id)


class ClientBody(Body):
    """A client of ours: an id that it chose for itself, and the sweep that it is at work on, if any."""

    client: str = Field(default="", max_length=200)
    sweep: str = Field(default="", max_length=200)
