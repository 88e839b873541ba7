"""The `environment/` of a scenario, read into a blueprint without building anything."""

import hashlib
from typing import Final

import orjson

from orchestrator.service.content import Contents, Listing, complaint, digest
from orchestrator.service.definitions.self_extracting import first_line_mistake
from orchestrator.service.definitions.task_toml import FILE as TASK
from orchestrator.service.definitions.task_toml import Task
from orchestrator.service.diagnostics import Report
from orchestrator.service.environments.dockerfile import FILE as DOCKERFILE
from orchestrator.service.environments.dockerfile import WORKING_DIRECTORY, Copy, Recipe, read_dockerfile
from orchestrator.service.environments.dockerlines import Mistake
from orchestrator.service.environments.environments import COMPOSE, MAX_TEXT_BYTES, SETUP, Blueprint, copyable
from orchestrator.service.sandbox.folders import SYSTEM
from orchestrator.service.sandbox.provider import Resources

#: Changes when the same environment would be built in another way.
_VERSION: Final = 1
_MIB: Final = 1 << 20


def read_blueprint(task: Task, files: Listing, report: Report, contents: Contents) -> Blueprint:
    """Read `environment/`, whose files are `files`; what forbids building it goes to `report` and into the blueprint.

    `contents` are the scenario's files read already.
    """
    own, usual = Report(), Resources()
    resources = Resources(  # as asked for; the wire's sizes are coarser
        cpus=task.cpus or usual.cpus,
        memory=int((task.memory_mb or usual.memory / _MIB) * _MIB),
        disk=int((task.storage_mb or usual.disk / _MIB) * _MIB),
    )
    for key, why in task.refusals:
        if key.startswith("environment."):
            own.error(TASK, key, why)
    if task.workdir and task.workdir.split("/")[1] in SYSTEM:
        own.error(TASK, "environment.workdir", f"{task.workdir} is the system's and read-only in a devbox; use /app")

    recipe = _recipe(task, files, contents, own)
    setup = _setup(files, recipe, contents, own)
    _hash_files(files, resources.disk, contents, own)
    report.problems += own.problems

    working_directory = task.workdir or recipe.working_directory
    environment = {**recipe.environment, **task.variables}
    content = digest(files.nodes, contents.digests)
    known = [_VERSION, content, working_directory, environment]
    known += [task.network, setup, resources, task.build_timeout, *task.hosts]
    known += [task.healthcheck] if task.healthcheck else []
    known += [str(error) for error in own.errors]  # or what can be built elsewhere would be taken for it
    return Blueprint(
        id=f"bpt_{hashlib.sha256(orjson.dumps(known, option=orjson.OPT_SORT_KEYS)).hexdigest()[:20]}",
        files=files,
        content=content,
        steps=recipe.steps,
        working_directory=working_directory,
        environment=environment,
        network=task.network,
        hosts=task.hosts,
        setup=setup,
        healthcheck=task.healthcheck,
        resources=resources,
        build_timeout=task.build_timeout,
        refusals=tuple(own.errors),
    )


def _recipe(task: Task, files: Listing, contents: Contents, report: Report) -> Recipe:
    """Read the Dockerfile; without one, the files of `environment/` appear in the working directory."""
    for name in COMPOSE:
        if files.find(name):
            why = "several containers are not supported: describe one in a Dockerfile"
            report.error(f"environment/{name}", "", why)
    for path, why in files.faults:
        report.error(f"environment/{path}", "", why)

    dockerfile = _text(files, "Dockerfile", contents, report)
    if dockerfile is None:
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

    if task.docker_image:
        report.note(TASK, "environment.docker_image", "not fetched: the environment is built from the Dockerfile")
    recipe = read_dockerfile(dockerfile, report)
    has_setup = files.find(SETUP) is not None and not recipe.owns_setup
    try:
        available = copyable(files, contents, has_setup=has_setup)
    except (Mistake, OSError) as error:
        report.error("environment/.dockerignore", "", str(error) if isinstance(error, Mistake) else complaint(error))
        return recipe
    for step in recipe.steps:
        if isinstance(step, Copy):
            try:
                available.select(step)
            except Mistake as mistake:
                report.error(DOCKERFILE, f"line {step.line}", f"{step.text}: {mistake}")
    return recipe


def _setup(files: Listing, recipe: Recipe, contents: Contents, report: Report) -> str | None:
    """Read the script that runs in each devbox; None if the Dockerfile uses it."""
    if recipe.owns_setup:
        if files.find(SETUP):
            report.note(f"environment/{SETUP}", "", "the Dockerfile uses it, so it does not run again in the devbox")
        return None
    script = _text(files, SETUP, contents, report)
    if script is not None and (mistake := first_line_mistake(script.encode())):
        report.error(f"environment/{SETUP}", "line 1", mistake)
    return script


def _hash_files(files: Listing, room: int, contents: Contents, report: Report) -> None:
    """Hash all files for the digest. More than a devbox has room for is not read."""
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


def _text(files: Listing, name: str, contents: Contents, report: Report) -> str | None:
    """Read a file of `environment/` as text; None if it is not there, or cannot be read."""
    node = files.find(name)
    if node is None:
        return None
    try:
        return contents.read(node, MAX_TEXT_BYTES).decode()
    except OSError as error:
        report.error(f"environment/{name}", "", complaint(error))
        contents.skip(node)
    except UnicodeDecodeError as error:
        report.error(f"environment/{name}", "", f"is not UTF-8 text: {error.reason} at byte {error.start}")
    return None
