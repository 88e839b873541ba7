"""Disk snapshots, and devboxes that are suspended and resumed, over a real socket with the published client."""

import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from runloop_api_client import APIStatusError, AsyncRunloop, BadRequestError

from orchestrator.core.protocol import Isolation
from orchestrator.service.devboxes import fleet
from tests.processes import carrying, open_files
from tests.service.serving_clients import fill_cache, said, service
from tests.service.test_server_killed import to_be_killed
from tests.waiting import poll, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["none", "local", pytest.param("image", marks=[pytest.mark.slow, pytest.mark.root])])
async def kind(
    request: pytest.FixtureRequest, obstacle: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any
) -> str:
    """Kinds of devboxes: without walls, on the machine's own system, of an image."""
    if request.param != "none" and obstacle:
        pytest.skip(obstacle)
    if request.param == "image":
        place = tmp_path_factory.mktemp("cache")
        place.chmod(0o700)
        monkeypatch.setenv("SWEEP_CACHE", str(await fill_cache(place)))
    return str(request.param)


@pytest.fixture
async def client(kind: str, tmp_path: Path) -> AsyncIterator[AsyncRunloop]:
    async with service(tmp_path / "state", Isolation.NONE if kind == "none" else Isolation.LOCAL) as client:
        yield client


async def begun(client: AsyncRunloop, kind: str, **asked: Any) -> str:
    """A running devbox of this kind."""
    if kind == "image":
        made = await client.blueprints.create(name="busybox", dockerfile="FROM busybox\nWORKDIR /srv\n")
        asked["blueprint_id"] = made.id
    devbox = await client.devboxes.create_and_await_running(**asked)
    assert devbox.status == "running", devbox
    return devbox.id


async def sleep_of(place: Path) -> None:
    """Wait until the files of a devbox are kept there."""
    await until((place / "fs").exists, "it does not sleep")


async def test_a_devbox_from_a_snapshot_has_the_files_and_nothing_else(client: AsyncRunloop, kind: str) -> None:
    source = await begun(client, kind)
    make = "mkdir d; echo one >d/file; ln d/file hard; ln -s d/file soft; chmod 750 d/file; echo tmp >/tmp/marker"
    if kind == "image":
        make += "; rm /bin/true; echo more >>/etc/passwd"
    assert await said(client, source, make) == ""
    taken = await client.devboxes.snapshot_disk(source, name="first", commit_message="why", metadata={"a": "b"})
    assert (taken.source_devbox_id, taken.name, taken.commit_message) == (source, "first", "why")
    assert taken.metadata == {"a": "b"}
    await said(client, source, "echo later >d/file")

    devbox = await client.devboxes.create_and_await_running(snapshot_id=taken.id)
    assert (devbox.status, devbox.snapshot_id) == ("running", taken.id)
    look = "cat d/file soft hard /tmp/marker; stat -c %a d/file; [ ! -e /bin/true ] && tail -n 1 /etc/passwd"
    assert await said(client, devbox.id, look if kind == "image" else look.partition("; [")[0]) == (
        "one\none\none\ntmp\n750\n" + ("more\n" if kind == "image" else "")
    )
    await said(client, devbox.id, "echo second >second")
    second = await client.devboxes.snapshot_disk_async(devbox.id)
    look_at = partial(client.devboxes.disk_snapshots.query_status, second.id)
    done = await poll(look_at, lambda view: view.status != "in_progress", "it is not taken")
    assert (done.status, done.error_message) == ("complete", None)
    assert [each.id for each in (await client.devboxes.disk_snapshots.list(devbox_id=source)).snapshots] == [taken.id]

    await client.devboxes.disk_snapshots.delete(taken.id)
    assert (await client.devboxes.disk_snapshots.query_status(taken.id)).status == "deleted"
    assert [each.id for each in (await client.devboxes.disk_snapshots.list()).snapshots] == [second.id]
    with pytest.raises(BadRequestError, match="this snapshot is deleted"):
        await client.devboxes.create(snapshot_id=taken.id)
    assert await said(client, devbox.id, "cat d/file second") == "one\nsecond\n"
    third = await client.devboxes.create_and_await_running(snapshot_id=second.id)
    assert await said(client, third.id, "cat d/file second") == "one\nsecond\n"
    renamed = await client.devboxes.disk_snapshots.update(second.id, name="renamed")
    assert renamed.name == "renamed"


async def test_what_runs_goes_on_after_a_snapshot(client: AsyncRunloop, kind: str) -> None:
    devbox = await begun(client, kind)
    command = "echo begun; read line; echo $line"
    running = await client.devboxes.execute_async(devbox, command=command, attach_stdin=True)
    await client.devboxes.snapshot_disk(devbox)
    await client.devboxes.executions.send_std_in(running.execution_id, devbox_id=devbox, text="still here\n")
    done = await client.devboxes.executions.await_completed(running.execution_id, devbox_id=devbox)
    assert done.stdout == "begun\nstill here\n"


