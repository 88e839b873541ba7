"""Boxes of images for an ordinary user's service: what is claimed of root's holds for his too."""

import re
import sys

import pytest

from tests.images.base_images import RECIPES
from tests.ordinary_user import NAME, SOURCES, USER, OrdinaryUser
from tests.sandbox.images import pack_images

pytestmark = [pytest.mark.root, pytest.mark.slow]
CLAIMS = {
    "boxes": (
        *("sandbox/test_provider_conformance.py", "sandbox/test_image_box.py", "sandbox/test_base_image_boxes.py"),
        *("sandbox/test_public_network.py", "service/images/test_owners.py"),
    ),
    "changes": ("service/devboxes/test_image_changes.py",),
    "snapshots": ("service/test_snapshots.py",),
}


@pytest.mark.parametrize("claims", CLAIMS)
@pytest.mark.parametrize("is_lent_ids", [True, False], ids=["lent ids", "one id"])
def test_boxes_of_images_are_as_roots_are(claims: str, *, is_lent_ids: bool) -> None:
    with OrdinaryUser.make(is_lent_ids=is_lent_ids) as user:
        pack_images(user.home, *RECIPES)
        options = ["-p", "tests.sandbox.in_own_ids", "-p", "no:cacheprovider", "-p", "no:xdist", "-k"]
        options.append("debian or image or owners")
        files = [str(SOURCES / "tests" / name) for name in CLAIMS[claims]]
        words = [sys.executable, "-m", "pytest", "--rootdir", str(SOURCES), *options, *files]
        done = user.run(["env", "-C", str(SOURCES), *words], timeout=600)
    print(done.stdout[-20_000:], done.stderr[-2000:])  # noqa: T201 - shown if it fails
    assert done.returncode == 0


@pytest.mark.parametrize("is_lent_ids", [True, False], ids=["lent ids", "one id"])
def test_the_service_says_at_its_start_that_boxes_have_one_user_and_how_to_get_all(*, is_lent_ids: bool) -> None:
    with OrdinaryUser.make(is_lent_ids=is_lent_ids) as user:
        words = [sys.executable, "-m", "orchestrator", "serve", "--port", "0", "--state", "state", "--linger", "0.1"]
        done = user.run(["env", f"PYTHONPATH={SOURCES}", *words], timeout=60)
    assert done.returncode == 0, done.stderr
    said = f"Devboxes of images have one user here, root.*/etc/subuid has no line that lends {NAME} 65,536 ids"
    assert bool(re.search(said, done.stderr)) is not is_lent_ids


REFUSED = """
import os
from pathlib import Path
import anyio
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.own_ids import become_root
from orchestrator.service.sandbox.provider import BoxSpec, BoxStartFailed, ImageRoot

async def main():
    provider = BwrapProvider(Path("state"))
    await (await provider.start(BoxSpec(id="host"))).stop()
    try:
        await provider.start(BoxSpec(id="image", image=ImageRoot(layers=())))
    except BoxStartFailed as error:
        print(error)
    await provider.close()

become_root(Path("/proc/nowhere"))
print(os.geteuid(), len(os.listdir("/proc/self/task")))
anyio.run(main)
"""


def test_where_a_machine_permits_no_overlay_he_stays_himself_and_is_told_when_he_wants_an_image(
    sandboxes: None,
) -> None:
    with OrdinaryUser.make(is_lent_ids=True) as user:
        done = user.run(["env", f"PYTHONPATH={SOURCES}", sys.executable, "-c", REFUSED], timeout=60)
    first, *told = done.stdout.splitlines()
    assert first == f"{USER} 1", done.stderr
    assert re.match(
        r"this machine permits no devboxes of images to an ordinary user \(.*/proc/nowhere.*\): .*start as root",
        told[0],
    )
