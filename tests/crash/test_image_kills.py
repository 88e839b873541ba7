"""A service that is killed at work on images: nothing that it began is left, and nothing half of it is used.

The moments are found from outside, by what is on the disk; a kill comes some milliseconds after one. No namespace needs
a look of its own: it lasts as long as a process in it, or a mount of it.
"""

import os
import random
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import orjson
import pytest

from orchestrator.common.locks import birth
from orchestrator.core.protocol import Isolation
from tests.e2e.conftest import Desk, new_desk, reward, write_scenario
from tests.images.base_images import base_image
from tests.images.debian_registry import debian_registry
from tests.images.packing import PackedImage
from tests.processes import carrying, descendants
from tests.service.images.layers import entry, layer
from tests.service.serving_clients import fill_cache, said, service
from tests.service.test_server_killed import SERVE, groups_of, to_be_killed
from tests.waiting import until, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.root]

#: Files of the image that is pulled, below /many, and bytes that no packing makes fewer.
FILES: Final = 3000
BIG_BYTES: Final = 20_000_000
TRIALS: Final = 4
#: Seconds after which nothing of a killed service is left.
LAST_RITES: Final = 15.0
#: Seconds from a moment to the kill.
DELAYS: Final = (0.0, 0.02, 0.1, 0.3)
#: What is frozen in a suspended devbox ends soon.
SERVE_RESTLESS: Final = f"from orchestrator.service.devboxes import fleet\nfleet.FROZEN_S = 0.05\n{SERVE}"


class Night:
    """A sweep on an image that a registry has and a Dockerfile is built on; its service is killed at moments."""

    def __init__(self, desk: Desk, host: str) -> None:
        self.desk = desk
        self.killed: list[int] = []
        self.log: list[str] = []
        self.images = desk.home / ".cache/sweep/images"
        condition = f'[ "$(cat worked)" = worked ] && [ "$(ls /many /more | wc -l)" -gt {2 * FILES} ]'
        for number in range(2):
            task = write_scenario(desk.folder / "mine" / f"task-{number}", test="#!/bin/sh\n" + reward(condition))
            steps = f"RUN mkdir /more && for each in $(seq {FILES}); do echo $each >/more/$each; done\n"
            steps += f"RUN echo {number} >/number\nCOPY README /app/\nWORKDIR /app\n"
            (task / "environment/Dockerfile").write_text(f"FROM {host}/base:1\n{steps}")

    def wait_for(self, name: str) -> None:
        """Until a moment has come, and there is a service to be killed."""
        layers, boxes = self.images / "layers", self.desk.folder / "runs/.service"
        moments: dict[str, Callable[[], object]] = {
            "pull": lambda: any(self.images.glob("blobs/*/blob*")),
            "unpack": lambda: [each for each in layers.glob("*/making/l") if not (each.parent / "box").exists()],
            "step": lambda: any(layers.glob("*/making/box")),
            "keep": lambda: any(layers.glob("*/making/l/fs/more")),
            "box": lambda: [each for each in boxes.glob("*/devboxes/boxes/*") if not each.name.startswith("build-")],
            "work": lambda: any(log.read_text() for log in self.desk.folder.glob("runs/mine/trials/**/agent.log")),
        }
        has_come = moments[name]
        wait_until(lambda: self.service() and has_come(), f"no {name} comes: {self.log}")

    def service(self) -> int:
        """The process of the service that lives; 0 if there is none."""
        for file in self.desk.folder.glob("runs/.service/*/address.json"):
            with suppress(FileNotFoundError):
                pid = int(orjson.loads(file.read_bytes())["pid"])
                return pid if pid not in self.killed and birth(pid) else 0
        return 0

    def kill(self, pid: int) -> None:
        """Kill a service; what it has started ends by itself."""
        started = descendants(pid)
        os.kill(pid, signal.SIGKILL)
        self.killed.append(pid)

        def left() -> list[tuple[int, str]]:
            return [(each, born) for each, born in started if birth(each) == born]

        wait_until(lambda: not left(), lambda: f"outlived its service: {left()}", seconds=LAST_RITES)

    def problems(self) -> Iterator[str]:
        """What is wrong after the sweep and the last service have ended."""
        results = self.desk.results("runs/mine")
        trials = [(result["scenario_name"], result["trial"], result["score"]) for result in results]
        if sorted(trials) != [(f"task-{number}", trial, 1.0) for number in range(2) for trial in (1, 2)]:
            yield f"results: {[(*trial, result['failure']) for trial, result in zip(trials, results, strict=True)]}"
        if len(finished := self.desk.journal("runs/mine", "trial.finished")) != TRIALS:
            yield f"{len(finished)} trials were finished"
        yield from (f"a process is left: {words}" for words in carrying(str(self.desk.folder)).values())
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        yield from (f"a mount is left: {line}" for line in mounts if str(self.desk.home.parent) in line)
        for pid in self.killed:
            yield from (f"a control group is left: {group}" for group in groups_of(pid))
        for place in (self.images / "layers").iterdir():
            if sorted(each.name for each in place.iterdir()) != ["l", "layer.json", "lock"]:
                yield f"a half layer is left: {sorted(place.iterdir())}"
        for folder in (self.images / "blobs", *self.desk.folder.glob("runs/.service/*/devboxes/boxes")):
            yield from (f"left: {each}" for each in folder.iterdir())
        if [each.name for each in (self.images / "notes").iterdir()] != ["lock"]:
            yield f"room is still noted: {list((self.images / 'notes').iterdir())}"