async def test_a_suspended_devbox_stands_still_and_goes_on(client: AsyncRunloop, kind: str) -> None:
    devbox = await begun(client, kind)
    ticking = "i=0; while sleep 0.01; do i=$((i + 1)); echo $i >count; done"
    running = await client.devboxes.execute_async(devbox, command=ticking)
    await said(client, devbox, "until [ -s count ]; do sleep 0.01; done")
    assert (await client.devboxes.suspend(devbox)).status == "suspended"
    assert (await client.devboxes.await_suspended(devbox)).status == "suspended"
    with pytest.raises(BadRequestError, match="is suspended, not running"):
        await client.devboxes.execute_async(devbox, command="true")
    with pytest.raises(BadRequestError, match="is suspended, not running"):
        await client.devboxes.read_file_contents(devbox, file_path="count")
    assert (await client.devboxes.resume(devbox)).status == "running"
    await said(client, devbox, "was=$(cat count); while [ $(cat count) = $was ]; do sleep 0.01; done")
    assert (await client.devboxes.executions.retrieve(running.execution_id, devbox_id=devbox)).status == "running"
    await client.devboxes.suspend(devbox)
    assert (await client.devboxes.shutdown(devbox)).status == "shutdown"
    with pytest.raises(BadRequestError, match="is shutdown, not running"):
        await client.devboxes.resume(devbox)


async def test_after_a_while_what_was_frozen_ends_and_files_are_kept(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "FROZEN_S", 0.05)
    state = tmp_path / "state"
    async with service(state, Isolation.NONE if kind == "none" else Isolation.LOCAL) as client:
        commands = {"launch_commands": ["echo launched >>launches"]}
        devbox = await begun(client, kind, launch_parameters=commands)
        for count in (2, 3):
            running = await client.devboxes.execute_async(devbox, command="sleep 600")
            await said(client, devbox, f"echo {count} >>kept")
            await client.devboxes.suspend(devbox)
            look = partial(client.devboxes.executions.retrieve, running.execution_id, devbox_id=devbox)
            await poll(look, lambda view: view.status == "completed", "it is not ended")
            assert (await client.devboxes.retrieve(devbox)).status == "suspended"
            resumed = await client.devboxes.resume(devbox)
            assert resumed.status == "running"
            launches = await said(client, devbox, "wc -l <launches; tail -n 1 kept")
            assert launches.split() == [str(count), str(count)]
        await client.devboxes.shutdown(devbox)
        assert list((state / "asleep").iterdir()) == []


async def test_a_snapshot_has_what_was_written_before_a_sleep(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "FROZEN_S", 0.01)
    state = tmp_path / "state"
    async with service(state, Isolation.NONE if kind == "none" else Isolation.LOCAL) as client:
        devbox = await begun(client, kind)
        opened: list[int] = []
        for count in range(3):
            await said(client, devbox, f"echo {count} >file{count}")
            await client.devboxes.suspend(devbox)
            await sleep_of(state / "asleep" / devbox / str(count + 1))
            await client.devboxes.resume(devbox)
            assert await said(client, devbox, "cat file0") == "0\n"
            opened.append(open_files())
        assert opened[2] <= opened[1], "a sleep leaves nothing open"
        await said(client, devbox, "rm file1; echo 3 >file3")
        taken = await client.devboxes.snapshot_disk(devbox)
        await client.devboxes.shutdown(devbox)
        other = await client.devboxes.create_and_await_running(snapshot_id=taken.id)
        assert await said(client, other.id, "cat file*") == "0\n2\n3\n"
        second = await client.devboxes.snapshot_disk(other.id)
        await client.devboxes.disk_snapshots.delete(taken.id)
        third = await client.devboxes.create_and_await_running(snapshot_id=second.id)
        assert await said(client, third.id, "cat file*") == "0\n2\n3\n"


async def test_a_devbox_whose_launch_fails_after_a_sleep_sleeps_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "FROZEN_S", 0.01)
    state = tmp_path / "state"
    async with service(state, Isolation.NONE if kind == "none" else Isolation.LOCAL) as client:
        commands = {"launch_commands": ["echo launch >>launches", "[ $(wc -l <launches) != 2 ]"]}
        devbox = await begun(client, kind, launch_parameters=commands)
        for count in (1, 2):
            await client.devboxes.suspend(devbox)
            await sleep_of(state / "asleep" / devbox / str(count))
            if count == 1:
                with pytest.raises(BadRequestError, match="exited with 1"):
                    await client.devboxes.resume(devbox)
                assert (await client.devboxes.retrieve(devbox)).status == "suspended"
        assert (await client.devboxes.resume(devbox)).status == "running"
        assert await said(client, devbox, "wc -l <launches") == "3\n"


