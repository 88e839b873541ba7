"""A scenario folder becomes a scenario: the wire's view of it, and the blueprint of its environment.

The folder is read as a whole or not at all, and all its mistakes are reported at once. A reason that forbids *building*
its environment here does not forbid reading it: the definition is right, and another provider may be able to.
"""

import hashlib
import math
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import orjson

from orchestrator.core.protocol import ScoringMode
from orchestrator.service.content import MAX_TOML, Contents, Listing, Node, complaint, decoded, digest, is_utf8, listing
from orchestrator.service.definitions import scoring_plan, self_extracting
from orchestrator.service.definitions.task_toml import FILE, Task, read_task
from orchestrator.service.diagnostics import Problem, Report, few, printable
from orchestrator.service.environments.build_outline import DockerfileError
from orchestrator.service.environments.build_plan import plan_text
from orchestrator.service.environments.environments import COMPOSE, MAX_SOURCE_BYTES, SETUP, Blueprint, ImageRecipe
from orchestrator.service.environments.image_builds import refusals
from orchestrator.service.environments.images.manifest import ours
from orchestrator.service.environments.images.reference import BadReference, Reference
from orchestrator.service.sandbox.folders import SYSTEM
from orchestrator.service.sandbox.provider import Resources
from orchestrator.service.store import Document

