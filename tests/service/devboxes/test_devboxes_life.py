"""The life of a devbox, through the published client."""

import json
import shutil
import sqlite3
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from runloop_api_client import APIStatusError, BadRequestError, NotFoundError
from runloop_api_client.types import DevboxView

from orchestrator.service.devboxes.requests import DevboxRequest
from orchestrator.service.errors import BadRequest
from orchestrator.service.records import DevboxRecord
from orchestrator.service.store import DEVBOXES, EXECUTIONS
from tests.processes import carrying
from tests.waiting import poll, until

from .conftest import GATE

if TYPE_CHECKING:
    from tests.service.devboxes.conftest import Serve, Served

pytestmark = pytest.mark.anyio


async def test_a_devbox_passes_through_its_states_and_shows_what_it_is(served: "Served") -> None:
    created = await served.client.devboxes.create(name="one", metadata={"a": "b"})
    assert created.status == "provisioning"
    devbox = await served.client.devboxes.await_running(created.id)
    passed = [transition.status for transition in devbox.state_transitions]
    assert passed == ["queued", "provisioning", "initializing", "running"]
    assert (devbox.name, devbox.metadata, devbox.capabilities, devbox.initiator_type) == ("one", {"a": "b"}, [], "api")
    shown: Any = devbox.model_extra
    assert shown["isolation"] in {"local", "none"}
    assert isinstance(shown["enforced_limits"], list)
    assert not [key for key in shown if key.startswith("_")]


async def test_launch_parameters_are_kept_as_sent_with_the_keep_alive_filled_in(served: "Served") -> None:
    created = await served.client.devboxes.create(launch_parameters={"resource_size_request": "MEDIUM"})
    sent: Any = created.launch_parameters.model_dump(exclude_unset=True)
    assert sent == {"resource_size_request": "MEDIUM", "keep_alive_time_seconds": 3600}


async def test_setup_sees_the_files_and_the_environment_and_may_leave_files(served: "Served") -> None:
    devbox = await served.devbox(
        environment_variables={"WHO": "me"},
        file_mounts={"notes/in.txt": "from home\n", "/tmp/in.txt": "absolute\n"},
        mounts=[{"type": "file_mount", "target": "typed.txt", "content": "typed\n"}],
        launch_parameters={"launch_commands": ['cat notes/in.txt typed.txt > out; echo "$WHO" >> out']},
    )
    assert await served.client.devboxes.read_file_contents(devbox.id, file_path="out") == "from home\ntyped\nme\n"
    assert await served.client.devboxes.read_file_contents(devbox.id, file_path="/tmp/in.txt") == "absolute\n"


async def test_a_failing_setup_command_is_a_failure_whose_output_can_be_read(served: "Served") -> None:
    commands = ["echo fine", "echo it broke >&2; exit 7", "touch never"]
    devbox = await served.devbox(launch_parameters={"launch_commands": commands})
    assert (devbox.status, devbox.failure_reason) == ("failure", "execution_failed")
    assert devbox.state_transitions[-1].failure_reason == "execution_failed"
    shown: Any = devbox.model_extra
    assert "exited with 7: it broke" in shown["failure_message"]
    logs = (await served.client.devboxes.logs.list(devbox.id)).logs
    setup = [(log.cmd, log.message, log.exit_code) for log in logs if log.source == "setup_commands"]
    assert (None, "it broke", None) in setup
    assert (None, None, 7) in setup
    assert all(command != "touch never" for command, _, _ in setup)
    assert served.ended == [devbox.id]


async def test_a_blueprint_says_where_commands_run_and_what_they_find(served: "Served") -> None:
    devbox = await served.devbox(blueprint_id="bpt_known")
    done = await served.client.devboxes.execute(devbox.id, command='cat marker; echo "$FROM"')
    assert done.stdout == "set up\nblueprint\n"
    assert devbox.blueprint_id == "bpt_known"


