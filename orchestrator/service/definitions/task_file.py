"""A scenario folder becomes a scenario: the wire's view of it, and the blueprint of its environment.

The folder is read as a whole or not at all, and all its mistakes are reported at once. A reason that forbids *building*
its environment here does not forbid reading it: the definition is right, and another provider may be able to.
"""

import hashlib
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec
import orjson

from orchestrator.core.protocol import AdditionalContext, RewardStrategy, ScoringMode
from orchestrator.service.content import MAX_TOML, Contents, Listing, Node, complaint, decoded, digest, is_utf8, listing
from orchestrator.service.definitions import scoring_plan, self_extracting
from orchestrator.service.definitions.compose_file import MAIN, ComposeService, read_compose
from orchestrator.service.definitions.scoring_plan import VariableNames
from orchestrator.service.definitions.self_extracting import TEMPLATE, split
from orchestrator.service.definitions.steps import ScenarioStep, Steps
from orchestrator.service.definitions.task_toml import FILE, Environment, Task, read_task, required_by
from orchestrator.service.diagnostics import Problem, Report, few, printable
from orchestrator.service.environments.build_outline import DockerfileError
from orchestrator.service.environments.build_plan import plan_text
from orchestrator.service.environments.environments import COMPOSE, MAX_SOURCE_BYTES, SETUP, Blueprint, ImageRecipe
from orchestrator.service.environments.image_builds import refusals
from orchestrator.service.environments.images.manifest import ours
from orchestrator.service.environments.images.reference import BadReference, Reference
from orchestrator.service.sandbox.folders import SYSTEM
from orchestrator.service.sandbox.prepared import StepStart
from orchestrator.service.sandbox.provider import Resources
from orchestrator.service.store import Document

STATEMENT: Final = "instruction.md"
#: An ATIF document: what happened before the agent begins.
TRAJECTORY: Final = "trajectory.json"
#: The parts of a folder that are the scenario; its author may keep other files beside them.
PARTS: Final = (FILE, STATEMENT, TRAJECTORY, "environment", "tests", "solution", "steps")
SOLUTION_PROGRAM: Final = "solve.sh"
DOCKERFILE: Final = "Dockerfile"
IGNORE: Final = ".dockerignore"
#: Where the files of an environment without an image go.
WORKING_DIRECTORY: Final = "/app"
#: Lines before a statement by which its authors find it in training data; as in Harbor, agents do not get them.
_CANARY: Final = re.compile(r"\A([^\S\n]*(<!--.*canary.*-->|#.*canary.*)[^\S\n]*(\n|\Z))+([^\S\n]*\n)*", re.IGNORECASE)
#: Changes when the same environment would be built in another way.
_BLUEPRINT_VERSION: Final = 2
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioContext:
    """The benchmark around a scenario folder: its name, the folder that links must not leave, its custom scorers.

    With `rebuild`, an environment/Dockerfile is built also where an image is named.
    """

    benchmark: str
    boundary: Path
    custom_scorers: Mapping[str, str] = field(default_factory=dict)
    rebuild: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A folder that was read. `view` is right only if `errors` is empty; `stamps` change when the folder does.

    `verifiers` are the blueprints of environments that separate verifiers have of their own.
    """

    name: str
    digest: str
    view: Document
    blueprint: Blueprint
    verifiers: tuple[Blueprint, ...] = ()
    problems: tuple[Problem, ...]
    errors: tuple[Problem, ...]
    stamps: tuple[tuple[str | int, ...], ...]
    size: int

    @property
    def blueprints(self) -> Mapping[str, Blueprint]:
        """Those of its environments, by their ids."""
        return {each.id: each for each in (self.blueprint, *self.verifiers)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A scenario, or a step of one, as its agent and its scorers meet it."""

    statement: str
    solution: str | None
    plan: scoring_plan.ScoringPlan
    contract: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentPlace:
    """Where an environment is described: by `files` in a `folder`, and a `section` of task.toml.

    It `has_tests` if its image has the tests at /tests. `service` is its container where a compose file describes that,
    and `problems` are those of the file.
    """

    files: Listing
    folder: str = "environment"
    section: str = "environment"
    has_tests: bool = False
    service: ComposeService | None = None
    problems: tuple[Problem, ...] = ()


