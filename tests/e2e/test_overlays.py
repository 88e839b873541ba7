"""Folders on an overlay, as a container's own files are: what needs an image fails with the reason and the fix."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.images.base_images import base_image
from tests.images.packing import PackedImage
from tests.ordinary_user import USER, OrdinaryUser
from tests.service.images.layers import entry, layer

from .conftest import CLOSED, write_scenario

if TYPE_CHECKING:
    from .conftest import Desk

pytestmark = [pytest.mark.slow, pytest.mark.root]
SWEEP = (sys.executable, "-m", "orchestrator")
RUN = (*SWEEP, "run", "./mine", "--agent", "oracle", "--runs")
REASON = "no layer can lie on an overlay, such as a container's own files: take a volume or a tmpfs for "


def lay_out(folder: Path, *names: str) -> str:
    """Write a scenario of an image with its archive; returns a command that makes the folders `names` overlays.

    The layer on busybox removes a file.
    """
    write_scenario(folder / "mine/task", task=f'{CLOSED}docker_image = "busybox:1"\nworkdir = "/app"\n')
    gone = layer(entry("etc/.wh.group"))
    PackedImage.of(base_image("busybox"), gone).save(folder / "busybox.tar", "busybox:1")
    commands = ["set -e"]
    for name in names:
        lower, upper, work, place = (folder / name / each for each in ("lower", "upper", "work", "place"))
        for each in (lower, upper, work, place):
            each.mkdir(parents=True)
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        commands.append(f"mount -t overlay overlay -o {options} {place}")
    return "\n".join(commands)


def only_result(folder: Path) -> str:
    """Return the result of the only sweep, whose runs folder was an overlay."""
    (results,) = (folder / "runs/upper").glob("*/results.jsonl")
    return results.read_text()


def test_roots_devbox_does_not_start_where_its_own_layer_would_be_on_an_overlay(desk: "Desk") -> None:
    mounts = lay_out(desk.folder, "runs")
    desk.sweep("images", "load", "busybox.tar")
    script = f"{mounts}\nexec {shlex.join((*RUN, 'runs/place'))}"
    ended = desk.spawn(["unshare", "--mount", "sh", "-c", script]).end()
    assert f"{REASON}{desk.folder}/runs/place" in only_result(desk.folder), str(ended)


def test_an_image_is_not_taken_into_a_cache_on_an_overlay_and_its_archive_stays(desk: "Desk") -> None:
    mounts = lay_out(desk.folder, "cache")
    script = f"{mounts}\nexec {shlex.join((*SWEEP, 'images', 'load', 'busybox.tar'))}"
    cache = str(desk.folder / "cache/place")
    ended = desk.spawn(["unshare", "--mount", "sh", "-c", script], {"SWEEP_CACHE": cache}).end()
    assert (ended.status, ended.out) == (1, ""), str(ended)
    assert f"{REASON}{cache}/images/layers/" in ended.err, str(ended)
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("is_lent_ids", [True, False])
def test_an_ordinary_user_on_an_overlay_learns_the_same_from_a_sweep_and_from_doctor(*, is_lent_ids: bool) -> None:
    with OrdinaryUser.make(is_lent_ids=is_lent_ids) as user:
        mounts = lay_out(user.home, "runs")
        for each in (user.home, *user.home.rglob("*")):
            os.chown(each, USER, USER)
        runs = str(user.home / "runs/place")
        script = f"{shlex.join((*SWEEP, 'images', 'load', 'busybox.tar'))}\nexec {shlex.join((*RUN, runs))}"
        swept = user.run(["sh", "-c", script], timeout=120, before=mounts)
        assert f"{REASON}{runs}" in (result := only_result(user.home)), swept
        assert "as root, `sysctl" not in result
        found = user.run([*SWEEP, "doctor", "--offline", "--runs", runs], timeout=120, before=mounts)
        (line,) = (each for each in found.stdout.splitlines() if each.startswith("missing"))
        assert line.startswith("missing  layers of devboxes: "), found
        assert REASON in line