async def test_a_script_of_an_environment_is_executed_as_a_file_and_leaves_nothing_of_itself(served: "Served") -> None:
    devbox = await served.devbox(blueprint_id="bpt_python")
    done = await served.client.devboxes.execute(devbox.id, command='[ ! -e "$(cat by)" ]; echo $?')
    assert done.stdout == "0\n"


async def test_a_health_check_is_run_in_the_working_directory_after_the_setup(served: "Served") -> None:
    devbox = await served.devbox(blueprint_id="bpt_healthy")
    done = await served.client.devboxes.execute(devbox.id, command="pwd; cat checked")
    here, checked, setup = (done.stdout or "").splitlines()
    assert (here, setup) == (checked, "set up")


async def test_failures_of_a_health_check_do_not_count_in_its_start_period(served: "Served") -> None:
    devbox = await served.devbox(blueprint_id="bpt_late")
    assert devbox.status == "running"


async def test_a_health_check_that_never_passes_is_a_failure_with_its_last_words(served: "Served") -> None:
    devbox = await served.devbox(blueprint_id="bpt_sick")
    shown: Any = devbox.model_extra
    assert devbox.status == "failure"
    assert shown["failure_message"].startswith(
        "The health check of the environment (environment.healthcheck) failed 3 times in a row: 'echo >> tries"
    )
    assert "exited with 1: 3\nno luck" in shown["failure_message"]


async def test_a_health_check_that_does_not_end_is_killed_and_has_failed(served: "Served") -> None:
    devbox = await served.devbox(blueprint_id="bpt_slow")
    shown: Any = devbox.model_extra
    assert "'sleep 60' took longer than 0.2 s, and printed nothing." in shown["failure_message"]


async def test_an_unknown_blueprint_is_a_failure_that_names_it(served: "Served") -> None:
    devbox = await served.devbox(blueprint_id="bpt_unknown")
    shown: Any = devbox.model_extra
    assert devbox.status == "failure"
    assert "bpt_unknown" in shown["failure_message"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"snapshot_id": "snp_1"}, "snapshot_id: snp_1: no such snapshot"),
        ({"blueprint_name": "x"}, "blueprint_name: no blueprint named 'x'"),
        ({"secrets": {"A": "B"}}, "secrets: not supported"),
        ({"code_mounts": [{"repo_name": "r", "repo_owner": "o"}]}, "code_mounts: not supported"),
        ({"mounts": [{"type": "object_mount", "object_id": "o", "object_path": "/x"}]}, "'object_mount' is not"),
        ({"environment_variables": {"A=B": "c"}}, "'A=B' cannot be set"),
        ({"launch_parameters": {"keep_alive_time_seconds": 172_801}}, "launch_parameters.keep_alive_time_seconds"),
        ({"launch_parameters": {"resource_size_request": "HUGE"}}, "unknown size 'HUGE'"),
        ({"launch_parameters": {"network_policy_id": "npo_1"}}, "network_policy_id: there is no network policy"),
    ],
)
async def test_unsupported_parameters_are_refused_by_name_and_create_nothing(
    served: "Served", asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadRequestError, match=said):
        await served.client.devboxes.create(**asked)
    assert not (await served.client.devboxes.list()).devboxes


async def test_nothing_but_the_preparation_turns_the_network_on(served: "Served") -> None:
    devbox = await served.devbox(metadata={"network": "true"})
    if (devbox.model_extra or {})["isolation"] == "none":
        pytest.skip("this provider cannot switch the network off")
    done = await served.client.devboxes.execute(devbox.id, command="cut -d: -f1 /proc/net/dev | tail -n +3")
    assert [name.strip() for name in (done.stdout or "").split()] == ["lo"]


