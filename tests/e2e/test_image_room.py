"""Sweeps over more images than there is room for: they finish in the room that they are given."""

import os
import signal
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.images.base_images import base_image
from tests.images.packing import PackedImage
from tests.waiting import wait_until

from .conftest import PATIENCE, reward, write_scenario

if TYPE_CHECKING:
    from .conftest import Desk

pytestmark = [pytest.mark.slow, pytest.mark.root]
MB = 1_000_000
#: Busybox and the layers of two scenarios, and not those of three.
ROOM = ("--image-cache", "11MB")
WORKS = "command:sleep 2; touch /app/done"


def write_tasks(desk: "Desk", count: int, *, folder: str = "mine", word: str = "task") -> list[str]:
    """Write scenarios, each with an image of its own of 4 MB on busybox, which is taken in."""
    PackedImage.of(base_image("busybox")).save(desk.folder / "busybox.tar", "busybox:latest")
    desk.sweep("images", "load", "busybox.tar")
    names = [f"{word}-{number}" for number in range(count)]
    for name in names:
        task = write_scenario(desk.folder / folder / name, test="#!/bin/sh\n" + reward("test -e /app/done"))
        big = "dd if=/dev/zero of=/big bs=1000000 count=4"
        (task / "environment/Dockerfile").write_text(f"FROM busybox\nRUN {big} && echo {name} >/name\nWORKDIR /app\n")
    return names


def built(desk: "Desk") -> list[str]:
    """The scenarios whose images are here."""
    listed = desk.sweep("images", "list", "--json").json
    return [each["reference"].split("/")[2].partition(":")[0] for each in listed if "/" in each["reference"]]


def taken(desk: "Desk") -> int:
    """Bytes of all layers, by their descriptions."""
    layers = (desk.home / ".cache/sweep/images/layers").glob("*/layer.json")
    return sum(orjson.loads(layer.read_bytes())["bytes"] for layer in layers)


def test_a_sweep_finishes_in_less_room_than_its_images_want(desk: "Desk") -> None:
    names = write_tasks(desk, 4)
    ended = desk.sweep("run", "./mine", "--agent", WORKS, "--trials", "2", "--devboxes", "2", *ROOM)
    results = desk.results(ended.folder)
    assert [result["score"] for result in results] == [1.0] * 8
    assert [result["scenario_name"] for result in results] == [name for name in names for _ in range(2)]
    assert "4 images (0 here)" in ended.out
    assert "trials of one image run one after the other" in ended.out
    assert built(desk) == names[2:]
    assert taken(desk) <= 11 * MB


def test_two_sweeps_at_once_share_the_room_and_a_killed_service_leaves_none_of_it_taken(desk: "Desk") -> None:
    names = write_tasks(desk, 3)
    (used, _) = write_tasks(desk, 2, folder="other", word="used")
    one = ("--devboxes", "1", *ROOM)
    stuck = desk.start("run", "./other", "--agent", "command:echo begun; sleep 1000", "--runs", "stuck", *one)
    wait_until(lambda: any(log.read_text() for log in desk.folder.glob("stuck/*/trials/*/*/*/*/agent.log")), stuck)
    ended = desk.sweep("run", "./mine", "--agent", WORKS, *one)
    assert [result["score"] for result in desk.results(ended.folder)] == [1.0] * 3
    assert built(desk) == [names[2], used]
    assert taken(desk) <= 11 * MB
    (address,) = desk.folder.glob("stuck/.service/*/address.json")
    stuck.kill()
    os.kill(orjson.loads(address.read_bytes())["pid"], signal.SIGKILL)
    ended = desk.sweep("run", "./mine", "--agent", WORKS, *one, "--name", "again")
    assert built(desk) == names[1:]
    assert taken(desk) <= 11 * MB
    assert [file.name for file in (desk.home / ".cache/sweep/images/notes").iterdir()] == ["lock"]


def test_images_are_prepared_before_a_sweep_and_those_that_fail_are_named(desk: "Desk") -> None:
    names = write_tasks(desk, 3)
    broken = write_scenario(desk.folder / "mine/wrong")
    (broken / "environment/Dockerfile").write_text("FROM busybox\nRUN echo no such thing; exit 7\n")
    ended = desk.sweep("prepare", "./mine", "--exclude", "task-2", status=1)
    assert "task-0: ready" in ended.out
    assert "wrong: failed" in ended.out
    assert "environment/Dockerfile:2: RUN echo no such thing; exit 7: ended with status 7" in ended.out
    assert built(desk) == names[:2]
    ended = desk.sweep("prepare", "./mine", "--include", "task-*", "--json")
    assert {each["scenarios"][0]: each["state"] for each in ended.json} == dict.fromkeys(names, "ready")
    wait_until(lambda: not desk.processes(), "the service that has them in use does not end", seconds=PATIENCE)
    ended = desk.sweep("prepare", "./mine", "--include", "task-*", *ROOM, "--runs", "elsewhere", status=1)
    assert "has not that much left while other images are in use" in ended.out
    assert ended.out.count(": ready") == 2


def test_an_image_is_built_of_a_folder_and_a_step_that_fails_is_shown(desk: "Desk") -> None:
    write_tasks(desk, 1)
    (desk.folder / "plain").mkdir()
    (desk.folder / "plain/file").write_text("content")
    (desk.folder / "plain/Dockerfile").write_text("FROM busybox\nCOPY file /file\nRUN grep content /file\n")
    ended = desk.sweep("images", "build", "plain")
    assert ended.out.startswith("localhost/built/plain:latest: 3 layers, ")
    assert (
        desk.sweep("images", "build", "mine/task-0", "--json").json[0]["reference"] == "localhost/built/task-0:latest"
    )
    (desk.folder / "plain/file").write_text("other")
    ended = desk.sweep("images", "build", "plain", "--rebuild", status=1)
    assert "plain/Dockerfile:3: RUN grep content /file: ended with status 1" in ended.err
    assert "has no Dockerfile" in desk.refused("images", "build", ".")
