"""A disk that is full for a while costs what was asked meanwhile, and nothing else."""

import shutil
from pathlib import Path
from subprocess import run
from sys import executable

import pytest

ROOT = Path(__file__).parents[2]
MOUNT = 'mount -t tmpfs -o size=40m tmpfs "$1" && exec "$2" -m tests.service.full_disk "$1"'
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.mark.slow
def test_a_service_refuses_while_its_disk_is_full_and_serves_when_there_is_room(tmp_path: Path) -> None:
    """Its log is on that disk too, and every request is answered all the while."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    mount = ["sh", "-c", MOUNT, "sh", str(tmp_path)]
    if run([*NAMESPACE, *mount, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount in a namespace")
    scene = [*NAMESPACE, *mount, executable]
    ended = run(scene, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