@pytest.fixture
def night(tmp_path: Path, sandboxes: None) -> Iterator[Night]:
    tmp_path.chmod(0o700)
    many = layer(*(entry(f"many/{number}", data=b"%d" % number) for number in range(FILES)))
    big = layer(entry("big", data=random.Random(1).randbytes(BIG_BYTES)))
    with debian_registry(tmp_path / "registry") as registry:
        registry.push("base:1", PackedImage.of(base_image("busybox"), big, many))
        desk = new_desk(tmp_path / "desk", "local")
        yield Night(desk, registry.host)
        desk.clear()


@pytest.mark.parametrize("victim", ["service", "both"])
@pytest.mark.parametrize("moments", [("pull", "unpack", "step"), ("keep", "box", "work")])
def test_a_sweep_whose_service_is_killed_at_work_on_images_scores_every_trial_once(
    night: Night, moments: tuple[str, ...], victim: str
) -> None:
    """Where the sweep is killed with it, it is resumed each time."""
    words = ("--agent", "command:echo begun; echo worked >>worked; sleep 0.5", "--trials", "2", "--devboxes", "2")
    sweep = night.desk.start("run", "./mine", *words, "--name", "mine", "--attempts", "20")
    dice = random.Random()
    for name in moments:
        delay = dice.choice(DELAYS)
        night.wait_for(name)
        time.sleep(delay)
        night.log.append(f"{name} + {delay} s")
        if victim == "both":
            sweep.kill()
        if pid := night.service():
            night.kill(pid)
        if victim == "both":
            sweep = night.desk.start("resume", "mine")
    ended = sweep.end()
    wait_until(lambda: not night.desk.processes(), lambda: f"left: {night.desk.processes()}", seconds=LAST_RITES)
    assert not list(night.problems()), f"{night.log}: {ended}"
    assert night.killed


@pytest.fixture
async def state(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder of services whose images are `busybox` and what is built on it."""
    place, state = tmp_path_factory.mktemp("cache"), tmp_path / "state"
    place.chmod(0o700)
    state.mkdir(mode=0o700)
    monkeypatch.setenv("SWEEP_CACHE", str(await fill_cache(place)))
    return state


@pytest.mark.anyio
@pytest.mark.parametrize("delay", DELAYS)
async def test_a_snapshot_of_an_image_devbox_is_whole_or_not_there_after_a_kill(
    state: Path, sandboxes: None, delay: float
) -> None:
    async with to_be_killed(state, Isolation.LOCAL) as desk:
        devbox = await _booted(desk)
        make = f"mkdir /many; for each in $(seq {FILES}); do echo {devbox} >/many/$each; done"
        await desk.post(f"devboxes/{devbox}/execute_sync", {"command": make})
        taken = await desk.post(f"devboxes/{devbox}/snapshot_disk_async")
        await until(lambda: any((state / "snapshots").iterdir()), "it does not begin")
        await anyio.sleep(delay)
    await until(lambda: not carrying(str(state)), lambda: f"left: {carrying(str(state))}", seconds=LAST_RITES)
    async with service(state, Isolation.LOCAL) as client:
        status = await client.devboxes.disk_snapshots.query_status(taken["id"])
        if status.status == "complete":
            woken = await client.devboxes.create_and_await_running(snapshot_id=taken["id"])
            look = "cat /many/* | sort | uniq -c"
            assert (await said(client, woken.id, look)).split() == [str(FILES), devbox]
        else:
            assert (status.status, status.error_message) == ("error", "The service ended while the snapshot was taken.")
        kept = [taken["id"]] if status.status == "complete" else []
        assert [each.name for each in (state / "snapshots").iterdir()] == kept


@pytest.mark.anyio
@pytest.mark.parametrize("delay", DELAYS)
async def test_nothing_is_left_of_an_image_devbox_that_was_waking_when_its_service_was_killed(
    state: Path, sandboxes: None, delay: float
) -> None:
    mark = f"600.{uuid.uuid4().int}"  # a time to sleep that nobody else does
    async with to_be_killed(state, Isolation.LOCAL, SERVE_RESTLESS) as desk:
        devbox = await _booted(desk, launch_parameters={"launch_commands": [f"[ ! -e /kept ] || sleep {mark}"]})
        await desk.post(f"devboxes/{devbox}/execute_sync", {"command": "touch /kept"})
        await desk.post(f"devboxes/{devbox}/suspend")
        await until(lambda: not any((state / "devboxes/boxes").iterdir()), "what is frozen does not end")
        assert any((state / "asleep").glob("*/*/fs/kept"))

        async def wake() -> None:
            with suppress(httpx.HTTPError):
                await desk.post(f"devboxes/{devbox}/resume")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wake)
            await until(lambda: any((state / "devboxes/boxes").iterdir()), "it does not wake")
            await anyio.sleep(delay)
            tasks.cancel_scope.cancel()
    await until(lambda: not carrying(mark) and not carrying(str(state)), "something is left", seconds=LAST_RITES)
    async with service(state, Isolation.LOCAL) as client:
        assert (await client.devboxes.retrieve(devbox)).status == "failure"
        for folder in ("asleep", "devboxes/boxes"):
            assert list((state / folder).iterdir()) == []
        assert str(state) not in await anyio.Path("/proc/self/mountinfo").read_text()


async def _booted(desk: Any, **asked: Any) -> str:
    """A devbox that runs on an image that was built."""
    made = await desk.post("blueprints", {"name": "busybox", "dockerfile": "FROM busybox\nRUN echo built >/built\n"})
    devbox = str((await desk.post("devboxes", {"blueprint_id": made["id"], **asked}))["id"])
    wait = {"statuses": ["running", "failure"], "timeout_seconds": 60}
    assert (await desk.post(f"devboxes/{devbox}/wait_for_status", wait))["status"] == "running"
    return devbox
