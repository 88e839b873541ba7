"""Sweeps with a hard disk limit: an agent finds its disk full, and is judged all the same."""

from typing import TYPE_CHECKING

import pytest

from tests.images.base_images import base_image
from tests.images.packing import PackedImage

from .conftest import CLOSED, reward, write_scenario

if TYPE_CHECKING:
    from .conftest import Desk

pytestmark = [pytest.mark.slow, pytest.mark.root]
FILLS = (
    "command:echo done >/app/done; dd if=/dev/zero of=/tmp/big bs=1M count=5000; "
    "for n in $(seq 3000); do echo >/tmp/$n || break; done; echo more >/app/more || echo it is full"
)


@pytest.mark.parametrize("is_image", [False, True], ids=["host", "image"])
@pytest.mark.parametrize("scoring", ["shared", "separate"])
def test_an_agent_that_has_filled_its_disk_is_judged_by_its_work(desk: "Desk", scoring: str, *, is_image: bool) -> None:
    test = "#!/bin/sh\n" + reward("test -e /app/done")
    task = write_scenario(desk.folder / "mine/full", test=test, task=f'{CLOSED}storage = "2G"\n')
    if is_image:
        PackedImage.of(base_image("busybox")).save(desk.folder / "busybox.tar", "busybox:latest")
        desk.sweep("images", "load", "busybox.tar")
        (task / "environment/Dockerfile").write_text("FROM busybox\nWORKDIR /app\n")
    given = ("--disk-limit", "hard", "--scoring", scoring, "--attempts", "1", "--scorings", "1")
    ended = desk.sweep("run", "./mine", "--agent", FILLS, *given)
    (result,) = desk.results(ended.folder)
    assert result["score"] == 1.0, result
    assert "it is full" in next(desk.folder.glob("runs/*/trials/*/*/*/*/agent.log")).read_text()
