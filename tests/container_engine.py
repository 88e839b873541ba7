"""A real dockerd of a test's own."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from .waiting import wait_until

PROGRAMS: Final = ("dockerd", "containerd", "runc", "docker")


@contextmanager
def dockerd() -> Iterator[Path]:
    """Start one without a network to give; yields its socket, in a folder of its own. At the end nothing of it is left.

    Skips where no dockerd is, or none starts.
    """
    if missing := [name for name in PROGRAMS if which(name) is None]:
        pytest.skip(f"no container engine here: no {', '.join(missing)} (Debian's package docker.io)")
    with TemporaryDirectory(prefix="sweep-engine-") as folder:  # a socket's path is short
        place = Path(folder)
        options = [f"--data-root={place}/data", f"--exec-root={place}/exec", f"--pidfile={place}/pid"]
        options += [f"--host=unix://{place}/socket", f"--cgroup-parent={place.name}"]
        options += ["--iptables=false", "--bridge=none"]
        log, asking = place / "log", ["docker", f"--host=unix://{place}/socket", "version"]

        def answers() -> bool:
            return subprocess.run(asking, capture_output=True, check=False).returncode == 0

        command = ["unshare", "--mount", "dockerd", *options]  # no mount of it outlives it
        with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as daemon:
            try:
                wait_until(lambda: daemon.poll() is not None or answers(), log.read_text)
                if daemon.poll() is not None:
                    pytest.skip(f"dockerd does not start here: {log.read_text().splitlines()[-1]}")
                yield place / "socket"
            finally:
                daemon.terminate()
        for group in (*Path("/sys/fs/cgroup").glob(f"*/{place.name}"), *Path("/sys/fs/cgroup").glob(place.name)):
            group.rmdir()
