"""Environments of scenarios, each built once: folders and copies on this machine's disk, commands in boxes.

Commands see exactly what a devbox will see (the same provider, no network, the tree built so far), so that what works
here works there. Commands in a row share a box; a copy between them is made on the tree that came out of it.

The id of a blueprint is a digest of all that decides what a devbox starts from, so an environment built once stays
right for ever, and two scenarios with the same environment share it.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from secrets import token_hex
from typing import Final, Self

import anyio
import msgspec
import structlog
from anyio.to_thread import run_sync

from orchestrator.service.content import Contents, Listing, digest
from orchestrator.service.diagnostics import Problem, text
from orchestrator.service.environments import dockercopy, dockerfile, dockerlines
from orchestrator.service.environments.build_cache import BuildCache, Built
from orchestrator.service.environments.package_managers import covers
from orchestrator.service.errors import NotFound
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.folders import LOGS
from orchestrator.service.sandbox.prepared import Healthcheck, Prepared
from orchestrator.service.sandbox.provider import (
    Box,
    BoxDied,
    BoxSpec,
    BoxStartFailed,
    Capability,
    Command,
    Provider,
    Resources,
)
from orchestrator.service.sandbox.safe_fs import remove

SETUP: Final = "setup.sh"
COMPOSE: Final = ("docker-compose.yaml", "docker-compose.yml", "compose.yaml", "compose.yml")
#: Bytes of a file that is read as text: Dockerfile, .dockerignore, setup.sh.
MAX_SOURCE_BYTES: Final = 1 << 20
_PATH_LIMIT_S: Final = 30
#: Characters of a command's output, its end, that a message shows.
_SHOWN_CHARS: Final = 2000
#: Every box has these folders; empty, they say nothing about the environment.
_OWN: Final = (*(path[1:] for path in LOGS), "tmp", "tests", "solution", "logs")
_HINT: Final = "Only /app, /home/user, /tmp and the folders that WORKDIR or COPY name can be written in a devbox."


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """The plan of an environment; `files` are those of `environment/`, `content` is their digest.

    `refusals` are the reasons, if any, why it cannot be built here; nothing else of it counts then. `build_timeout` is
    in seconds, for all steps together.
    """

    id: str
    files: Listing
    content: str
    steps: tuple[dockerfile.Step, ...] = ()
    working_directory: str = dockerfile.WORKING_DIRECTORY
    environment: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    hosts: tuple[str, ...] = ()
    setup: str | None = None
    healthcheck: Healthcheck | None = None
    resources: Resources = field(default_factory=Resources)
    build_timeout: float = 600.0
    refusals: tuple[Problem, ...] = ()


def copyable(files: Listing, contents: Contents, *, has_setup: bool) -> dockercopy.Context:
    """Return the files of `environment/` that steps may copy. Raises Mistake and OSError."""
    if files.find("Dockerfile") is None:
        return dockercopy.Context.of(files, without=frozenset({SETUP, ".dockerignore", *COMPOSE}))
    ignore = files.find(".dockerignore")
    rules = contents.read(ignore, MAX_SOURCE_BYTES).decode(errors="replace") if ignore and ignore.kind == "file" else ""
    return dockercopy.Context.of(files, without=frozenset({SETUP} if has_setup else ()), ignore=rules)


FindBlueprint = Callable[[str], Awaitable[Blueprint | None]]


class _Description(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that are kept of an environment; those of older versions have no hosts and health checks."""

    blueprint: str = ""
    working_directory: str
    environment: dict[str, str]
    network: bool
    hosts: tuple[str, ...] = ()
    setup: tuple[str, ...]
    healthcheck: Healthcheck | None = None
    resources: Resources

    @classmethod
    def of(cls, blueprint: Blueprint) -> Self:
        return cls(
            blueprint=blueprint.id,
            working_directory=blueprint.working_directory,
            environment=dict(blueprint.environment),
            network=blueprint.network,
            hosts=blueprint.hosts,
            setup=(blueprint.setup,) if blueprint.setup is not None else (),
            healthcheck=blueprint.healthcheck,
            resources=blueprint.resources,
        )

    @classmethod
    def prepared(cls, built: Built) -> Prepared:
        """Read a description that was kept. Raises ValueError."""
        kept = msgspec.convert(built.facts, cls)
        return Prepared(
            name=built.tree.parent.name,
            root=built.tree,
            working_directory=kept.working_directory,
            environment=kept.environment,
            network=kept.network,
            hosts=kept.hosts,
            setup=kept.setup,
            healthcheck=kept.healthcheck,
            resources=kept.resources,
        )