STATEMENT: Final = "instruction.md"
#: The parts of a folder that are the scenario; its author may keep other files beside them.
PARTS: Final = (FILE, STATEMENT, "environment", "tests", "solution")
#: In Harbor's tasks, the work of an agent before it begins.
TRAJECTORY: Final = "trajectory.json"
SOLUTION_PROGRAM: Final = "solve.sh"
DOCKERFILE: Final = "environment/Dockerfile"
IGNORE: Final = ".dockerignore"
#: Where the files of an environment without an image go.
WORKING_DIRECTORY: Final = "/app"
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
    """A folder that was read. `view` is right only if `errors` is empty; `stamps` change when the folder does."""

    name: str
    digest: str
    view: Document
    blueprint: Blueprint
    problems: tuple[Problem, ...]
    errors: tuple[Problem, ...]
    stamps: tuple[tuple[str | int, ...], ...]
    size: int


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
        for name in ("tests", "solution"):
            files = self._files.below(name)
            if files.size > self_extracting.MAX_UNPACKED_BYTES:  # and so it is not read
                size, most = files.size >> 20, self_extracting.MAX_UNPACKED_BYTES >> 20
                largest = max(files.nodes, key=lambda node: node.size)
                why = f"has {size:,} MiB ({largest.path}: {largest.size >> 20:,}); at most {most} fit into a definition"
                self._report.error(f"{name}/", "", why)
                for node in files.nodes:
                    self._contents.skip(node)

        settings = self._file(FILE, MAX_TOML)
        task = Task() if settings is None else read_task(settings, self._report)
        for key, why in task.refusals:
            if not key.startswith("environment."):
                self._refused.error(FILE, key, why)
        statement = "" if task.has_steps else self._statement()
        environment = self._files.below("environment")
        if self._context.rebuild and environment.find("Dockerfile"):
            task = replace(task, docker_image=None)
        if not environment.nodes:
            self._report.warn("environment/", "", "has no files: the working directory starts empty")
        building = Report()
        blueprint = read_blueprint(task, environment, building, self._contents, name=self._name)
        if blueprint.image is None and (task.user or task.verifier_user):
            why = "ignored: without an image everything runs as one user"
            self._report.warn(FILE, "agent.user, verifier.user", why)
            task = replace(task, notes=(*task.notes, f"{FILE}: agent.user, verifier.user: {why}"))
        whole, view = self._view(identity, task, statement, blueprint)
        return Scenario(
            name=self._name,
            digest=whole,
            view=view,
            blueprint=blueprint,
            problems=(*self._report.problems, *self._refused.problems, *building.problems),
            errors=tuple(self._report.errors),
            stamps=self._files.stamps,
            size=self._files.size,
        )

    def _statement(self) -> str:
        data = self._file(STATEMENT, scoring_plan.MAX_TEXT_BYTES)
        try:
            statement = decoded(data or b"")
        except OSError as error:
            self._report.error(STATEMENT, "", complaint(error))
            return ""
        if data is not None and not statement.strip():
            self._report.error(STATEMENT, "", "is empty: agents would be told nothing")
        return statement

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

    def _view(self, identity: str, task: Task, statement: str, blueprint: Blueprint) -> tuple[str, Document]:
        """Return the scenario's digest, and the document of it that `Catalog.scenario` describes."""
        environment: Document = {"blueprint_id": blueprint.id}
        if blueprint.working_directory:  # else it is the image's
            environment["working_directory"] = blueprint.working_directory
        if task.launch_parameters:
            environment |= {"launch_parameters": task.launch_parameters}
        solution = self._solution(task, blueprint.working_directory)
        plan, contract = self._scoring(task, blueprint.working_directory)
        known, used = self._context.custom_scorers, [table.get("custom_scorer_type") for table in task.scorers]
        scripts = {kind: known[kind] for kind in used if isinstance(kind, str) and kind in known}
        whole, parts = self._digests(scripts)

        if self._files.find(TRAJECTORY):
            why = "agents would start without what happened before: it is not given to them"
            self._refused.error(TRAJECTORY, "", why)
        unsupported = few((*self._refused.problems, *blueprint.refusals))
        metadata = {"benchmark": self._context.benchmark, "source": "folder", **task.labels(), "digest": whole}
        return whole, {
            "id": identity,
            "name": self._name,
            "metadata": metadata | ({"unsupported": unsupported} if unsupported else {}),
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
            "_parts": parts,
            "_scorers": scripts,
            "_scoring": plan,
            **({"_unsupported": unsupported} if unsupported else {}),
        }

    def _solution(self, task: Task, working_directory: str) -> str | None:
        program, files = f"solution/{SOLUTION_PROGRAM}", self._files.below("solution")
        if not files.nodes:
            self._report.warn(program, "", "is missing: the oracle agent cannot check this scenario")
            return None
        if not _has_program(files, SOLUTION_PROGRAM):
            self._report.error(program, "", "is missing, though solution/ has other files")
            return None
        archive = self._packed("solution", files, SOLUTION_PROGRAM, self._report.warn)
        return self_extracting.solution_script(
            archive, working_directory=working_directory, variables=task.solution_env
        )

    def _scoring(self, task: Task, working_directory: str) -> tuple[scoring_plan.ScoringPlan, Document]:
        """Return the plan and the contract of the same scoring: tests/test.sh, or the [[scorers]] in its place."""
        files, tests, report = self._files.below("tests"), None, self._report
        images = [(FILE, "verifier.environment.docker_image")] if task.verifier_image is not None else []
        images += [(f"tests/{name}", "") for name in ("Dockerfile", *COMPOSE) if files.find(name)]
        has_image = task.scoring_mode is ScoringMode.SEPARATE and bool(images)
        if has_image:
            why = "a verifier with an image of its own is not supported: let it use the environment's"
            self._refused.error(*images[0], why)

        if task.scorers:
            if task.verifier_env:
                report.warn(FILE, "verifier.env", "ignored: it is for tests/test.sh, and [[scorers]] replaces that")
            types = self._context.custom_scorers
            tables = scoring_plan.ScorerTables(tests=files, contents=self._contents, custom_types=types, report=report)
            contract = tables.contract(task.scorers)
        elif task.has_steps:  # which was reported, and each of them has tests of its own
            tests, contract = scoring_plan.Tests(archive=b""), {"scoring_function_parameters": []}
        else:
            if not _has_program(files, scoring_plan.TESTS_PROGRAM):
                why = "is missing: write it, or describe [[scorers]] in task.toml"
                report.error(f"tests/{scoring_plan.TESTS_PROGRAM}", "", why)
            archive = self._packed("tests", files, scoring_plan.TESTS_PROGRAM, report.error)
            tests = scoring_plan.Tests(archive=archive, variables=task.verifier_env)
            script = self_extracting.tests_script(
                archive, working_directory=working_directory, variables=task.verifier_env
            )
            scorer = {"type": "bash_script_scorer", "bash_script": script}
            contract = {"scoring_function_parameters": [{"name": "tests", "weight": 1.0, "scorer": scorer}]}
        plan = scoring_plan.ScoringPlan(
            mode=task.scoring_mode,
            artifacts=task.artifacts,
            collect=task.collect,
            tests=tests,
        )
        return plan, contract

    def _packed(self, name: str, files: Listing, program: str, tell: Callable[[str, str, str], None]) -> bytes:
        """Pack tests/ or solution/ for its way to a devbox, where `program` is executed, and so executable.

        A first line of the program that the kernel does not understand goes to `tell`.
        """
        if files.size > self_extracting.MAX_UNPACKED_BYTES:  # which was reported
            return b""

        def read(node: Node) -> bytes:
            return self._read(f"{name}/{node.path}", node, self_extracting.MAX_UNPACKED_BYTES) or b""

        found = files.find(program)
        if found and found.kind == "file" and (mistake := self_extracting.first_line_mistake(read(found))):
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


def _has_program(files: Listing, name: str) -> bool:
    node = files.find(name)
    return node is not None and node.kind != "folder"


