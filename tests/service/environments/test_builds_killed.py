"""A service that is killed while it builds an image leaves nothing, and the next one builds what is missing."""

import asyncio
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.core.protocol import Isolation
from orchestrator.service.environments.build_context import BuildContext
from orchestrator.service.environments.environments import built_reference
from orchestrator.service.environments.image_builds import BuildSource, ImageBuilds
from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.image_store import open_images
from orchestrator.service.environments.images.manifest import ours
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.prepared import Preparation
from orchestrator.service.sandbox.provider import BoxSpec, Resources, shell
from orchestrator.service.sandbox.providers import open_provider
from tests.images.base_images import base_image
from tests.images.packing import PackedImage
from tests.processes import carrying
from tests.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.slow]


VICTIM = """
import asyncio, sys
from pathlib import Path
from tests.service.environments.test_builds_killed import build

asyncio.run(build(Path(sys.argv[1]), sys.argv[2]))
"""


async def build(place: Path, dockerfile: str) -> str:
    """Build a Dockerfile below `place` as a service would, and return what its box shows."""
    (place / "context").mkdir(exist_ok=True)
    async with (
        open_images(place / "cache") as store,
        open_provider(Isolation.LOCAL, place / "state", ()) as provider,
    ):
        archive = Archive.read(place / "base.tar", ours())
        await store.pull(archive.images[0].reference, source=archive)
        image = await ImageBuilds(store, provider).build(
            BuildSource(
                text=dockerfile,
                file="Dockerfile",
                reference=built_reference("killed", "1"),
                context=BuildContext.read(place / "context"),
                resources=Resources(),
                timeout=600,
                limit="limit",
            ),
            Preparation(),
        )
        box = await provider.start(BoxSpec(id="look", image=image.root))
        try:
            return (await run(box, shell("cat /first /second", words=box.shell), timeout=30)).output
        finally:
            await box.stop()


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_killed_build_leaves_no_process_and_no_half_layer(tmp_path: Path, seconds: float) -> None:
    """Whether a command runs then, or what it left becomes a layer; layers that were whole are not built again."""
    tmp_path.chmod(0o700)
    PackedImage.of(base_image("busybox")).save(tmp_path / "base.tar", "busybox:latest")
    marker = f"marker-{secrets.token_hex(8)}"
    step = "cat /proc/sys/kernel/random/uuid"
    many = "for each in $(seq 3000); do echo $each >/many-$each; done"
    slow = f"echo {marker}; {many}; setsid sleep {seconds} & sleep {seconds}; echo 2 >/second"
    dockerfile = f"FROM busybox\nRUN {step} >/first\nRUN {slow}\n"
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(tmp_path), dockerfile], cwd=Path(__file__).parents[3])
    try:
        wait_until(lambda: others(marker), "the second command did not begin", seconds=60)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    wait_until(lambda: not others(marker), "something outlived its service")

    layers = tmp_path / "cache/images/layers"
    whole = [place.name for place in layers.iterdir() if (place / "layer.json").exists()]
    assert len(whole) == 2, "the base, and what the first command left"
    said = asyncio.run(build(tmp_path, dockerfile))
    assert said.endswith("2\n")
    assert not list(layers.glob("*/making"))
    assert said == asyncio.run(build(tmp_path, dockerfile))


def others(marker: str) -> list[str]:
    """Processes of the build, without the service that was told of it."""
    return [words for words in carrying(marker).values() if "test_builds_killed" not in words]
