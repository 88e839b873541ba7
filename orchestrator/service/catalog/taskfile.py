"""A scenario folder becomes a scenario: the wire's view of it, and the blueprint of its environment.

The folder is read as a whole or not at all, and says everything that is wrong with it at once. What forbids *building*
its environment here does not forbid reading it: the definition is right, and another provider may be able to.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orchestrator.service.catalog.blueprints import Blueprint, read_blueprint
from orchestrator.service.catalog.bundle import MAX_PACKED, pack, solution_script, tests_script
from orchestrator.service.catalog.folders import Listing, digest, listing
from orchestrator.service.catalog.problems import Problem, Report
from orchestrator.service.catalog.taskscorers import Scorers
from orchestrator.service.catalog.tasktoml import FILE, Task, read_task
from orchestrator.service.store import Document

_MAX_CORES: Final = 16
_MAX_MEMORY: Final = 64
_MAX_DISK: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a scenario folder is part of: its benchmark's name and folder, and the scorers registered there."""

    benchmark: str
    boundary: Path
    custom_scorers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A folder that was read. `view` is right only if `errors` is empty; `stamps` change when the folder does."""

    view: Document
    blueprint: Blueprint
    problems: tuple[Problem, ...]
    errors: tuple[Problem, ...]
    stamps: tuple[tuple[str | int, ...], ...]
    size: int


def read_scenario(identity: str, folder: Path, around: Surroundings, files: Listing | None = None) -> Scenario:
    """Read a scenario folder; `files` is what it contains, if that is known already. Raises OSError."""
    files = files or listing(folder, around.boundary)
    return _Reading(identity, folder, around, files).scenario()


class _Reading:
    """One reading of one folder; mistakes gather in `report`."""

    def __init__(self, identity: str, folder: Path, around: Surroundings, files: Listing) -> None:
        self._identity = identity
        self._folder = folder
        self._around = around
        self._files = files
        self._digests: dict[str, str] = {}
        self._report = Report()

    def scenario(self) -> Scenario:
        for path, why in self._files.faults:
            if not path.startswith("environment/"):
                self._report.error(path or self._folder.name, "", why)
        task = read_task(self._text(FILE) or "", self._report)
        statement = self._text("instruction.md")
        if statement is not None and not statement.strip():
            self._report.error("instruction.md", "", "is empty: agents would be told nothing")
        environment = self._files.below("environment")
        if not environment.nodes:
            self._report.warn("environment/", "", "has no files: the working directory starts empty")
        building = Report()
        blueprint = read_blueprint(task, environment, building, self._digests)
        view = self._view(task, statement or "", blueprint)
        return Scenario(
            view=view,
            blueprint=blueprint,
            problems=(*self._report.problems, *building.problems),
            errors=tuple(self._report.errors),
            stamps=self._files.stamps,
            size=self._files.size,
        )

    def _text(self, name: str) -> str | None:
        node = self._files.find(name)
        if node is None or node.kind != "file":
            self._report.error(name, "", "is missing: every scenario needs it")
            return None
        try:
            return node.source.read_bytes().decode()
        except UnicodeDecodeError as error:
            self._report.error(name, "", f"is not UTF-8 text: {error.reason} at byte {error.start}")
            return None

    def _view(self, task: Task, statement: str, blueprint: Blueprint) -> Document:
        solution = self._solution(task, blueprint)
        contract = self._contract(task, blueprint)
        environment: Document = {"blueprint_id": blueprint.id, "working_directory": blueprint.working_directory}
        sizes = self._sizes(task)
        if sizes:
            environment["launch_parameters"] = sizes
        return {
            "id": self._identity,
            "name": self._folder.name,
            "metadata": self._metadata(task, contract),
            "status": "active",
            "is_public": True,
            "input_context": {"problem_statement": statement},
            "scoring_contract": contract,
            "environment": environment,
            "reference_output": solution,
            "required_environment_variables": list(task.required),
            "required_secret_names": [],
            "scorer_timeout_sec": math.ceil(task.verifier_timeout),
            "validation_type": "UNSPECIFIED" if solution is None else "FORWARD",
        }

    def _metadata(self, task: Task, contract: Document) -> dict[str, str]:
        timeout = None if task.agent_timeout is None else f"{task.agent_timeout:g}"
        hosts = ",".join([*(["internet"] if task.network else []), *task.hosts])
        known = {
            "benchmark": self._around.benchmark,
            "source": "folder",
            "category": task.category,
            "difficulty": task.difficulty,
            "tags": ",".join(task.tags) or None,
            "agent_timeout_sec": timeout,
            "reaches": hosts or None,
            "digest": self._digest(contract),
        }
        return {key: value for key, value in known.items() if value is not None}

    def _digest(self, contract: Document) -> str:
        """The folder's digest; a custom scorer's script, kept beside the folder, decides scores too and counts."""
        whole = hashlib.sha256(digest(self._files.nodes, self._digests).encode())
        for function in contract["scoring_function_parameters"]:
            script = self._around.custom_scorers.get(function["scorer"].get("custom_scorer_type", ""))
            whole.update(b"" if script is None else b"\0" + script.encode())
        return whole.hexdigest()

    def _solution(self, task: Task, blueprint: Blueprint) -> str | None:
        solution = self._files.below("solution")
        if not solution.nodes:
            self._report.warn("solution/solve.sh", "", "is missing: the oracle agent cannot check this scenario")
            return None
        if solution.find("solve.sh") is None:
            self._report.error("solution/solve.sh", "", "is missing, though solution/ has other files")
            return None
        archive = self._packed("solution", solution)
        return solution_script(archive, working_directory=blueprint.working_directory, variables=task.solution_env)

    def _contract(self, task: Task, blueprint: Blueprint) -> Document:
        tests = self._files.below("tests")
        if task.scorers:
            if task.verifier_env:
                self._report.warn(
                    FILE, "verifier.env", "ignored: it is for tests/test.sh, and [[scorers]] replaces that"
                )
            scorers = Scorers(tests=tests, custom_types=self._around.custom_scorers, report=self._report)
            return scorers.contract(task.scorers)
        if tests.find("test.sh") is None:
            self._report.error("tests/test.sh", "", "is missing: write it, or describe [[scorers]] in task.toml")
        script = tests_script(
            self._packed("tests", tests), working_directory=blueprint.working_directory, variables=task.verifier_env
        )
        scorer = {"type": "bash_script_scorer", "bash_script": script}
        return {"scoring_function_parameters": [{"name": "tests", "weight": 1.0, "scorer": scorer}]}

    def _packed(self, name: str, files: Listing) -> bytes:
        archive = pack(files.nodes)
        if len(archive) > MAX_PACKED:
            self._report.error(
                f"{name}/", "", f"is {len(archive) >> 20} MiB packed; at most {MAX_PACKED >> 20} fit into a definition"
            )
            return b""
        return archive

    def _sizes(self, task: Task) -> Document:
        """Launch parameters that hold what is asked for: the published API knows few sizes, and 2 to 8 GiB a core."""
        if task.cpus is None and task.memory_mb is None and task.storage_mb is None:
            return {}
        memory = self._rounded("memory_mb", (task.memory_mb or 2048) / 1024, _MAX_MEMORY)
        cores = self._rounded("cpus", max(task.cpus or 1, memory / 8), _MAX_CORES)
        sizes: Document = {
            "resource_size_request": "CUSTOM_SIZE",
            "custom_cpu_cores": cores,
            "custom_gb_memory": max(memory, 2 * cores),
        }
        if task.storage_mb is not None:
            sizes["custom_disk_size"] = max(2, self._rounded("storage_mb", task.storage_mb / 1024, _MAX_DISK))
        return sizes

    def _rounded(self, key: str, wanted: float, most: int) -> int:
        """The next size there is: 1, or an even number."""
        if wanted > most:
            self._report.warn(FILE, f"environment.{key}", f"asks for more than a devbox can have; it gets {most}")
        return 1 if wanted <= 1 else min(most, 2 * math.ceil(wanted / 2))