def read_blueprint(task: Task, files: Listing, report: Report, contents: Contents, *, name: str) -> Blueprint:
    """Read `environment/`, whose files are `files`; what forbids building it goes to `report` and into the blueprint.

    `contents` are the scenario's files read already, and an image gets its `name`.
    """
    own, usual = Report(), Resources()
    resources = Resources(  # as asked for; the wire's sizes are coarser
        cpus=task.cpus or usual.cpus,
        memory=int((task.memory_mb or usual.memory / _MIB) * _MIB),
        disk=int((task.storage_mb or usual.disk / _MIB) * _MIB),
    )
    for key, why in task.refusals:
        if key.startswith("environment."):
            own.error(FILE, key, why)
    image = _image(task, files, contents, own)
    if image is None and task.workdir and task.workdir.split("/")[1] in SYSTEM:
        own.error(FILE, "environment.workdir", f"{task.workdir} is the system's and read-only in a devbox; use /app")
    setup = _text(files, SETUP, contents, own) if image is None else None
    if setup is not None and (mistake := self_extracting.first_line_mistake(setup.encode())):
        own.error(f"environment/{SETUP}", "line 1", mistake)
    if files.size > resources.disk:  # and so it is not read
        why = f"has {files.size:,} bytes, and a devbox's disk {resources.disk:,}"
        own.error("environment/", "", f"{why}: raise environment.storage_mb in {FILE}")
        for node in files.nodes:
            contents.skip(node)
    else:
        _hash(files.nodes, contents, own, "environment/")
    report.problems += own.problems

    working_directory = task.workdir or ("" if image else WORKING_DIRECTORY)
    content = digest(files.nodes, contents.digests)
    known = [_BLUEPRINT_VERSION, content, working_directory, task.variables]
    known += [task.network, setup, resources, task.build_timeout, *task.hosts]
    known += [image.text, image.ignore, task.user, task.verifier_user] if image else []
    known += [task.healthcheck] if task.healthcheck else []
    known += [str(error) for error in own.errors]  # or what can be built elsewhere would be taken for it
    return Blueprint(
        id=f"bpt_{hashlib.sha256(orjson.dumps(known, option=orjson.OPT_SORT_KEYS)).hexdigest()[:20]}",
        files=files,
        content=content,
        image=replace(image, name=name) if image else None,
        agent_user=task.user,
        verifier_user=task.verifier_user,
        working_directory=working_directory,
        environment=task.variables,
        network=task.network,
        hosts=task.hosts,
        setup=() if setup is None else (setup,),
        healthcheck=task.healthcheck,
        resources=resources,
        build_timeout=task.build_timeout,
        refusals=tuple(own.errors),
    )


def _image(task: Task, files: Listing, contents: Contents, report: Report) -> ImageRecipe | None:
    """Read how the environment's image is made; None where the machine's own system is enough.

    An image that is named is fetched, and the files of `environment/` are put into its working directory unless they
    are those of a Dockerfile, which is for those who build that image.
    """
    has_dockerfile = files.find("Dockerfile") is not None
    for name in COMPOSE[:1] if has_dockerfile else COMPOSE:  # another name may be a file of the task, as anywhere
        if files.find(name):
            why = "several containers are not supported: describe one in a Dockerfile"
            report.error(f"environment/{name}", "", why)
    for path, why in files.faults:
        report.error(f"environment/{path}", "", why)

    dockerfile = _text(files, "Dockerfile", contents, report)
    if task.docker_image:
        try:
            Reference.parse(task.docker_image)
        except BadReference as error:
            report.error(FILE, "environment.docker_image", str(error))
            return None
        lines = [f"FROM {task.docker_image}"]
        if dockerfile is None and files.nodes:
            lines += [*([f"WORKDIR {task.workdir}"] if task.workdir else []), "COPY . ./"]
        return ImageRecipe(text="\n".join(lines), file=f"{FILE}: environment.docker_image")
    if dockerfile is None:
        return None
    ignore = next((name for name in (f"Dockerfile{IGNORE}", IGNORE) if files.find(name)), "")
    rules = (_text(files, ignore, contents, report) or "") if ignore else ""
    recipe = ImageRecipe(text=dockerfile, file=DOCKERFILE, ignore=rules)
    try:
        context = recipe.context(files, contents)
    except ValueError as error:
        report.error(f"environment/{ignore}", "", str(error))
        return recipe
    try:
        mistakes = refusals(plan_text(dockerfile, context, file=DOCKERFILE, platform=str(ours())))
    except DockerfileError as error:
        mistakes = list(error.mistakes)
    for line, mistake in mistakes:
        report.error(DOCKERFILE, f"line {line}", mistake)
    return recipe


def _hash(nodes: Iterable[Node], contents: Contents, report: Report, base: str = "") -> None:
    """Hash files for a digest; their paths start at the folder `base` of the scenario."""
    for node in nodes:
        try:
            if node.kind == "file":
                contents.hash(node)
        except OSError as error:
            report.error(f"{base}{node.path}", "", complaint(error))
            contents.skip(node)


def _text(files: Listing, name: str, contents: Contents, report: Report) -> str | None:
    """Read a file of `environment/` as text; None if it is not there, or cannot be read."""
    node = files.find(name)
    if node is None:
        return None
    try:
        return contents.read(node, MAX_SOURCE_BYTES).decode()
    except OSError as error:
        report.error(f"environment/{name}", "", complaint(error))
        contents.skip(node)
    except UnicodeDecodeError as error:
        report.error(f"environment/{name}", "", f"is not UTF-8 text: {error.reason} at byte {error.start}")
    return None