async def test_a_wait_answers_only_when_the_devbox_is_in_a_status_asked_for(served: "Served") -> None:
    devbox = await served.devbox()
    started = anyio.current_time()
    with pytest.raises(APIStatusError) as refused:
        await served.client.post(
            f"/v1/devboxes/{devbox.id}/wait_for_status",
            body={"statuses": ["suspended", "failure"], "timeout_seconds": 0.25},
            cast_to=DevboxView,
        )
    assert refused.value.status_code == 408
    assert "is running after 0.25 s" in refused.value.message
    assert 0.25 <= anyio.current_time() - started < 5


@pytest.mark.parametrize("statuses", [[], ["sleeping"]])
async def test_a_wait_for_no_status_or_an_unknown_one_is_refused(served: "Served", statuses: list[str]) -> None:
    devbox = await served.client.devboxes.create()
    with pytest.raises(BadRequestError, match="statuses"):
        await served.reached(devbox.id, *statuses)


async def test_three_hundred_waits_are_all_woken_by_one_change(served: "Served") -> None:
    devbox = await served.devbox()
    seen: list[str] = []

    async def wait() -> None:
        seen.append((await served.reached(devbox.id, "shutdown")).status)

    async with anyio.create_task_group() as waits:
        for _ in range(300):
            waits.start_soon(wait)
        await until(lambda: served.activity.requests == 300, "it has not 300 requests")
        await served.client.devboxes.shutdown(devbox.id)
    assert seen == ["shutdown"] * 300


async def test_a_client_that_goes_leaves_no_handler_waiting(served: "Served") -> None:
    devbox = await served.devbox()
    async with anyio.create_task_group() as waits:
        waits.start_soon(served.reached, devbox.id, "failure")
        await until(lambda: served.activity.requests == 1, "it has not 1 requests")
        waits.cancel_scope.cancel()
    await until(lambda: served.activity.requests == 0, "it has not 0 requests")


async def test_shutting_down_twice_is_one_shutdown_after_which_nothing_runs(served: "Served") -> None:
    devbox = await served.devbox()
    await served.client.devboxes.execute_async(devbox.id, command="sleep 1000")
    first = await served.client.devboxes.shutdown(devbox.id)
    again = await served.client.devboxes.shutdown(devbox.id)
    assert first == again
    assert (first.status, first.shutdown_reason) == ("shutdown", "api_shutdown")
    assert first.end_time_ms
    assert served.ended == [devbox.id]
    with pytest.raises(BadRequestError, match=f"Devbox {devbox.id} is shutdown, not running"):
        await served.client.devboxes.execute_async(devbox.id, command="true")
    rows = await served.store.read(lambda db: EXECUTIONS.select(db, {"devbox_id": devbox.id}))
    assert [(row.status, row.exit_status) for row in rows] == [("completed", 137)]


async def test_a_devbox_that_is_shut_down_while_it_boots_never_runs(served: "Served") -> None:
    created = await served.client.devboxes.create(launch_parameters={"launch_commands": ["sleep 1000"]})
    await served.reached(created.id, "initializing")
    ended = await served.client.devboxes.shutdown(created.id)
    assert [transition.status for transition in ended.state_transitions][-2:] == ["initializing", "shutdown"]
    assert served.fleet._live == {}


async def test_a_keep_alive_that_has_passed_shuts_the_devbox_down(served: "Served") -> None:
    devbox = await served.devbox(launch_parameters={"keep_alive_time_seconds": 1})
    await served.client.devboxes.keep_alive(devbox.id)
    ended = await served.reached(devbox.id, "shutdown")
    assert ended.shutdown_reason == "keep_alive_timeout"
    assert ended.end_time_ms
    assert 900 <= ended.end_time_ms - ended.create_time_ms < 15_000


