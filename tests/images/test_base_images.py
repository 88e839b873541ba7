"""Base images are made once, by whoever needs them first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images.base_images import base_image

SCRIPT = "from tests.images.base_images import base_image; print(base_image('busybox').layers[0].tree.stat().st_ino)"


@pytest.mark.slow
@pytest.mark.root
def test_processes_that_need_an_image_at_once_make_it_once(tmp_path: Path) -> None:
    base_image("busybox")
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], env=env, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert len({process.communicate()[0] for process in processes}) == 1
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len([*(tmp_path / "sweep-tests/base-images").iterdir()]) == 2, "the image and its lock"