class Environments:
    """Prepared environments by the ids of their blueprints, which `find_blueprint` knows.

    `cache` is the service's cache folder.
    """

    def __init__(self, *, find_blueprint: FindBlueprint, provider: Provider, cache: Path) -> None:
        self._find_blueprint = find_blueprint
        self._provider = provider
        self._folder = cache / "environments"
        self._cache = BuildCache(self._folder, kind="environment", tree="root", read=_Description.prepared)

    async def prepare(self, blueprint_id: str) -> Prepared:
        """Return the environment that a devbox of this blueprint starts from, built now if it never was.

        Raises NotFound for an unknown blueprint, BoxStartFailed naming file and line when it cannot be built, and Away.
        """

        async def build(folder: Path) -> Built:
            started = anyio.current_time()
            blueprint = await self._find_blueprint(blueprint_id)
            if blueprint is None:
                raise NotFound(f"There is no blueprint {blueprint_id!r}: its scenario's folder is gone or was changed.")
            if blueprint.refusals:
                raise BoxStartFailed(f"This environment cannot be built here: {text(blueprint.refusals)}.")
            try:
                blueprint = await with_path(blueprint, self._provider)
                tree = await EnvironmentBuild(blueprint=blueprint, provider=self._provider, folder=folder).carry_out()
            except (BoxStartFailed, OSError):
                await self._find_blueprint(blueprint_id)  # raises Away if its folder is not there
                raise
            seconds = round(anyio.current_time() - started, 3)
            structlog.get_logger().info("environment.built", blueprint=blueprint.id, seconds=seconds)
            return Built(tree=tree, facts=msgspec.to_builtins(_Description.of(blueprint)))

        name = hashlib.sha256(f"{blueprint_id} {self._provider.name}".encode()).hexdigest()[:20]
        try:
            return await self._cache.get(name, build)
        except OSError as error:
            raise BoxStartFailed(f"The environment could not be built in {self._folder}: {error}") from error