async def test_what_a_devbox_waits_for_before_it_boots_is_shown_and_counts_for_no_limit(served: "Served") -> None:
    """What was held for it is held until nothing of it is left."""
    GATE.update(ready=anyio.Event(), over=anyio.Event())
    created = await served.client.devboxes.create(
        blueprint_id="bpt_gated", launch_parameters={"keep_alive_time_seconds": 1}
    )
    began = time.time()
    await poll(
        lambda: served.client.devboxes.retrieve(created.id),
        lambda view: (view.model_extra or {})["preparing"] == "pulling an image" and time.time() > began + 1.1,
        "it does not say what it waits for",
    )
    ready_at = time.time()
    GATE["ready"].set()
    ended = await served.reached(created.id, "shutdown", "failure")
    assert ended.shutdown_reason == "keep_alive_timeout"
    assert ended.end_time_ms
    assert ended.end_time_ms >= 1000 * (ready_at + 0.9)
    assert not (ended.model_extra or {}).get("preparing")
    await GATE["over"].wait()


async def test_idle_time_counts_from_the_end_of_the_last_command(served: "Served") -> None:
    devbox = await served.devbox(
        launch_parameters={"after_idle": {"idle_time_seconds": 1, "on_idle": "shutdown"}, "keep_alive_time_seconds": 1}
    )
    done = await served.client.devboxes.execute(devbox.id, command="sleep 1.5; date +%s%3N")
    ended = await served.reached(devbox.id, "shutdown")
    assert ended.shutdown_reason == "idle"
    assert ended.end_time_ms
    assert ended.end_time_ms - int(done.stdout or 0) >= 900


async def test_a_devbox_that_dies_under_a_command_fails_at_once_and_the_command_with_it(served: "Served") -> None:
    devbox = await served.devbox()
    running = await served.client.devboxes.execute_async(devbox.id, command="echo begun; sleep 1000")
    waited: list[Any] = []

    async def wait() -> None:
        waited.append(
            await served.client.devboxes.executions.await_completed(running.execution_id, devbox_id=devbox.id)
        )

    async with anyio.create_task_group() as waits:
        waits.start_soon(wait)
        with served.fleet.using(devbox.id) as box:
            await box.stop()
        ended = await served.reached(devbox.id, "failure")
    assert ended.failure_reason == "health_check_failed"
    assert "ended by itself" in (ended.model_extra or {})["failure_message"]
    assert (waited[0].status, waited[0].exit_status) == ("completed", 137)
    assert served.ended == [devbox.id]


async def test_dependants_of_a_devbox_end_in_the_same_transaction(served: "Served") -> None:
    """If something that belongs to the end cannot be done, nothing of it is."""
    devbox = await served.devbox()

    def refuse(_db: sqlite3.Connection, _devbox: DevboxRecord) -> None:
        raise ZeroDivisionError

    served.on_end.append(refuse)
    with pytest.raises(ZeroDivisionError):
        await served.fleet.shutdown(devbox.id)
    assert (await served.client.devboxes.retrieve(devbox.id)).status == "running"
    served.on_end.remove(refuse)


async def test_duplicates_of_one_creation_in_flight_are_one_devbox(served: "Served") -> None:
    seen: list[str] = []

    async def create() -> None:
        seen.append((await served.client.devboxes.create(idempotency_key="k")).id)

    async with anyio.create_task_group() as creations:
        for _ in range(10):
            creations.start_soon(create)
    assert len(set(seen)) == 1
    assert len((await served.client.devboxes.list()).devboxes) == 1


async def test_a_service_that_was_killed_leaves_failures_and_remembers_its_answers(
    serve: "Serve", tmp_path: Path
) -> None:
    """The store is copied while the first service lives, which is what a SIGKILL leaves of it."""
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    async with serve(tmp_path / "before") as first:
        created = await first.client.devboxes.create(idempotency_key="k")
        await first.client.devboxes.await_running(created.id)
        running = await first.client.devboxes.execute_async(created.id, command="sleep 1000", idempotency_key="e")
        for file in (tmp_path / "before").glob("service.sqlite*"):
            shutil.copy(file, tmp_path / "after")
    async with serve(tmp_path / "after") as second:
        again = await second.client.devboxes.create(idempotency_key="k")
        assert (again.id, again.status, again.failure_reason) == (created.id, "failure", "health_check_failed")
        assert (again.model_extra or {})["failure_message"] == "The service ended under it."
        assert second.ended == [created.id]
        same = await second.client.devboxes.execute_async(created.id, command="sleep 1000", idempotency_key="e")
        assert (same.execution_id, same.status, same.exit_status) == (running.execution_id, "completed", 137)
        with pytest.raises(BadRequest, match="is failure, not running"), second.fleet.using(created.id):
            pass


