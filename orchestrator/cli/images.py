"""`sweep images`: the commands for container images that are kept on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli import options
from orchestrator.core.config import EndpointConfig, NamesConfig, RegistryConfig
from orchestrator.view.formats import Format

References = Annotated[
    list[str], typer.Argument(metavar="REF…", help="Images, as everywhere: python:3.12-slim, HOST:5000/TEAM/NAME:TAG.")
]


@options.takes_format
def list_images(*, output: Format) -> None:
    """List the images that are here: their size, how much of it they share with others, and their last use."""
    from orchestrator.commands import images

    images.be_root()
    options.end_with(lambda: images.list_images(output), output)


@options.takes_format
@options.takes_settings("registry_mirror", "image_cache")
def pull(context: typer.Context, references: References, *, output: Format, **settings: Any) -> None:
    """Get images from their registries, as new as they are there. One that Docker or Podman has here comes from it.

    What is here already does not come again. A download that broke off is continued by the next pull. Logins are those
    of `docker login` and `podman login`.

    Examples:
      sweep images pull python:3.12-slim alpine

      sweep images pull ubuntu:24.04 --registry-mirror docker.io=http://127.0.0.1:5000

    """
    from orchestrator.commands import images

    given = options.settings_of(context, settings, RegistryConfig)
    images.be_root()
    options.end_with(lambda: images.pull(references, given, output), output)


@options.takes_format
@options.takes_settings("registry_mirror", "image_cache")
def build(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A folder with a Dockerfile, or a scenario's, whose environment/ has it."),
    ],
    *,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Take each step anew, also where its layer is here.")
    ] = False,
    output: Format,
    **settings: Any,
) -> None:
    """Build an image of a Dockerfile and the files beside it. It gets the name localhost/built/FOLDER:latest.

    A step that fails is named with its line and the end of its output. The Dockerfile of a scenario is built even if
    its task.toml has a docker_image.
    """
    from orchestrator.commands import images

    given = options.settings_of(context, settings, RegistryConfig)
    images.be_root()
    options.end_with(lambda: images.build(path, given, is_rebuilt=rebuild, output=output), output)


@options.takes_format
@options.takes_settings(
    "include", "exclude", "endpoint", "isolation", "lock", "registry", "registry_mirror", "image_cache", "rebuild"
)
def prepare(
    context: typer.Context,
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="A benchmark's name or id, or a folder of scenarios.")
    ],
    *,
    runs: options.Runs = options.RUNS,
    output: Format,
    **settings: Any,
) -> None:
    """Get and build the images of a benchmark's scenarios before a sweep needs them.

    What is here does not come again. The exit code is 1 if one failed, or found no room.

    Examples:
      sweep prepare ./my-benchmark

      sweep prepare ./my-benchmark --include 'django-*' --image-cache 60GB

    """
    from orchestrator.commands import prepare

    given = options.typed(context, settings)
    chosen: Any = {name: tuple(given[name].value) if name in given else () for name in ("include", "exclude")}
    sources: Any = {
        "place": options.settings_of(context, settings, EndpointConfig),
        "images": options.settings_of(context, settings, RegistryConfig),
        "registries": options.settings_of(context, settings, NamesConfig).registry,
    }
    options.end_with(lambda: prepare.run(benchmark, **sources, **chosen, runs=runs, output=output), output)


@options.takes_format
def load(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `docker save` or `podman save` wrote.")],
    *,
    output: Format,
) -> None:
    """Take in the images of an archive: one of `docker save`, or of the OCI layout, packed or not.

    An image without a name in the archive is called as the file.
    """
    from orchestrator.commands import images

    images.be_root()
    options.end_with(lambda: images.load(file, output), output)


def remove(references: References) -> None:
    """Remove images, and the layers that no other image has. An image that a running process uses stays."""
    from orchestrator.commands import images

    images.be_root()
    options.end_with(lambda: images.remove(references))


def prune() -> None:
    """Remove every image that no running process uses, and parts of downloads."""
    from orchestrator.commands import images

    images.be_root()
    options.end_with(images.prune)
