"""Boxes of images for an ordinary user's service: what is claimed of root's holds for his too."""

import re
import sys

import pytest

from tests.images.base_images import RECIPES
from tests.ordinary_user import NAME, SOURCES, OrdinaryUser
from tests.sandbox.images import pack_images

pytestmark = [pytest.mark.root, pytest.mark.slow]
CLAIMS = (
    *("sandbox/test_provider_conformance.py", "sandbox/test_image_box.py", "sandbox/test_base_image_boxes.py"),
    *("sandbox/test_public_network.py", "service/images/test_owners.py"),
)


@pytest.mark.parametrize("is_lent_ids", [True, False], ids=["lent ids", "one id"])
def test_boxes_of_images_are_as_roots_are(*, is_lent_ids: bool) -> None:
    with OrdinaryUser.make(is_lent_ids=is_lent_ids) as user:
        pack_images(user.home, *RECIPES)
        options = ["-p", "tests.sandbox.in_own_ids", "-p", "no:cacheprovider", "-p", "no:xdist", "-k"]
        options.append("debian or image or owners")
        files = [str(SOURCES / "tests" / name) for name in CLAIMS]
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