async def test_a_service_that_ends_shuts_its_devboxes_down(serve: "Serve", tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        devbox = await served.devbox()
    with sqlite3.connect(tmp_path / "service.sqlite") as db:
        doc = json.loads(db.execute("SELECT doc FROM devboxes").fetchone()[0])
    db.close()
    assert (doc["id"], doc["status"], doc["shutdown_reason"]) == (devbox.id, "shutdown", "api_shutdown")


async def test_lists_are_paged_newest_first_and_filtered_by_status(served: "Served") -> None:
    ids = [(await served.client.devboxes.create(name=f"n{number}")).id for number in range(3)]
    await served.client.devboxes.shutdown(ids[0])
    assert [devbox.id async for devbox in served.client.devboxes.list(limit=2)] == ids[::-1]
    ended = await served.client.devboxes.list(status="shutdown")
    assert [devbox.id for devbox in ended.devboxes] == [ids[0]]


async def test_an_update_replaces_name_and_metadata_and_nothing_else(served: "Served") -> None:
    devbox = await served.client.devboxes.create(name="old", metadata={"a": "b"})
    updated = await served.client.devboxes.update(devbox.id, metadata={"c": "d"})
    assert (updated.name, updated.metadata, updated.launch_parameters) == ("old", {"c": "d"}, devbox.launch_parameters)


async def test_calls_that_no_provider_supports_are_refused_by_name(served: "Served") -> None:
    devbox = await served.devbox()
    for call in (served.client.devboxes.create_ssh_key, served.client.devboxes.enable_tunnel):
        with pytest.raises(APIStatusError, match="not supported by this service") as refused:
            await call(devbox.id)
        assert refused.value.status_code == 405


async def test_what_is_suspended_stays_so_over_a_snapshot_that_was_begun_before(
    served: "Served", tmp_path: Path
) -> None:
    devbox, mark = (await served.devbox()).id, f"mark-{uuid.uuid4().hex}"
    await served.client.devboxes.execute_async(devbox, command=f"while :; do :; done; : {mark}")
    await until(lambda: carrying(mark), "nothing runs")
    with served.fleet.boxes(devbox) as boxes:
        await served.fleet.suspend(devbox)
        await boxes.save(tmp_path / "saved")
    states = [(await anyio.Path(f"/proc/{pid}/stat").read_text()).split()[2] for pid in carrying(mark)]
    assert "T" in states
    assert "R" not in states


async def test_an_unknown_devbox_is_not_found(served: "Served") -> None:
    for call in (served.client.devboxes.retrieve, served.client.devboxes.keep_alive, served.client.devboxes.shutdown):
        with pytest.raises(NotFoundError, match="no devbox with id 'dbx_none'"):
            await call("dbx_none")


async def test_create_and_await_running_answers_when_the_devbox_runs(served: "Served") -> None:
    devbox = await served.client.devboxes.create_and_await_running()
    assert devbox.status == "running"


async def test_a_creation_that_is_undone_leaves_nothing_behind(served: "Served") -> None:
    def change(db: sqlite3.Connection) -> None:
        served.fleet.insert(db, DevboxRequest())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await served.store.write(change)
    assert await served.store.read(lambda db: DEVBOXES.select(db, {})) == []
    assert served.fleet._live == {}
