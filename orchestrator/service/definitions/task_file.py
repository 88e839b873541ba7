"""A scenario folder becomes a scenario: the wire's view of it, and the blueprint of its environment.

The folder is read as a whole or not at all, and says everything that is wrong with it at once. What forbids *building*
its environment here does not forbid reading it: the definition is right, and another provider may be able to.
"""

import hashlib
import math
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from orchestrator.service.content import Contents, Listing, Node, complaint, digest, is_utf8, listing
from orchestrator.service.definitions.blueprints import read_blueprint
from orchestrator.service.definitions.scoring_plan import TESTS_PROGRAM, ScoringPlan, Tests
from orchestrator.service.definitions.self_extracting import (
    MAX_PACKED,
    MAX_UNPACKED,
    first_line_mistake,
    pack,
    solution_script,
    tests_script,
)
from orchestrator.service.definitions.task_scorers import MAX_TEXT, Scorers
from orchestrator.service.definitions.task_toml import FILE, Task, read_task
from orchestrator.service.definitions.toml_file import MAX_SIZE
from orchestrator.service.diagnostics import Problem, Report, few, printable
from orchestrator.service.environments.builds import COMPOSE, Blueprint
from orchestrator.service.store import Document

#: What of a folder is the scenario; what else lies there is its author's own affair.
PARTS: Final = (FILE, "instruction.md", "environment", "tests", "solution")
#: What an agent has done before it begins, in Harbor's tasks.
TRAJECTORY: Final = "trajectory.json"
SOLUTION_PROGRAM: Final = "solve.sh"
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
        self._contents = Contents()
        self._report = Report()
        self._notes: list[str] = []

    def scenario(self) -> Scenario:
        if not is_utf8(self._folder.name):
            self._report.error("", "", "the folder has a name that is not UTF-8: give it another")
        for path, why in self._files.faults:
            if path and path.partition("/")[0] not in PARTS:
                self._report.note(path, "", f"is no part of the scenario, and {why}")
            elif not path.startswith("environment/"):
                self._report.error(path or self._folder.name, "", why)
        for name in ("tests", "solution"):
            self._judge_size(name, self._files.below(name))
        settings = self._file(FILE, MAX_SIZE)
        task = Task() if settings is None else read_task(settings, self._report)
        statement = None if task.has_steps else self._statement()
        environment = self._files.below("environment")
        refused = Report()
        self._refuse(task, refused)
        if not environment.nodes:
            self._report.warn("environment/", "", "has no files: the working directory starts empty")
        building = Report()
        blueprint = read_blueprint(task, environment, building, self._contents)
        view = self._view(task, statement or "", blueprint)
        refusals = (*refused.problems, *blueprint.refusals)
        if refusals:
            view["_unsupported"] = view["metadata"]["unsupported"] = few(refusals)
        return Scenario(
            view=view,
            blueprint=blueprint,
            problems=(*self._report.problems, *refused.problems, *building.problems),
            errors=tuple(self._report.errors),
            stamps=self._files.stamps,
            size=self._files.size,
        )

    def _judge_size(self, name: str, files: Listing) -> None:
        """What is too large is not read."""
        if files.size > MAX_UNPACKED:
            size, most = files.size >> 20, MAX_UNPACKED >> 20
            largest = max(files.nodes, key=lambda node: node.size)
            why = f"has {size:,} MiB ({largest.path}: {largest.size >> 20:,}); at most {most} fit into a definition"
            self._report.error(f"{name}/", "", why)
            for node in files.nodes:
                self._contents.skip(node)

    def _statement(self) -> str | None:
        data = self._file("instruction.md", MAX_TEXT)
        if data is None:
            return None
        try:
            statement = data.decode()
        except UnicodeDecodeError as error:
            self._report.error("instruction.md", "", f"is not UTF-8 text: {error.reason} at byte {error.start}")
            return None
        if not statement.strip():
            self._report.error("instruction.md", "", "is empty: agents would be told nothing")
        return statement

    def _file(self, name: str, limit: int) -> bytes | None:
        """A file's content, or None when its absence, or what is wrong with it, has been told."""
        node = self._files.find(name)
        if node is None or node.kind != "file":
            if not any(path == name for path, _ in self._files.faults):
                self._report.error(name, "", "is missing: every scenario needs it")
            return None
        return self._read(name, node, limit)

    def _read(self, name: str, node: Node, limit: int) -> bytes | None:
        try:
            return self._contents.read(node, limit)
        except OSError as error:
            self._report.error(name, "", complaint(error))
            self._contents.skip(node)
            return None

    def _view(self, task: Task, statement: str, blueprint: Blueprint) -> Document:
        solution = self._solution(task, blueprint)
        tests = self._tests(task)
        contract = self._contract(task, blueprint, tests)
        scripts = self._scripts(contract)
        environment: Document = {"blueprint_id": blueprint.id, "working_directory": blueprint.working_directory}
        sizes = self._sizes(task)
        if sizes:
            environment["launch_parameters"] = sizes
        return {
            "id": self._identity,
            "name": printable(self._folder.name),
            "metadata": self._metadata(task, scripts),
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
            "_parts": self._parts(scripts),
            "_scorers": scripts,
            "_scoring": self._plan(task, blueprint, tests),
        }

    def _plan(self, task: Task, blueprint: Blueprint, tests: Tests | None) -> ScoringPlan:
        return ScoringPlan(
            mode=task.scoring_mode,
            artifacts=task.artifacts,
            collect=task.collect,
            tests=tests,
            has_own_environment=task.scoring_mode == "separate" and self._own_environment(task) is not None,
            working_directory=blueprint.working_directory,
        )

    def _refuse(self, task: Task, report: Report) -> None:
        """What the scenario asks for, beside its environment, that is not to be had here and would change the score."""
        for key, why in task.refusals:
            if not key.startswith("environment."):
                report.error(FILE, key, why)
        own = self._own_environment(task)
        if task.scoring_mode == "separate" and own is not None:
            report.error(*own, "a verifier with an image of its own is not supported: let it use the environment's")
        if self._files.find(TRAJECTORY):
            report.error(TRAJECTORY, "", "agents would start without what happened before: it is not given to them")

    def _own_environment(self, task: Task) -> tuple[str, str] | None:
        """The file and the key that give the verifier an image of its own, if something does."""
        if task.verifier_image is not None:
            return FILE, "verifier.environment.docker_image"
        found = (f"tests/{name}" for name in ("Dockerfile", *COMPOSE) if self._files.find(f"tests/{name}"))
        return next(((file, "") for file in found), None)

    def _metadata(self, task: Task, scripts: Mapping[str, str]) -> dict[str, str]:
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
            "digest": self._digest(scripts),
            "notes": "\n".join([*task.notes, *self._notes]) or None,
        }
        return {key: value for key, value in known.items() if value is not None}

    def _scripts(self, contract: Document) -> dict[str, str]:
        """The scripts of the contract's custom scorers, by type."""
        scorers = [function["scorer"] for function in contract["scoring_function_parameters"]]
        kinds = [scorer.get("custom_scorer_type", "") for scorer in scorers]
        return {kind: self._around.custom_scorers[kind] for kind in kinds if kind in self._around.custom_scorers}

    def _digest(self, scripts: Mapping[str, str]) -> str:
        """The digest of what a scenario is; a custom scorer's script, kept beside the folder, decides scores too."""
        nodes = [node for node in self._files.nodes if node.path.partition("/")[0] in PARTS]
        for node in nodes:
            self._take_in(node)
        whole = hashlib.sha256(digest(nodes, self._contents.digests).encode())
        for script in scripts.values():
            whole.update(b"\0" + script.encode())
        return whole.hexdigest()

    def _parts(self, scripts: Mapping[str, str]) -> dict[str, str]:
        """The same part by part; what each is called tells people where to look."""
        parts = {
            f"custom scorer {kind}": hashlib.sha256(script.encode()).hexdigest() for kind, script in scripts.items()
        }
        for part in PARTS:
            nodes = [node for node in self._files.nodes if node.path.partition("/")[0] == part]
            parts[part] = digest(nodes, self._contents.digests)
        return parts

    def _take_in(self, node: Node) -> None:
        """Take in a file of which nothing but the digest is wanted."""
        if node.kind == "file":
            try:
                self._contents.hash(node)
            except OSError as error:
                self._report.error(node.path, "", complaint(error))
                self._contents.skip(node)

    def _solution(self, task: Task, blueprint: Blueprint) -> str | None:
        solution = self._files.below("solution")
        if not solution.nodes:
            self._report.warn("solution/solve.sh", "", "is missing: the oracle agent cannot check this scenario")
            return None
        if not _has_program(solution, SOLUTION_PROGRAM):
            self._report.error("solution/solve.sh", "", "is missing, though solution/ has other files")
            return None
        if mistake := self._misread("solution", SOLUTION_PROGRAM):
            self._report.warn(f"solution/{SOLUTION_PROGRAM}", "line 1", mistake)
        archive = self._packed("solution", solution, SOLUTION_PROGRAM)
        return solution_script(archive, working_directory=blueprint.working_directory, variables=task.solution_env)

    def _tests(self, task: Task) -> Tests | None:
        """tests/ for its own program; None where [[scorers]] take its place."""
        if task.scorers:
            return None
        tests = self._files.below("tests")
        if task.has_steps:  # which has been told, and each of them has its own
            return Tests(archive=b"")
        if not _has_program(tests, TESTS_PROGRAM):
            self._report.error(
                f"tests/{TESTS_PROGRAM}", "", "is missing: write it, or describe [[scorers]] in task.toml"
            )
        elif mistake := self._misread("tests", TESTS_PROGRAM):
            self._report.error(f"tests/{TESTS_PROGRAM}", "line 1", mistake)
        return Tests(archive=self._packed("tests", tests, TESTS_PROGRAM), variables=task.verifier_env)

    def _misread(self, folder: str, program: str) -> str | None:
        """What is wrong with a program's first line, if something is."""
        node = self._files.find(f"{folder}/{program}")
        if node is None or node.kind != "file" or node.size > MAX_UNPACKED:
            return None
        return first_line_mistake(self._read(node.path, node, MAX_UNPACKED) or b"")

    def _contract(self, task: Task, blueprint: Blueprint, tests: Tests | None) -> Document:
        if tests is None:
            if task.verifier_env:
                self._report.warn(
                    FILE, "verifier.env", "ignored: it is for tests/test.sh, and [[scorers]] replaces that"
                )
            custom_types = self._around.custom_scorers
            files = self._files.below("tests")
            scorers = Scorers(tests=files, contents=self._contents, custom_types=custom_types, report=self._report)
            return scorers.contract(task.scorers)
        script = tests_script(tests.archive, working_directory=blueprint.working_directory, variables=tests.variables)
        scorer = {"type": "bash_script_scorer", "bash_script": script}
        return {"scoring_function_parameters": [{"name": "tests", "weight": 1.0, "scorer": scorer}]}

    def _packed(self, name: str, files: Listing, program: str) -> bytes:
        """tests/ or solution/ as it travels; `program` is executed there, so it is executable."""
        if files.size > MAX_UNPACKED:  # which has been told
            return b""
        found = files.find(program)
        executed = {program, posixpath.normpath(found.target) if found else ""}  # it may be a link to what is executed
        nodes = [replace(node, is_executable=True) if node.path in executed else node for node in files.nodes]
        archive = pack(nodes, lambda node: self._read(f"{name}/{node.path}", node, MAX_UNPACKED) or b"")
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
            why = f"asks for more than a devbox can have; it gets {most}"
            self._report.warn(FILE, f"environment.{key}", why)
            self._notes.append(f"{FILE}: environment.{key}: {why}")
        return 1 if wanted <= 1 else min(most, 2 * math.ceil(wanted / 2))


def _has_program(files: Listing, name: str) -> bool:
    node = files.find(name)
    return node is not None and node.kind != "folder"
