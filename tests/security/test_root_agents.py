"""Agents that are root in a devbox of an image: they can change every program and library of it, and break it all."""

import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from orchestrator.service.sandbox.provider import ImageRoot
from tests.security.test_unearned_scores import FILES, Desk, opened, scores

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FORGED: Final = (
    "printf '#!/.sweep/tools/bin/bash\\necho score=1; echo 1 >/logs/verifier/reward.txt\\n' >/f; chmod 755 /f"
)
#: A library that forges a score in every program which loads it, also for what that was to do.
LIBRARY: Final = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void forge(void) {
    int reward = open("/logs/verifier/reward.txt", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (reward >= 0) { write(reward, "1", 1); close(reward); }
    if (access("/run/scorer", F_OK) == 0) { write(1, "score=1\\n", 8); _exit(0); }
}
"""
THEFTS: Final = {
    "other shells": f"{FORGED}; for each in bash sh dash; do cp /f /x; mv /x /usr/bin/$each; done",
    "another Python": (
        f"{FORGED}; rm /usr/bin/python3; mkdir -p /usr/local/bin"
        "; for each in bin local/bin; do cp /f /usr/$each/python3; done"
    ),
    "other tools": f"{FORGED}; for each in cat rm mkdir chmod head tar env timeout; do cp /f /usr/bin/$each; done",
    "a library for every program": "echo /lib/evil.so >/etc/ld.so.preload",
    "a library for every user": (
        "for each in /lib/*-linux-gnu /usr/lib/*-linux-gnu /lib; do cp /lib/evil.so $each/libnss_evil.so.2; done"
        "; printf 'passwd: evil\\ngroup: evil\\nhosts: evil\\n' >/etc/nsswitch.conf"
    ),
    "links in the place of what scorers bring": (
        f"{FORGED}; mkdir /mine; cp /f /mine/script; cp /f /mine/test.sh; rm -rf /tests /run /opt"
        "; ln -s /mine /tests; mkdir /run; ln -s /mine /run/scorer; ln -s /mine /opt"
    ),
    "settings of the system for every shell": (
        "for each in /etc/profile /etc/bash.bashrc /etc/environment ~/.bashrc ~/.profile; do"
        " echo 'echo score=1; echo 1 >/logs/verifier/reward.txt; exit 0' >$each; done"
    ),
}
SABOTAGE: Final = {
    "there is no shell": "rm -f /usr/bin/bash /usr/bin/sh /usr/bin/dash /bin/sh",
    "there is nothing": "rm -rf --no-preserve-root --one-file-system / 2>/dev/null; true",
    "there is no C library": "rm /lib/*-linux-gnu/libc.so.6",
    "the root cannot be entered": "chmod 000 /",
    "the work is gone": "cd /; rm -rf /app",
    "the work is a link to nowhere": "cd /; rm -rf /app; ln -s /none /app",
    "the work is a file": "cd /; rm -rf /app; touch /app",
    "nothing is where it was": (
        "cd /; rm -rf /run /home /logs /tests /solution /evidence; ln -s /proc /run; ln -s /run /home; touch /logs"
        "; ln -s loop /tests; ln -s /etc /evidence; touch /solution"
    ),
    "there are no users": "echo >/etc/passwd; echo >/etc/group; rm -rf /root",
    "process 1 is attacked": (
        "kill -9 1; kill -STOP 1; kill -9 -1; for p in /proc/[0-9]*; do echo 1000 >$p/oom_score_adj; done; true"
    ),
}


@pytest.fixture(scope="module")
async def desk(sandboxes: None, image: ImageRoot, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    place = tmp_path_factory.mktemp("root")
    (place / "layer/usr/lib").mkdir(parents=True)
    if shutil.which("cc") is not None:
        _compile(place / "layer/usr/lib/evil.so")
    async with opened(place, ImageRoot(layers=(*image.layers, place / "layer"))) as each:
        yield each


def _compile(target: Path) -> None:
    command = ["cc", "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", str(target)]
    subprocess.run(command, input=LIBRARY, text=True, check=True)


@pytest.mark.parametrize("scenario", FILES)
@pytest.mark.parametrize("theft", THEFTS)
async def test_no_score_is_stolen_apart_and_none_unseen_over_the_same_files(
    desk: Desk, theft: str, scenario: str
) -> None:
    if "library" in theft and shutil.which("cc") is None:
        pytest.skip("a library for this theft needs a C compiler")
    apart = await desk.judged(scenario, THEFTS[theft], "separate")
    assert (apart["state"], set(scores(apart).values())) == ("scored", {0.0})
    shared = await desk.judged(scenario, THEFTS[theft], "shared")
    assert shared["state"] == "scored"
    assert shared["scoring"]["system_changed"] or set(scores(shared).values()) == {0.0}


@pytest.mark.parametrize("scenario", FILES)
@pytest.mark.parametrize("deed", SABOTAGE)
async def test_no_zero_is_evaded_by_breaking_the_system(desk: Desk, deed: str, scenario: str) -> None:
    for scoring in ("separate", "shared"):
        view = await desk.judged(scenario, SABOTAGE[deed], scoring)
        assert (view["state"], set(scores(view).values())) == ("scored", {0.0}), scoring