def read_scenario(identity: str, folder: Path, context: ScenarioContext, files: Listing | None = None) -> Scenario:
    """Read a scenario folder; `files` is its listing, if that is known already. Raises OSError."""
    return _Reading(folder, context, files or listing(folder, context.boundary)).scenario(identity)


class _Reading:
    """One reading of one folder.

    Mistakes gather in `_report`; requests beside the environment that cannot be met here, and would change the score,
    in `_refused`.
    """

    def __init__(self, folder: Path, context: ScenarioContext, files: Listing) -> None:
        self._name = printable(folder.name)
        self._context = context
        self._files = files
        self._contents = Contents()
        self._report = Report()
        self._refused = Report()
        if not is_utf8(folder.name):
            self._report.error("", "", "the folder has a name that is not UTF-8: give it another")
        for path, why in files.faults:
            if path and path.partition("/")[0] not in PARTS:
                self._report.note(path, "", f"is no part of the scenario, and {why}")
            elif not path.startswith("environment/"):
                self._report.error(path or folder.name, "", why)

    def scenario(self, identity: str) -> Scenario:
        settings = self._file(FILE, MAX_TOML)
        task = Task() if settings is None else read_task(settings, self._report)
        for key, why in task.refusals:
            if not key.startswith("environment."):
                self._refused.error(FILE, key, why, required_by(key))
        environment = self._files.below("environment")
        if self._context.rebuild and environment.find(DOCKERFILE):
            task = replace(task, environment=replace(task.environment, docker_image=None))
        if not environment.nodes:
            self._report.warn("environment/", "", "has no files: the working directory starts empty")
        building = Report()
        composed, place = self._composed(task.environment, EnvironmentPlace(files=environment))
        task = _with_service(task, composed, place.service)
        blueprint = read_blueprint(task, task.environment, place, building, self._contents, name=self._name)
        verifiers = self._verifiers(task, place, blueprint, building)
        users = [task.user, task.verifier_user, *(each.task.verifier_user for each in task.steps)]
        users += [each.user for whole in (task, *(step.task for step in task.steps)) for each in whole.collect]
        if blueprint.image is None and any(users):
            why = "ignored: without an image everything runs as one user"
            self._report.warn(FILE, "agent.user, verifier.user", why)
            collect = tuple(replace(each, user="") for each in task.collect)
            task = replace(task, collect=collect, notes=(*task.notes, f"{FILE}: agent.user, verifier.user: {why}"))
        whole, view = self._view(identity, task, blueprint, verifiers)
        return Scenario(
            name=self._name,
            digest=whole,
            view=view,
            blueprint=blueprint,
            verifiers=tuple(filter(None, verifiers)),
            problems=(*self._report.problems, *self._refused.problems, *building.problems),
            errors=tuple(self._report.errors),
            stamps=self._files.stamps,
            size=self._files.size,
        )

    def _composed(self, given: Environment, place: EnvironmentPlace) -> tuple[Environment, EnvironmentPlace]:
        """Read the compose file of an environment, if there is one; what task.toml says wins over it."""
        has_one = place.has_tests or place.files.find(DOCKERFILE) is not None
        names = COMPOSE[:1] if has_one else COMPOSE  # another may be a file of the task, as anywhere
        name, found = next((each for each in names if place.files.find(each)), None), Report()
        text = None if name is None else _text(place.files, name, self._contents, found, place.folder)
        if text is None:
            return given, replace(place, problems=tuple(found.problems))
        service = read_compose(text, f"{place.folder}/{name}", found)
        variables, templates = split(service.variables)
        environment = replace(
            given,
            docker_image=given.docker_image or service.image,
            workdir=given.workdir or service.working_directory,
            cpus=given.cpus or service.cpus,
            memory_mb=given.memory_mb or service.memory_mb,
            variables={**variables, **given.variables},
            templates={**templates, **given.templates},
        )
        return environment, replace(place, service=service, problems=tuple(found.problems))

    def _statement(self, name: str) -> str:
        data = self._file(name, scoring_plan.MAX_TEXT_BYTES)
        try:
            statement = decoded(data or b"")
        except OSError as error:
            self._report.error(name, "", complaint(error))
            return ""
        if data is not None and not statement.strip():
            self._report.error(name, "", "is empty: agents would be told nothing")
        return _CANARY.sub("", statement)

    def _trajectory(self) -> str:
        """Read the trajectory that the agent starts with; empty if there is none, or it is no document."""
        if not self._files.find(TRAJECTORY):
            return ""
        data = self._file(TRAJECTORY, scoring_plan.MAX_TEXT_BYTES) or b""
        try:
            if not isinstance(orjson.loads(data), dict):
                self._report.error(TRAJECTORY, "", "is not an ATIF document: a JSON object was expected")
        except orjson.JSONDecodeError as error:
            self._report.error(TRAJECTORY, "", f"is not JSON: {error}")
            return ""
        return data.decode()

    def _file(self, name: str, limit: int) -> bytes | None:
        """Read a file; None if it is missing, or cannot be read, which is reported."""
        node = self._files.find(name)
        if node is not None and node.kind == "file":
            return self._read(name, node, limit)
        if not any(path == name for path, _ in self._files.faults):
            self._report.error(name, "", "is missing: every scenario needs it")
        return None

    def _read(self, name: str, node: Node, limit: int) -> bytes | None:
        try:
            return self._contents.read(node, limit)
        except OSError as error:
            self._report.error(name, "", complaint(error))
            self._contents.skip(node)
            return None

    def _verifiers(
        self, task: Task, agents_place: EnvironmentPlace, agents: Blueprint, report: Report
    ) -> list[Blueprint | None]:
        """Read the environments that separate verifiers have of their own, of each step if there are several."""
        whole = (task.verifier_environment, "tests")
        verifiers = []
        for name, its in [(each.name, each.task) for each in task.steps] or [("", task)]:
            own = its.verifier_environment
            places = [(None if own == whole[0] else own, f"steps/{name}/tests"), whole] if name else [whole]
            judged = replace(
                task,
                scoring_mode=its.scoring_mode,
                verifier_environment=own,
                verifier_reach=its.verifier_reach,
                verifier_user=its.verifier_user or task.verifier_user,
            )
            verifiers.append(self._verifier(judged, places, agents_place, agents, report))
        return verifiers

    def _verifier(
        self,
        task: Task,
        places: Iterable[tuple[Environment | None, str]],
        agents_place: EnvironmentPlace,
        agents: Blueprint,
        report: Report,
    ) -> Blueprint | None:
        """Read the environment of its own that a separate verifier has, if it does.

        The first of `places` that has an image decides: one that its table names, or one that is built in its folder.
        """
        if task.scoring_mode is not ScoringMode.SEPARATE:
            return None
        own = task.verifier_environment
        for asked, folder in places:
            image, tests = asked.docker_image if asked else None, self._files.below(folder)
            has_build = any(tests.find(name) for name in (DOCKERFILE, COMPOSE[0]))
            if not (image or has_build):
                continue
            files = tests if has_build and (tests.find(COMPOSE[0]) or not image) else Listing()
            place = EnvironmentPlace(files=files, folder=folder, section="verifier.environment", has_tests=True)
            own, place = self._composed(replace(own or task.environment, docker_image=image), place)
            if place.service and split(place.service.variables)[1]:
                self._refused.error(
                    f"{folder}/{COMPOSE[0]}", "environment", "write templates into [verifier.environment.env]"
                )
            break
        else:
            if own is None:
                return None
            own, place = replace(own, docker_image=task.environment.docker_image), agents_place
        own = replace(own, reach=task.verifier_reach)
        found = read_blueprint(task, own, place, report, self._contents, name=f"{self._name}-verifier")
        if found.image is not None and agents.image is None:
            why = "has an image, and the scenario's environment has none: give that one too"
            self._refused.error(found.image.file, "", why)
        return found

    def _view(
        self, identity: str, task: Task, blueprint: Blueprint, verifiers: Sequence[Blueprint | None]
    ) -> tuple[str, Document]:
        """Return the scenario's digest, and the document of it that `Catalog.scenario` describes."""
        environment: Document = {"blueprint_id": blueprint.id}
        if blueprint.working_directory:  # else it is the image's
            environment["working_directory"] = blueprint.working_directory
        if task.launch_parameters:
            environment |= {"launch_parameters": task.launch_parameters}
        several: Document = {}
        if task.steps:
            first, several = self._steps(task, blueprint, verifiers)
        else:
            first = self._part("", task, blueprint, verifiers[0])
        known, used = self._context.custom_scorers, [table.get("custom_scorer_type") for table in task.scorers]
        scripts = {kind: known[kind] for kind in used if isinstance(kind, str) and kind in known}
        whole, parts = self._digests(scripts)

        context = AdditionalContext(
            mcp_servers=task.mcp_servers, skills_dir=task.skills_dir, trajectory=self._trajectory()
        )
        own = list({each.id: each for each in verifiers if each is not None}.values())
        unsupported = few((*self._refused.problems, *(why for each in (blueprint, *own) for why in each.refusals)))
        metadata = {"benchmark": self._context.benchmark, "source": "folder", **task.labels(), "digest": whole}
        metadata |= {"verifier_blueprint_ids": ",".join(each.id for each in own)} if own else {}
        metadata |= {"optional_variables": ",".join(task.optional)} if task.optional else {}
        return whole, {
            "id": identity,
            "name": self._name,
            "metadata": metadata | ({"unsupported": unsupported} if unsupported else {}),
            "status": "active",
            "is_public": True,
            "input_context": {
                "problem_statement": first.statement,
                **({"additional_context": msgspec.to_builtins(context)} if context else {}),
            },
            "scoring_contract": first.contract,
            "environment": environment,
            "reference_output": first.solution,
            "required_environment_variables": list(task.required),
            "required_secret_names": [],
            "scorer_timeout_sec": math.ceil(task.verifier_timeout),
            "validation_type": "UNSPECIFIED" if first.solution is None else "FORWARD",
            **({"artifacts": _shown_artifacts(task)} if task.artifacts else {}),
            **several,
            "_parts": parts,
            "_scorers": scripts,
            "_scoring": first.plan,
            "_variables": VariableNames(
                templates=task.environment.templates,
                optional=task.optional,
                scorers_only=task.scorers_only,
            ),
            **({"_unsupported": unsupported} if unsupported else {}),
        }

    def _steps(self, task: Task, blueprint: Blueprint, verifiers: Sequence[Blueprint | None]) -> tuple[_Part, Document]:
        """Return what is shown of several steps as if there was one, and the keys of a document that have all."""
        parts, steps = [], list[ScenarioStep]()
        for each, verifier in zip(task.steps, verifiers, strict=True):
            folder = f"steps/{each.name}"
            part = self._part(f"{folder}/", each.task, blueprint, verifier)
            files = self._files.below(f"{folder}/workdir")
            parts.append(part)
            steps.append(
                ScenarioStep(
                    name=each.name,
                    contract=part.contract,
                    plan=part.plan,
                    scorer_timeout=each.task.verifier_timeout,
                    start=StepStart(
                        workdir=self._packed(f"{folder}/workdir", files) if files.nodes else b"",
                        has_setup=_has_program(files, SETUP),
                        healthcheck=each.task.environment.healthcheck,
                    ),
                    min_reward=each.min_reward,
                )
            )
        known = {each.name for each in task.steps}
        for stray in sorted({node.path.partition("/")[0] for node in self._files.below("steps").nodes} - known):
            self._report.warn(f"steps/{stray}", "", f"is no step: no [[steps]] of {FILE} has this name")
        judged = [part.contract for part in parts if part.plan.tests is not None]
        if task.reward_strategy is RewardStrategy.FINAL and parts[-1].plan.tests is None:
            why = f"the last step, {task.steps[-1].name}, has no tests, so there is no score"
            self._report.error(FILE, "multi_step_reward_strategy", why)
        for number, each in enumerate(task.steps):
            if each.min_reward and parts[number].plan.tests is None:
                self._report.warn(FILE, f"steps[{number}].min_reward", "ends every run: the step has no tests")
        if not judged:
            self._report.error("tests/", "", "is missing, in every step: nothing would be judged")
        shown = [
            {
                "name": each.name,
                "problem_statement": part.statement,
                "reference_output": part.solution,
                "agent_timeout_sec": each.task.agent_timeout,
                "scorer_timeout_sec": math.ceil(each.task.verifier_timeout),
                "artifacts": _shown_artifacts(each.task),
            }
            for each, part in zip(task.steps, parts, strict=True)
        ]
        shown_first = replace(parts[0], contract=judged[0]) if judged else parts[0]
        return shown_first, {"steps": shown, "_steps": Steps(steps=tuple(steps), strategy=task.reward_strategy)}

    def _part(self, base: str, task: Task, blueprint: Blueprint, verifier: Blueprint | None) -> _Part:
        """Read what an agent is told and judged by, in the folder `base` of the scenario: "" or that of a step.

        A step without a solution of its own has the one of the scenario.
        """
        own, shared = f"{base}solution", "solution"
        is_shared = self._files.below(shared).nodes and not self._files.below(own).nodes
        plan, contract = self._scoring(base, task, blueprint, verifier)
        return _Part(
            statement=self._statement(f"{base}{STATEMENT}"),
            solution=self._solution(shared if is_shared else own, task, blueprint.working_directory),
            plan=plan,
            contract=contract,
        )

    def _solution(self, folder: str, task: Task, working_directory: str) -> str | None:
        program, files = f"{folder}/{SOLUTION_PROGRAM}", self._files.below(folder)
        if not files.nodes:
            self._report.warn(program, "", "is missing: the oracle agent cannot check this scenario")
            return None
        if not _has_program(files, SOLUTION_PROGRAM):
            self._report.error(program, "", f"is missing, though {folder}/ has other files")
            return None
        archive = self._packed(folder, files, SOLUTION_PROGRAM, self._report.warn)
        return self_extracting.solution_script(
            archive, working_directory=working_directory, variables=task.solution_env
        )

    def _scoring(
        self, base: str, task: Task, blueprint: Blueprint, verifier: Blueprint | None
    ) -> tuple[scoring_plan.ScoringPlan, Document]:
        """Return the plan and the contract of the same scoring: tests/test.sh, or the [[scorers]] in its place.

        The tests of a step are laid over those of the scenario; one without test.sh in either is not judged.
        """
        files, tests, report = self._files.below("tests"), None, self._report
        if base:
            files = _laid_over(files, self._files.below(f"{base}tests"))
        has_tests = verifier is not None and verifier.has_tests
        reach = None if task.verifier_reach == task.environment.reach else task.verifier_reach
        has_user = blueprint.image is not None and task.verifier_user not in {"", blueprint.verifier_user}
        if reach is not None and task.scoring_mode is ScoringMode.LIVE:
            self._refused.error(FILE, "verifier.network_mode", "scorers that run live have the agent's network")
        if task.scorers:
            if task.verifier_env:
                report.warn(FILE, "verifier.env", "ignored: it is for tests/test.sh, and [[scorers]] replaces that")
            types = self._context.custom_scorers
            tables = scoring_plan.ScorerTables(tests=files, contents=self._contents, custom_types=types, report=report)
            contract = tables.contract(task.scorers)
        elif base and not has_tests and not _has_program(files, scoring_plan.TESTS_PROGRAM):
            contract = {"scoring_function_parameters": []}
        else:
            if not has_tests and not _has_program(files, scoring_plan.TESTS_PROGRAM):
                why = "is missing: write it, or describe [[scorers]] in task.toml"
                report.error(f"tests/{scoring_plan.TESTS_PROGRAM}", "", why)
            archive = self._packed(f"{base}tests", files, scoring_plan.TESTS_PROGRAM, report.error)
            tests = scoring_plan.Tests(archive=None if has_tests else archive, variables=task.verifier_env)
            script = self_extracting.tests_script(
                archive, working_directory=blueprint.working_directory, variables=task.verifier_env
            )
            scorer = {"type": "bash_script_scorer", "bash_script": script}
            contract = {"scoring_function_parameters": [{"name": "tests", "weight": 1.0, "scorer": scorer}]}
        plan = scoring_plan.ScoringPlan(
            mode=task.scoring_mode,
            artifacts=task.artifacts,
            collect=task.collect,
            tests=tests,
            environment=verifier.id if verifier else None,
            reach=reach,
            user=task.verifier_user if has_user and verifier is None else None,
            templates=(task.verifier_environment or task.environment).templates,
        )
        return plan, contract

    def _packed(
        self, name: str, files: Listing, program: str = "", tell: Callable[[str, str, str], None] | None = None
    ) -> bytes:
        """Pack a folder for its way to a devbox, where a `program` in it is executed, and so executable.

        A first line of the program that the kernel does not understand goes to `tell`.
        """
        if files.size > self_extracting.MAX_UNPACKED_BYTES:  # and so it is not read
            size, most = files.size >> 20, self_extracting.MAX_UNPACKED_BYTES >> 20
            largest = max(files.nodes, key=lambda node: node.size)
            why = f"has {size:,} MiB ({largest.path}: {largest.size >> 20:,}); at most {most} fit into a definition"
            self._report.error(f"{name}/", "", why)
            for node in files.nodes:
                self._contents.skip(node)
            return b""

        def read(node: Node) -> bytes:
            return self._read(f"{name}/{node.path}", node, self_extracting.MAX_UNPACKED_BYTES) or b""

        found = files.find(program) if program else None
        if tell and found and found.kind == "file" and (mistake := self_extracting.first_line_mistake(read(found))):
            tell(f"{name}/{program}", "line 1", mistake)
        executed = {program, posixpath.normpath(found.target) if found else ""}  # it may be a link to what is executed
        nodes = [replace(node, is_executable=True) if node.path in executed else node for node in files.nodes]
        archive = self_extracting.pack(nodes, read)
        most = self_extracting.MAX_PACKED_BYTES
        if len(archive) > most:
            why = f"is {len(archive) >> 20} MiB packed; at most {most >> 20} fit into a definition"
            self._report.error(f"{name}/", "", why)
            return b""
        return archive

    def _digests(self, scripts: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """Return the digest of all parts of the scenario, and those of each by its name, for people to look at.

        A custom scorer's script, kept beside the folder, decides scores too.
        """
        parts: dict[str, list[Node]] = {part: [] for part in PARTS}
        nodes = [node for node in self._files.nodes if node.path.partition("/")[0] in parts]
        for node in nodes:
            parts[node.path.partition("/")[0]].append(node)
        _hash(nodes, self._contents, self._report)

        whole = hashlib.sha256(digest(nodes, self._contents.digests).encode())
        digests: dict[str, str] = {}
        for kind, script in scripts.items():
            whole.update(b"\0" + script.encode())
            digests[f"custom scorer {kind}"] = hashlib.sha256(script.encode()).hexdigest()
        digests |= {part: digest(inside, self._contents.digests) for part, inside in parts.items()}
        return whole.hexdigest(), digests


def _shown_artifacts(task: Task) -> list[Document]:
    return [{"source": each.source, "exclude": list(each.exclude)} for each in task.artifacts]


def _laid_over(files: Listing, own: Listing) -> Listing:
    """Return the files of two folders in one; of two with one path, the one in `own`."""
    nodes = {node.path: node for node in (*files.nodes, *own.nodes)}
    return Listing(tuple(nodes[path] for path in sorted(nodes)), (*files.faults, *own.faults))


def _has_program(files: Listing, name: str) -> bool:
    node = files.find(name)
    return node is not None and node.kind != "folder"


def read_blueprint(
    task: Task, environment: Environment, place: EnvironmentPlace, report: Report, contents: Contents, *, name: str
) -> Blueprint:
    """Read an environment; what forbids building it goes to `report` and into the blueprint.

    `contents` are the scenario's files read already, and an image gets its `name`.
    """
    own, usual, files = Report(), Resources(), place.files
    resources = Resources(  # as asked for; the wire's sizes are coarser
        cpus=environment.cpus or usual.cpus,
        memory=int((environment.memory_mb or usual.memory / _MIB) * _MIB),
        disk=int((environment.storage_mb or usual.disk / _MIB) * _MIB),
    )
    for key, why in task.refusals:
        if place.section == "environment" and key.startswith("environment."):
            own.error(FILE, key, why, required_by(key))
    own.problems += place.problems
    image = _image(environment, place, contents, own)
    if image is None and environment.workdir and environment.workdir.split("/")[1] in SYSTEM:
        why = f"{environment.workdir} is the system's and read-only in a devbox; use /app"
        own.error(FILE, f"{place.section}.workdir", why)
    setup = _text(files, SETUP, contents, own) if image is None else None
    if setup is not None and (mistake := self_extracting.first_line_mistake(setup.encode())):
        own.error(f"environment/{SETUP}", "line 1", mistake)
    if files.size > resources.disk:  # and so it is not read
        why = f"has {files.size:,} bytes, and a devbox's disk {resources.disk:,}"
        own.error(f"{place.folder}/", "", f"{why}: raise {place.section}.storage_mb in {FILE}")
        for node in files.nodes:
            contents.skip(node)
    else:
        _hash(files.nodes, contents, own, f"{place.folder}/")
    report.problems += [each for each in own.problems if each not in report.problems]

    working_directory = environment.workdir or ("" if image else WORKING_DIRECTORY)
    content, reach = digest(files.nodes, contents.digests), environment.reach
    known = [_BLUEPRINT_VERSION, content, working_directory, environment.variables]
    known += [reach.network, setup, resources, environment.build_timeout, *reach.hosts]
    known += [image.text, image.ignore, task.user, task.verifier_user] if image else []
    known += [environment.healthcheck] if environment.healthcheck else []
    known += [image.folder, image.arguments] if image and (image.folder or image.arguments) else []
    known += ["/tests"] if place.has_tests else []
    known += [str(error) for error in own.errors]  # or what can be built elsewhere would be taken for it
    return Blueprint(
        id=f"bpt_{hashlib.sha256(orjson.dumps(known, option=orjson.OPT_SORT_KEYS)).hexdigest()[:20]}",
        files=files,
        content=content,
        image=replace(image, name=name) if image else None,
        agent_user=task.user,
        verifier_user=task.verifier_user,
        working_directory=working_directory,
        environment=environment.variables,
        network=reach.network,
        hosts=reach.hosts,
        setup=() if setup is None else (setup,),
        healthcheck=environment.healthcheck,
        resources=resources,
        build_timeout=environment.build_timeout,
        has_tests=place.has_tests,
        refusals=tuple(own.errors),
    )


def _image(environment: Environment, place: EnvironmentPlace, contents: Contents, report: Report) -> ImageRecipe | None:
    """Read how the environment's image is made; None where the machine's own system is enough.

    An image that is named is fetched, and the files of `environment/` are put into its working directory unless they
    are those of a Dockerfile, which is for those who build that image.
    """
    files, folder, workdir = place.files, place.folder, environment.workdir
    service = place.service or ComposeService()
    for path, why in files.faults:
        report.error(f"{folder}/{path}", "", why)

    copies = [f"COPY {orjson.dumps(each).decode()}" for each in service.copies]
    name = service.dockerfile or DOCKERFILE
    dockerfile = service.inline or _text(files, name, contents, report, folder)
    if environment.docker_image:
        key = f"{place.section}.docker_image"
        try:
            Reference.parse(environment.docker_image)
        except BadReference as error:
            report.error(FILE, key, str(error))
            return None
        lines = [f"FROM {environment.docker_image}"]
        if dockerfile is None and files.nodes and place.service is None:
            lines += [*([f"WORKDIR {workdir}"] if workdir else []), "COPY . ./"]
        return ImageRecipe(text="\n".join([*lines, *copies]), file=f"{FILE}: {key}")
    if dockerfile is None:
        if place.service is not None and not report.errors:
            why = f"the container {MAIN} has neither an image nor a Dockerfile ({folder}/{name})"
            report.error(f"{folder}/{COMPOSE[0]}", "", why)
        return None
    ignores = (f"{name}{IGNORE}", posixpath.join(service.context, IGNORE))
    ignore = next((each for each in ignores if files.find(each)), "")
    rules = (_text(files, ignore, contents, report, folder) or "") if ignore else ""
    file = f"{folder}/{COMPOSE[0]}: dockerfile_inline" if service.inline else f"{folder}/{name}"
    dockerfile = "\n".join([dockerfile.rstrip("\n"), *copies]) if copies else dockerfile
    recipe = ImageRecipe(text=dockerfile, file=file, ignore=rules, folder=service.context, arguments=service.arguments)
    try:
        context = recipe.context(files, contents)
    except ValueError as error:
        report.error(f"{folder}/{ignore}", "", str(error))
        return recipe
    try:
        mistakes = refusals(
            plan_text(dockerfile, context, file=recipe.file, platform=str(ours()), build_args=recipe.arguments)
        )
    except DockerfileError as error:
        mistakes = list(error.mistakes)
    for line, mistake in mistakes:
        report.error(recipe.file, f"line {line}", mistake)
    return recipe


def _with_service(task: Task, environment: Environment, service: ComposeService | None) -> Task:
    """Return a task with what the container of a compose file adds to it."""
    if service is None:
        return task
    _, templates = split(service.variables)
    wanted = {match[1]: match[2] for match in map(TEMPLATE.fullmatch, templates.values()) if match}
    required = (*task.required, *(each for each, usual in wanted.items() if usual is None))
    return replace(
        task,
        environment=environment,
        user=task.user or service.user,
        verifier_user=task.verifier_user or service.user,
        required=tuple(dict.fromkeys(required)),
        optional=tuple(dict.fromkeys(each for each in (*task.optional, *wanted) if each not in required)),
        scorers_only=tuple(each for each in task.scorers_only if each not in wanted),
        notes=(*task.notes, *service.notes),
    )


def _hash(nodes: Iterable[Node], contents: Contents, report: Report, base: str = "") -> None:
    """Hash files for a digest; their paths start at the folder `base` of the scenario."""
    for node in nodes:
        try:
            if node.kind == "file":
                contents.hash(node)
        except OSError as error:
            report.error(f"{base}{node.path}", "", complaint(error))
            contents.skip(node)


def _text(files: Listing, name: str, contents: Contents, report: Report, folder: str = "environment") -> str | None:
    """Read a file of a folder of the scenario as text; None if it is not there, or cannot be read."""
    node = files.find(name)
    if node is None:
        return None
    try:
        return contents.read(node, MAX_SOURCE_BYTES).decode()
    except OSError as error:
        report.error(f"{folder}/{name}", "", complaint(error))
        contents.skip(node)
    except UnicodeDecodeError as error:
        report.error(f"{folder}/{name}", "", f"is not UTF-8 text: {error.reason} at byte {error.start}")
    return None
