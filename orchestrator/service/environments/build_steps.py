"""The steps of a build as records, and the key of what each leaves.

Its secret: what decides the content of a layer. A key is a digest of the key before it, the step with all variables
filled in, and the names, modes and contents of the files it reads. Lines, comments, spelling and times of files decide
nothing, so the same chain in two scenarios has the same key, and is built once.

What a step reads from the network is not known before it runs: a key stands for the command, or for the address and
its checksum, as in every builder with a cache.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import orjson

from orchestrator.service.content import Contents, Node
from orchestrator.service.sandbox.prepared import Healthcheck

#: Changes when the same step would leave something else.
_BUILDER_VERSION: Final = 2
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHELL: Final = ("/bin/sh", "-c")


MountKind = Literal["bind", "cache", "tmpfs", "secret"]
Sharing = Literal["shared", "private", "locked"]
Network = Literal["default", "none", "host"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FromImage:
    """An image by its reference, as it was written with the variables filled in; `platform` as in linux/arm64."""

    reference: str
    platform: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FromStage:
    """What another stage leaves, by its number in the file, from 0."""

    number: int


@dataclass(frozen=True, slots=True)
class FromNothing:
    """The empty root that is called `scratch`."""


@dataclass(frozen=True, slots=True)
class FromContext:
    """The folder of files that come with a Dockerfile."""


Base = FromImage | FromStage | FromNothing
Origin = Base | FromContext


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """A file whose text stands in the Dockerfile."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CopySource:
    """One source of a COPY: `path` in its origin, which may be a pattern.

    `files` are what it means in the context, each with its path below the target. Without `is_folder`, the path is the
    file's name, and the target may be the file itself. Sources in a stage or an image are looked up when it is there:
    their `files` are empty.
    """

    path: str
    is_folder: bool = False
    files: tuple[tuple[str, Node], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildMount:
    """What one RUN sees at `target` and no layer keeps.

    A bind shows `source` of `origin`, and a cache begins with it. An `id` names a cache or a secret; a secret with a
    `variable` is in the environment, and in no file unless there is a target too.
    """

    kind: MountKind
    target: str
    origin: Origin
    source: CopySource
    is_read_only: bool
    is_required: bool = False
    id: str = ""
    variable: str = ""
    sharing: Sharing = "shared"
    size_bytes: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """Run a program. `files` are scripts it needs at their absolute paths, executable and in no layer."""

    line: int
    text: str
    argv: tuple[str, ...]
    cwd: str
    user: str
    environment: Mapping[str, str]
    files: tuple[TextFile, ...] = ()
    mounts: tuple[BuildMount, ...] = ()
    network: Network = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStep:
    """Copy from `origin`, and write `texts`, to `target`, which is a folder if it ends with a slash.

    `owner` is that of --chown, and root where it is empty; `mode` is that of --chmod, octal or symbolic, and the
    files' own where it is empty. With `is_unpacking`, a source that is a tar archive, compressed or not, is unpacked
    into the target; its content tells, not its name. With `is_linked`, links in the target's path are not followed.
    """

    line: int
    text: str
    origin: Origin
    sources: tuple[CopySource, ...]
    target: str
    texts: tuple[TextFile, ...] = ()
    owner: str = ""
    mode: str = ""
    exclude: tuple[str, ...] = ()
    keeps_parents: bool = False
    is_linked: bool = False
    is_unpacking: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchStep:
    """Fetch a file, or with `is_git` a repository, to `target`; `checksum` is that of the file, or a commit."""

    line: int
    text: str
    url: str
    target: str
    checksum: str = ""
    is_git: bool = False
    keeps_git_folder: bool = False
    owner: str = ""
    mode: str = ""
    exclude: tuple[str, ...] = ()
    is_linked: bool = False
    is_unpacking: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderStep:
    """Make a folder with those above it unless it is there (WORKDIR)."""

    line: int
    text: str
    path: str
    owner: str


BuildStep = RunStep | CopyStep | FetchStep | FolderStep


def origins_of(step: BuildStep) -> tuple[Origin, ...]:
    """Return where a step reads files, besides the stage that it is in."""
    match step:
        case CopyStep():
            return (step.origin,)
        case RunStep():
            return tuple(mount.origin for mount in step.mounts)
        case _:
            return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildLayer:
    """Steps that leave one layer: one RUN, or copies and folders in a row. `key` names what it leaves."""

    key: str
    steps: tuple[BuildStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """How a container of an image or a stage starts; names of the Dockerfile's instructions.

    None for `entrypoint` and `command` is one that was never set; `on_build` are instructions for the image's children.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    working_directory: str = ""
    user: str = ""
    shell: tuple[str, ...] = DEFAULT_SHELL
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    healthcheck: Healthcheck | None = None
    stop_signal: str = ""
    on_build: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImage:
    """What is known of an image that was fetched: a digest of its content, and its configuration."""

    digest: str
    config: StageConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildStage:
    """One stage; `variables` are what its last command saw, which a stage on top of it sees too.

    `key` names what it leaves: that of its last layer, or of its base.
    """

    number: int
    name: str
    line: int
    base: Base
    layers: tuple[BuildLayer, ...]
    config: StageConfig
    variables: Mapping[str, str]
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """The stages that a target needs, in the order in which they can be built; the target is the last."""

    stages: tuple[BuildStage, ...]

    @property
    def target(self) -> BuildStage:
        return self.stages[-1]

    @property
    def images(self) -> tuple[FromImage, ...]:
        """The images that the build needs: bases, and what COPY --from and mounts name."""
        steps = [step for stage in self.stages for layer in stage.layers for step in layer.steps]
        found = [*(stage.base for stage in self.stages), *(origin for step in steps for origin in origins_of(step))]
        return tuple(dict.fromkeys(each for each in found if isinstance(each, FromImage)))


class Keys:
    """Keys of bases and steps. `digests` are those of the images that are known, by reference."""

    def __init__(self, digests: Mapping[str, str], contents: Contents) -> None:
        self._digests = digests
        self._contents = contents
        self._stages: dict[int, str] = {}

    def add_stage(self, number: int, key: str) -> None:
        self._stages[number] = key

    def of_origin(self, origin: Origin) -> str:
        """Return the key of what a stage starts from, or a COPY reads; an image's is its digest where it is known."""
        match origin:
            case FromImage(reference=reference, platform=platform):
                return _digest(["image", self._digests.get(reference, reference), platform])
            case FromStage(number=number):
                return self._stages[number]
            case FromNothing():
                return _digest(["scratch"])
            case FromContext():
                return "context"

    def of_step(self, previous: str, step: BuildStep) -> str:
        """Return the key of what is there after a step. Raises OSError for a file that cannot be read."""
        bare: BuildStep
        reads: list[Any] = []
        match step:
            case CopyStep():
                reads = [self.of_origin(step.origin), *(self._described(source.files) for source in step.sources)]
                sources = tuple(replace(source, files=()) for source in step.sources)
                bare = replace(step, line=0, text="", origin=FromNothing(), sources=sources)
            case RunStep():
                reads = [[self.of_origin(each.origin), self._described(each.source.files)] for each in step.mounts]
                mounts = tuple(
                    replace(each, origin=FromNothing(), source=replace(each.source, files=())) for each in step.mounts
                )
                bare = replace(step, line=0, text="", mounts=mounts)
            case _:
                bare = replace(step, line=0, text="")
        return _digest([_BUILDER_VERSION, previous, type(step).__name__, bare, reads])

    def _described(self, files: Iterable[tuple[str, Node]]) -> list[Any]:
        described = []
        for path, node in files:
            content = node.target
            if node.kind == "file":
                self._contents.hash(node)
                content = self._contents.digests[node.place]
            described.append([path, node.kind, node.mode, content])
        return described


def _digest(facts: list[Any]) -> str:
    return hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()
