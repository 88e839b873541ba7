"""Environments of devboxes: an image that is fetched or built, or a tree of files on this machine's own system.

An environment with a Dockerfile, or an image, is built of layers that all services of this user share (`image_builds`).
Any other one is a copy of its files, kept by the id of its blueprint, which is a digest of all that decides what a
devbox starts from: built once, it stays right for ever, and two scenarios with the same environment share it.
"""

import hashlib
import re
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import msgspec
import structlog
from anyio.to_thread import run_sync

from orchestrator.core.protocol import Mirror
from orchestrator.service.content import Contents, Listing, digest
from orchestrator.service.diagnostics import Problem, text
from orchestrator.service.environments.build_context import BuildContext
from orchestrator.service.environments.image_builds import BuildSource, ImageBuilds, Tell, untold
from orchestrator.service.environments.images.image_store import open_images
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.room_estimate import Recipe, RoomEstimate, estimate
from orchestrator.service.errors import Away, NotFound
from orchestrator.service.sandbox.build_cache import BuildCache, Built
from orchestrator.service.sandbox.prepared import Healthcheck, Preparation, Prepared
from orchestrator.service.sandbox.provider import BoxStartFailed, Capability, Provider, Resources

SETUP: Final = "setup.sh"
COMPOSE: Final = ("docker-compose.yaml", "docker-compose.yml", "compose.yaml", "compose.yml")
#: Bytes of a file that is read as text: Dockerfile, .dockerignore, setup.sh.
MAX_SOURCE_BYTES: Final = 1 << 20
#: Characters of a scenario's name in that of its image.
_NAME_CHARS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """How the image of an environment is made: the `text` of a Dockerfile, and of its .dockerignore.

    `file` is the name that messages give it, and `name` a name for people. `arguments` are the values of its ARGs. Its
    context is a `folder` of the environment's files, or all of them.
    """

    text: str
    file: str
    ignore: str = ""
    name: str = "image"
    arguments: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""

    def context(self, files: Listing, contents: Contents) -> BuildContext:
        """Return the files that it may copy. Raises ValueError naming a bad pattern of its .dockerignore."""
        return BuildContext(files.below(self.folder) if self.folder else files, contents, ignore=self.ignore)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """The plan of an environment; `files` are those of `environment/`, `content` is their digest.

    With an `image` the files are for that, and an empty `working_directory` or user is the image's own. Without one
    they are laid into the working directory; `mounts` and `setup` are then as in `Prepared`. `refusals` are the
    reasons, if any, why it cannot be built here; nothing else of it counts then. `build_timeout` is in seconds, for all
    steps together; `limit` names it in messages. A build says to `tell` how far it is. `has_tests` is as in `Prepared`.
    """

    id: str
    files: Listing
    content: str
    image: ImageRecipe | None = None
    agent_user: str = ""
    verifier_user: str = ""
    working_directory: str
    environment: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    hosts: tuple[str, ...] = ()
    mounts: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    healthcheck: Healthcheck | None = None
    resources: Resources = field(default_factory=Resources)
    build_timeout: float = 600.0
    limit: str = "environment.build_timeout_sec in task.toml"
    tell: Tell = untold
    has_tests: bool = False
    refusals: tuple[Problem, ...] = ()


FindBlueprint = Callable[[str], Awaitable[Blueprint | None]]