async def with_path(blueprint: Blueprint, provider: Provider) -> Blueprint:
    """Return the blueprint with $PATH filled in, which takes a box only where a line of the Dockerfile has it."""
    runs = [step for step in blueprint.steps if isinstance(step, dockerfile.Run)]
    environments = [blueprint.environment, *(step.environment for step in runs)]
    if not any(dockerfile.INHERITED_PATH in value for each in environments for value in each.values()):
        return blueprint

    box = await provider.start(BoxSpec(id=f"build-{token_hex(6)}"))
    try:
        path = (await run(box, Command(argv=("printenv", "PATH")), timeout=_PATH_LIMIT_S)).stdout.decode().strip()
    finally:
        with anyio.CancelScope(shield=True):
            await box.stop()

    def filled(environment: Mapping[str, str]) -> dict[str, str]:
        return {name: value.replace(dockerfile.INHERITED_PATH, path) for name, value in environment.items()}

    steps = [
        replace(step, environment=filled(step.environment)) if isinstance(step, dockerfile.Run) else step
        for step in blueprint.steps
    ]
    return replace(blueprint, environment=filled(blueprint.environment), steps=tuple(steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentBuild:
    """One build of one blueprint in the empty folder `folder`."""

    blueprint: Blueprint
    provider: Provider
    folder: Path

    async def carry_out(self) -> Path:
        """Take all steps and return the tree. Raises BoxStartFailed naming the line that failed, and why; OSError."""
        blueprint = self.blueprint
        deadline = anyio.current_time() + blueprint.build_timeout
        tree = dockercopy.Tree(self.folder / "tree-0")
        await run_sync(tree.root.mkdir)
        try:
            has_setup = blueprint.setup is not None
            available = await run_sync(partial(copyable, blueprint.files, Contents(), has_setup=has_setup))
        except dockerlines.Mistake as mistake:
            raise BoxStartFailed(f"environment/.dockerignore: {mistake}") from None
        await run_sync(tree.make_folder, blueprint.working_directory)

        for number, (is_run, steps) in enumerate(
            groupby(blueprint.steps, lambda step: isinstance(step, dockerfile.Run)), start=1
        ):
            if is_run:
                runs = [step for step in steps if isinstance(step, dockerfile.Run)]
                tree = await self._run(runs, tree, self.folder / f"tree-{number}", deadline)
                continue
            for step in steps:
                try:
                    if isinstance(step, dockerfile.Folder):
                        await run_sync(tree.make_folder, step.path)
                    elif isinstance(step, dockerfile.Copy):
                        await run_sync(tree.copy, step, available)
                except (dockerlines.Mistake, OSError) as error:
                    raise BoxStartFailed(f"{_name(step)}: {error}") from error

        if await run_sync(digest, blueprint.files.nodes) != blueprint.content:
            raise BoxStartFailed("The files in environment/ were changed while they were copied.")
        await run_sync(tree.remove_empty, _OWN)
        return tree.root

    async def _run(
        self, runs: Sequence[dockerfile.Run], tree: dockercopy.Tree, after: Path, deadline: float
    ) -> dockercopy.Tree:
        """Run commands in one box on the tree; return the tree that they left."""
        is_isolated = Capability.ISOLATED in self.provider.capabilities
        spec = BoxSpec(
            id=f"build-{token_hex(6)}",
            resources=self.blueprint.resources,
            network=Capability.NETWORK_OFF not in self.provider.capabilities,
            working_directory=self.blueprint.working_directory,
            root=tree.root,
            binds=await run_sync(covers, self.folder / "nothing") if is_isolated else (),
        )
        box = await self.provider.start(spec)
        try:
            for step in runs:
                await self._run_one(box, step, deadline)
            await run_sync(after.mkdir)
            try:
                await box.export(after)
            except (BoxDied, OSError) as error:
                raise BoxStartFailed(f"{_name(runs[-1])}: its result could not be kept: {error}") from error
        finally:
            with anyio.CancelScope(shield=True):
                await box.stop()
        await run_sync(remove, tree.root)
        return dockercopy.Tree(after)

    async def _run_one(self, box: Box, step: dockerfile.Run, deadline: float) -> None:
        command = Command(argv=step.argv, cwd=step.cwd, environment=step.environment)
        try:
            finished = await run(box, command, timeout=max(0.0, deadline - anyio.current_time()))
        except BoxDied as error:
            raise BoxStartFailed(f"{_name(step)}: its box ended: {error}") from error
        if finished.status == 0:
            return

        why = f"ended with status {finished.status}"
        if finished.is_timed_out:
            limit = f"environment.build_timeout_sec = {self.blueprint.build_timeout:g} in task.toml"
            why = f"ran out of time ({limit}, for all lines together)"
        output = finished.output.strip()[-_SHOWN_CHARS:]
        why += f"\n{output}" if output else ", without output"
        if any(sign in output for sign in ("Read-only file system", "Permission denied")):
            why += f"\n{_HINT}"
        raise BoxStartFailed(f"{_name(step)}: {why}")


def _name(step: dockerfile.Step) -> str:
    """Name a step by its file, its line and its words."""
    if not step.line:
        return "environment/"
    words = f"WORKDIR {step.path}" if isinstance(step, dockerfile.Folder) else step.text
    return f"{dockerfile.FILE}:{step.line}: {words}"
