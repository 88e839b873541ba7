"""What a scenario's `environment/` asks for, read without building anything.

A blueprint's id is a digest of all that decides what a devbox starts from, so an environment built once stays right for
ever, and two scenarios with the same environment share it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from orchestrator.service.content import Contents, Listing, complaint, digest
from orchestrator.service.definitions.self_extracting import first_line_mistake
from orchestrator.service.definitions.task_toml import FILE as TASK
from orchestrator.service.definitions.task_toml import Task
from orchestrator.service.diagnostics import Problem, Report
from orchestrator.service.environments.dockercopy import Context
from orchestrator.service.environments.dockerfile import FILE as DOCKERFILE
from orchestrator.service.environments.dockerfile import WORKING_DIRECTORY, Copy, Recipe, Step, read_dockerfile
from orchestrator.service.environments.dockerlines import Mistake
from orchestrator.service.sandbox.folders import SYSTEM
from orchestrator.service.sandbox.prepared import Healthcheck
from orchestrator.service.sandbox.provider import Resources

SETUP: Final = "setup.sh"
MEBI: Final = 1 << 20
#: Bytes of a file that is read as text: Dockerfile, .dockerignore, setup.sh.
MAX_TEXT: Final = MEBI
#: Changes when the same environment would be built in another way.
_VERSION: Final = 1
COMPOSE: Final = ("docker-compose.yaml", "docker-compose.yml", "compose.yaml", "compose.yml")
_NEVER_COPIED: Final = frozenset({SETUP, ".dockerignore", *COMPOSE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """What is needed to prepare an environment; `files` are those of `environment/`, `content` is their digest.

    `refusals` are the reasons, if any, why it cannot be built here; nothing else of it counts then.
    """

    id: str
    files: Listing
    content: str
    steps: tuple[Step, ...] = ()
    working_directory: str = WORKING_DIRECTORY
    environment: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    hosts: tuple[str, ...] = ()
    setup: str | None = None
    healthcheck: Healthcheck | None = None
    resources: Resources = field(default_factory=Resources)
    build_timeout: float = 600.0
    refusals: tuple[Problem, ...] = ()


def read_blueprint(task: Task, files: Listing, report: Report, contents: Contents) -> Blueprint:
    """Read `environment/`; what forbids building it goes to `report` and into the blueprint.

    `contents` are the scenario's files read already.
    """
    own = Report()
    resources = _resources(task)
    for key, why in task.refusals:
        if key.startswith("environment."):
            own.error(TASK, key, why)
    if task.workdir and task.workdir.split("/")[1] in SYSTEM:
        own.error(TASK, "environment.workdir", f"{task.workdir} is the system's and read-only in a devbox; use /app")
    recipe = _recipe(task, files, contents, own)
    setup = _setup(files, recipe, contents, own)
    _take_in(files, resources.disk, contents, own)
    report.problems += own.problems
    working_directory = task.workdir or recipe.working_directory
    content = digest(files.nodes, contents.digests)
    known = [_VERSION, content, working_directory, {**recipe.environment, **task.variables}]
    known += [task.network, setup, resources, task.build_timeout, *task.hosts]
    known += [task.healthcheck] if task.healthcheck else []
    known += [str(error) for error in own.errors]  # or what can be built elsewhere would be taken for it
    return Blueprint(
        id=f"bpt_{hashlib.sha256(orjson.dumps(known, option=orjson.OPT_SORT_KEYS)).hexdigest()[:20]}",
        files=files,
        content=content,
        steps=recipe.steps,
        working_directory=working_directory,
        environment={**recipe.environment, **task.variables},
        network=task.network,
        hosts=task.hosts,
        setup=setup,
        healthcheck=task.healthcheck,
        resources=resources,
        build_timeout=task.build_timeout,
        refusals=tuple(own.errors),
    )


def context(blueprint: Blueprint) -> Context:
    """The files that the blueprint's steps may copy. Raises Mistake and OSError."""
    return _context(blueprint.files, Contents(), has_setup=blueprint.setup is not None)