class _Description(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that are kept of an environment; those of older versions have no hosts and health checks."""

    blueprint: str = ""
    working_directory: str
    environment: dict[str, str]
    network: bool
    hosts: tuple[str, ...] = ()
    mounts: dict[str, str] = {}
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
            mounts=dict(blueprint.mounts),
            setup=blueprint.setup,
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
            files=kept.mounts,
            setup=kept.setup,
            healthcheck=kept.healthcheck,
            resources=kept.resources,
        )


class Environments:
    """Prepared environments by the ids of their blueprints, which `find_blueprint` knows; use `async with`.

    `cache` is the service's cache folder, `shared` that of all services of this user. `mirrors` are asked for images
    before their registries, and `budget` are the bytes that all images may take.
    """

    def __init__(
        self,
        *,
        find_blueprint: FindBlueprint,
        provider: Provider,
        cache: Path,
        shared: Path,
        mirrors: Sequence[Mirror] = (),
        budget: int | None = None,
    ) -> None:
        self._find_blueprint = find_blueprint
        self._provider = provider
        self._folder = cache / "environments"
        self._cache = BuildCache(self._folder, kind="environment", tree="root", read=_Description.prepared)
        self._open_images = partial(open_images, shared, mirrors, budget)
        self._opened = AsyncExitStack()
        self._opening = anyio.Lock()
        self._builds: ImageBuilds | None = None
        self._built: dict[str, Prepared] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    async def prepare(self, blueprint_id: str, preparation: Preparation) -> Prepared:
        """Return the environment that a devbox of this blueprint starts from, built now if it is not there.

        Raises NotFound for an unknown blueprint, BoxStartFailed naming file and line when it cannot be built, and Away.
        """
        known = self._built.get(blueprint_id)
        if known and known.image and self._builds and await self._builds.hold(known.image, preparation):
            return known
        name = hashlib.sha256(f"{blueprint_id} {self._provider.name}".encode()).hexdigest()[:20]
        if (found := await run_sync(self._cache.find, name)) is not None:
            return found
        blueprint = await self._find_blueprint(blueprint_id)
        if blueprint is None:
            why = "it was deleted, or the folder of its scenario is gone or was changed"
            raise NotFound(f"There is no blueprint {blueprint_id!r}: {why}.")
        if blueprint.refusals:
            raise BoxStartFailed(f"This environment cannot be built here: {text(blueprint.refusals)}.")
        try:
            if blueprint.image is None:
                return await self._cache.get(name, partial(_lay_out, blueprint))
            prepared = self._built[blueprint_id] = await self._prepare_image(blueprint, blueprint.image, preparation)
        except (BoxStartFailed, OSError) as error:
            await self._find_blueprint(blueprint_id)  # raises Away if its folder is not there
            if isinstance(error, OSError):
                raise BoxStartFailed(f"The environment could not be built: {error}") from error
            raise
        return prepared

    async def room_for(self, blueprint_ids: Sequence[str]) -> RoomEstimate:
        """Say how much room the images of environments want. Raises BoxStartFailed."""
        recipes: dict[Reference, Recipe] = {}
        for identity in dict.fromkeys(blueprint_ids):
            with suppress(Away):
                blueprint = await self._find_blueprint(identity)
                if blueprint is not None and blueprint.image is not None and not blueprint.refusals:
                    recipe = blueprint.image
                    recipes[built_reference(recipe.name, identity)] = (recipe.text, recipe.arguments)
        if not recipes or Capability.IMAGES not in self._provider.capabilities:
            return RoomEstimate()
        try:
            return await estimate((await self._opened_builds()).store, recipes)
        except OSError as error:
            raise BoxStartFailed(f"The room for images could not be estimated: {error}") from error

    async def _opened_builds(self) -> ImageBuilds:
        """Raises BoxStartFailed."""
        async with self._opening:
            if self._builds is None:
                store = await self._opened.enter_async_context(self._open_images())
                self._builds = ImageBuilds(store, self._provider)
            return self._builds

    async def _prepare_image(self, blueprint: Blueprint, recipe: ImageRecipe, preparation: Preparation) -> Prepared:
        """Raises BoxStartFailed and OSError."""
        if Capability.IMAGES not in self._provider.capabilities:
            raise BoxStartFailed(
                f"{recipe.file} asks for an image, which needs devboxes with walls: leave out --isolation none"
            )
        builds = await self._opened_builds()
        started = anyio.current_time()
        source = BuildSource(
            text=recipe.text,
            file=recipe.file,
            reference=built_reference(recipe.name, blueprint.id),
            context=recipe.context(blueprint.files, Contents()),
            resources=blueprint.resources,
            timeout=blueprint.build_timeout,
            limit=blueprint.limit,
            arguments=recipe.arguments,
            tell=blueprint.tell,
        )
        built = await builds.build(source, preparation)
        await run_sync(_check_unchanged, blueprint)
        seconds = round(anyio.current_time() - started, 3)
        structlog.get_logger().info("environment.built", blueprint=blueprint.id, seconds=seconds)
        layers = " ".join(map(str, built.root.layers))
        return Prepared(
            name=hashlib.sha256(f"{blueprint.id} {layers}".encode()).hexdigest()[:20],
            image=built.root,
            agent_user=blueprint.agent_user or built.config.user,
            verifier_user=blueprint.verifier_user or built.config.user,
            working_directory=blueprint.working_directory or built.config.working_directory or "/",
            environment={**built.config.environment, **blueprint.environment},
            network=blueprint.network,
            hosts=blueprint.hosts,
            healthcheck=blueprint.healthcheck,
            resources=blueprint.resources,
            has_tests=blueprint.has_tests,
        )


def built_reference(name: str, key: str) -> Reference:
    """Return the name of an image that is built here; `key` is what decides its content."""
    words = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:_NAME_CHARS].strip("-")
    return Reference.parse(f"localhost/built/{words or 'image'}:{key}")


async def _lay_out(blueprint: Blueprint, folder: Path) -> Built:
    """Lay the files of an environment into its working directory, in a tree in `folder`.

    Raises BoxStartFailed and OSError.
    """

    def copy() -> None:
        top = folder / "tree"
        place = top / blueprint.working_directory.strip("/")
        place.mkdir(parents=True)
        for above in (place, *place.parents):
            if above.is_relative_to(top):
                above.chmod(0o755)
        for node in blueprint.files.nodes:
            if node.path in {SETUP, ".dockerignore", *COMPOSE}:
                continue
            if node.kind == "folder":
                (place / node.path).mkdir()
            elif node.kind == "link":
                (place / node.path).symlink_to(node.target)
            else:
                shutil.copyfile(node.source, place / node.path)
            if node.kind != "link":
                (place / node.path).chmod(node.mode)

    await run_sync(copy)
    await run_sync(_check_unchanged, blueprint)
    return Built(tree=folder / "tree", facts=msgspec.to_builtins(_Description.of(blueprint)))


def _check_unchanged(blueprint: Blueprint) -> None:
    """Raise BoxStartFailed if the files are not those of the blueprint any more. Raises OSError."""
    if digest(blueprint.files.nodes) != blueprint.content:
        raise BoxStartFailed("The files in environment/ were changed while they were copied.")