async def test_an_idle_devbox_is_suspended_if_it_asks_for_it(client: AsyncRunloop, kind: str) -> None:
    idle = {"after_idle": {"idle_time_seconds": 1, "on_idle": "suspend"}}
    devbox = await begun(client, kind, launch_parameters={"lifecycle": idle})
    for _ in range(2):
        assert (await client.devboxes.await_suspended(devbox)).status == "suspended"
        await client.devboxes.resume(devbox)
        assert await said(client, devbox, "echo here") == "here\n"


async def test_a_snapshot_needs_a_running_devbox(client: AsyncRunloop, kind: str) -> None:
    devbox = await begun(client, kind)
    await client.devboxes.suspend(devbox)
    with pytest.raises(BadRequestError, match="is suspended, not running"):
        await client.devboxes.snapshot_disk(devbox)
    with pytest.raises(BadRequestError, match="no such snapshot"):
        await client.devboxes.create(snapshot_id="snp_none")
    with pytest.raises(BadRequestError, match="give it or"):
        await client.devboxes.create(snapshot_id="snp_none", blueprint_id="bpt_none")
    with pytest.raises(APIStatusError, match="snp_none"):
        await client.devboxes.disk_snapshots.query_status("snp_none")


async def test_scenarios_by_api_begin_from_snapshots(client: AsyncRunloop, kind: str) -> None:
    source = await begun(client, kind)
    await said(client, source, "echo yes >answer")
    taken = await client.devboxes.snapshot_disk(source)
    scorer: Any = {"type": "command_scorer", "command": "true"}
    scenario = await client.scenarios.create(
        name="s",
        input_context={"problem_statement": "Do it."},
        scoring_contract={"scoring_function_parameters": [{"name": "it", "weight": 1.0, "scorer": scorer}]},
        environment_parameters={"snapshot_id": taken.id},
    )
    run = await client.scenarios.start_run(scenario_id=scenario.id)
    devbox = await client.devboxes.await_running(run.devbox_id)
    assert devbox.snapshot_id == taken.id
    assert await said(client, run.devbox_id, "cat answer") == "yes\n"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none"], indirect=True)
async def test_a_snapshot_under_which_the_service_was_killed_has_failed_and_left_nothing(
    kind: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with to_be_killed(state, Isolation.NONE) as desk:
        devbox = (await desk.post("devboxes/create_and_await_running"))["id"]
        await desk.post(f"devboxes/{devbox}/execute_sync", {"command": "for i in $(seq 20000); do echo $i >$i; done"})
        taken = await desk.post(f"devboxes/{devbox}/snapshot_disk_async")
        folder = state / "snapshots" / f".{taken['id']}"

        async def is_there() -> bool:
            return folder.exists()

        await poll(is_there, bool, "it does not begin")
    assert folder.exists(), "it was killed before it was whole"
    async with service(state, Isolation.NONE) as client:
        status = await client.devboxes.disk_snapshots.query_status(taken["id"])
        assert (status.status, status.error_message) == ("error", "The service ended while the snapshot was taken.")
        assert list((state / "snapshots").iterdir()) == []
        with pytest.raises(BadRequestError, match="this snapshot is error"):
            await client.devboxes.create(snapshot_id=taken["id"])


@pytest.mark.slow
async def test_a_killed_service_leaves_nothing_of_a_suspended_devbox(kind: str, tmp_path: Path) -> None:
    """Who is stopped cannot end itself: it is ended."""
    state, mark = tmp_path / "state", f"mark-{uuid.uuid4().hex}"
    state.mkdir(mode=0o700)
    isolation = Isolation.NONE if kind == "none" else Isolation.LOCAL
    async with to_be_killed(state, isolation) as desk:
        asked: dict[str, Any] = {}
        if kind == "image":
            made = await desk.post("blueprints", {"name": "busybox", "dockerfile": "FROM busybox\n"})
            asked["blueprint_id"] = made["id"]
        devbox = (await desk.post("devboxes", asked))["id"]
        wait = {"statuses": ["running", "failure"], "timeout_seconds": 30}
        assert (await desk.post(f"devboxes/{devbox}/wait_for_status", wait))["status"] == "running"
        command = f"setsid sh -c 'while :; do sleep 0.01; done; : {mark}' & wait"
        await desk.post(f"devboxes/{devbox}/execute_async", {"command": command})
        await until(lambda: carrying(mark), "nothing runs")
        assert (await desk.post(f"devboxes/{devbox}/suspend"))["status"] == "suspended"
    await until(lambda: not carrying(mark), lambda: f"left: {carrying(mark)}")
