"""`sweep images`: the commands for container images that are kept on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli import options
from orchestrator.core.config import RegistryConfig
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
@options.takes_settings("registry_mirror")
def pull(context: typer.Context, references: References, *, output: Format, **settings: Any) -> None:
    """Get images from their registries, as new as they are there. One that Docker or Podman has here comes from it.

    What is here already does not come again. A download that broke off is continued by the next pull. Logins are those
    of `docker login` and `podman login`.

    Examples:
      sweep images pull python:3.12-slim alpine

      sweep images pull ubuntu:24.04 --registry-mirror docker.io=http://127.0.0.1:5000

    """
    from orchestrator.commands import images

    mirrors = options.settings_of(context, settings, RegistryConfig).registry_mirror
    images.be_root()
    options.end_with(lambda: images.pull(references, mirrors, output), output)


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