def _take_in(files: Listing, room: int, contents: Contents, report: Report) -> None:
    """Take in what the digest is to tell of. More than a devbox has room for is not read."""
    is_too_large = files.size > room
    if is_too_large:
        why = f"has {files.size:,} bytes, and a devbox's disk {room:,}: raise environment.storage_mb in {TASK}"
        report.error("environment/", "", why)
    for node in files.nodes:
        if node.kind != "file":
            continue
        try:
            if is_too_large:
                contents.skip(node)
            else:
                contents.hash(node)
        except OSError as error:
            report.error(f"environment/{node.path}", "", complaint(error))
            contents.skip(node)


def _context(files: Listing, contents: Contents, *, has_setup: bool) -> Context:
    if files.find("Dockerfile") is None:
        return Context.of(files, without=_NEVER_COPIED)
    ignore = files.find(".dockerignore")
    text = contents.read(ignore, MAX_TEXT).decode(errors="replace") if ignore and ignore.kind == "file" else ""
    return Context.of(files, without=frozenset({SETUP} if has_setup else ()), ignore=text)


def _recipe(task: Task, files: Listing, contents: Contents, report: Report) -> Recipe:
    for name in COMPOSE:
        if files.find(name):
            report.error(
                f"environment/{name}", "", "several containers are not supported: describe one in a Dockerfile"
            )
    for path, why in files.faults:
        report.error(f"environment/{path}", "", why)
    dockerfile = _text(files, "Dockerfile", contents, report)
    if dockerfile is None:
        return _plain_recipe(task, report)
    if task.docker_image:
        report.note(TASK, "environment.docker_image", "not fetched: the environment is built from the Dockerfile")
    recipe = read_dockerfile(dockerfile, report)
    _judge_sources(recipe, files, contents, report)
    return recipe


def _plain_recipe(task: Task, report: Report) -> Recipe:
    """Without a Dockerfile, the files of `environment/` appear in the working directory."""
    if task.docker_image:
        report.error(
            TASK,
            "environment.docker_image",
            f"{task.docker_image} cannot be fetched: put what it holds into environment/, with a Dockerfile if it "
            "takes more than copying, and leave the key out",
        )
    target = task.workdir or WORKING_DIRECTORY
    copy = Copy(line=0, text="", sources=(".",), target=target, is_folder=True)
    return Recipe(steps=(copy,), working_directory=target)


def _judge_sources(recipe: Recipe, files: Listing, contents: Contents, report: Report) -> None:
    """Sources that mean nothing are known before anything is built."""
    has_setup = files.find(SETUP) is not None and not recipe.owns_setup
    try:
        available = _context(files, contents, has_setup=has_setup)
    except Mistake as mistake:
        report.error("environment/.dockerignore", "", str(mistake))
        return
    except OSError as error:
        report.error("environment/.dockerignore", "", complaint(error))
        return
    for step in recipe.steps:
        if isinstance(step, Copy):
            try:
                available.select(step)
            except Mistake as mistake:
                report.error(DOCKERFILE, f"line {step.line}", f"{step.text}: {mistake}")


def _setup(files: Listing, recipe: Recipe, contents: Contents, report: Report) -> str | None:
    if recipe.owns_setup:
        if files.find(SETUP):
            report.note(f"environment/{SETUP}", "", "the Dockerfile uses it, so it does not run again in the devbox")
        return None
    script = _text(files, SETUP, contents, report)
    if script is not None and (mistake := first_line_mistake(script.encode())):
        report.error(f"environment/{SETUP}", "line 1", mistake)
    return script


def _text(files: Listing, name: str, contents: Contents, report: Report) -> str | None:
    node = files.find(name)
    if node is None:
        return None
    try:
        return contents.read(node, MAX_TEXT).decode()
    except OSError as error:
        report.error(f"environment/{name}", "", complaint(error))
        contents.skip(node)
    except UnicodeDecodeError as error:
        report.error(f"environment/{name}", "", f"is not UTF-8 text: {error.reason} at byte {error.start}")
    return None


def _resources(task: Task) -> Resources:
    """The sizes asked for as they are; the wire's are coarser."""
    usual = Resources()
    return Resources(
        cpus=task.cpus or usual.cpus,
        memory=int((task.memory_mb or usual.memory / MEBI) * MEBI),
        disk=int((task.storage_mb or usual.disk / MEBI) * MEBI),
    )
