"""Commands in devboxes, through the published client."""

import sqlite3
import threading
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from runloop_api_client import APIStatusError, BadRequestError, NotFoundError
from runloop_api_client.types import DevboxAsyncExecutionDetailView as View

from orchestrator.service.store import EXECUTIONS
from tests.waiting import until

if TYPE_CHECKING:
    from tests.service.devboxes.conftest import Served

pytestmark = pytest.mark.anyio


async def test_a_command_runs_in_a_login_shell_and_says_how_it_ended(served: "Served") -> None:
    devbox = await served.devbox(environment_variables={"WHO": "me"})
    done = await served.client.devboxes.execute(
        devbox.id, command='shopt -q login_shell && echo "login $WHO"; echo oops >&2; exit 3'
    )
    assert (done.status, done.exit_status, done.stdout, done.stderr) == ("completed", 3, "login me\n", "oops\n")
    assert (done.stdout_truncated, done.stderr_truncated, done.devbox_id) == (False, False, devbox.id)


async def test_a_command_that_takes_longer_is_answered_as_running_and_can_be_waited_for(served: "Served") -> None:
    devbox = await served.devbox()
    begun = await served.client.devboxes.execute(
        devbox.id, command="echo one; sleep 0.6; echo two", optimistic_timeout=0
    )
    assert (begun.status, begun.exit_status) == ("running", None)
    done = await served.client.devboxes.executions.await_completed(begun.execution_id, devbox_id=devbox.id)
    assert (done.status, done.exit_status, done.stdout) == ("completed", 0, "one\ntwo\n")


async def test_a_command_that_ends_while_a_wait_reads_its_record_is_not_missed(served: "Served") -> None:
    """The wait reads a snapshot from before the end, and has it in hand only after the end was announced."""
    devbox = await served.devbox()
    begun = await served.client.devboxes.execute(devbox.id, command="sleep 0.5", optimistic_timeout=0)
    gathering, ended = threading.Event(), threading.Event()

    def look_and_hold(db: sqlite3.Connection) -> None:
        EXECUTIONS.get(db, begun.execution_id)  # from here on, the reader's transaction is of this moment
        ended.wait(20)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(served.store.read, lambda _db: gathering.wait(20))
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(served.store.read, look_and_hold)
        tasks.start_soon(partial(served.executions.wait, devbox.id, begun.execution_id, timeout=10))
        await anyio.wait_all_tasks_blocked()
        gathering.set()
        await until(lambda: begun.execution_id not in served.executions._live, "the command ends")
        ended.set()


async def test_the_last_lines_are_shown_and_whether_there_was_more(served: "Served") -> None:
    devbox = await served.devbox()
    done = await served.client.devboxes.execute(devbox.id, command="seq 250", last_n="2")
    assert (done.stdout, done.stdout_truncated) == ("249\n250\n", True)
    shown = await served.client.devboxes.executions.retrieve(done.execution_id, devbox_id=devbox.id)
    assert (shown.stdout or "").split() == [str(number) for number in range(151, 251)]
    whole = await served.client.devboxes.executions.retrieve(done.execution_id, devbox_id=devbox.id, last_n="250")
    assert (whole.stdout_truncated, len((whole.stdout or "").split())) == (False, 250)


async def test_a_wait_that_expires_tells_the_client_not_to_retry_by_itself(served: "Served") -> None:
    devbox = await served.devbox()
    begun = await served.client.devboxes.execute_async(devbox.id, command="sleep 1000")
    with pytest.raises(APIStatusError, match=r"is running after 0.2 s") as refused:
        await served.client.post(
            f"/v1/devboxes/{devbox.id}/executions/{begun.execution_id}/wait_for_status",
            body={"statuses": ["completed"], "timeout_seconds": 0.2},
            cast_to=View,
        )
    assert refused.value.status_code == 408
    assert refused.value.response.headers["x-should-retry"] == "false"


async def test_execute_sync_returns_everything_that_was_printed(served: "Served") -> None:
    devbox = await served.devbox()
    with pytest.deprecated_call():
        done = await served.client.devboxes.execute_sync(devbox.id, command="seq 1000; exit 4")
    assert (done.exit_status, len(done.stdout.split()), done.stderr) == (4, 1000, "")


async def test_a_command_longer_than_the_kernel_takes_as_an_argument_runs(served: "Served") -> None:
    devbox = await served.devbox()
    text = "x" * 200_000
    done = await served.client.devboxes.execute(devbox.id, command=f"wc -c <<< '{text}'")
    assert (done.exit_status, done.stdout) == (0, "200001\n")


async def test_kill_leaves_no_descendant_and_may_be_repeated(served: "Served") -> None:
    """A child, a grandchild in a session of its own, and a process that ignores polite signals."""
    devbox = await served.devbox()
    command = """
        setsid sh -c 'trap "" TERM INT HUP; echo $$; while :; do sleep 1000; done' &
        sleep 1000 & echo $!
        echo $$; wait
    """
    begun = await served.client.devboxes.execute_async(devbox.id, command=command)
    printed = ""
    async for chunk in await served.client.devboxes.executions.stream_stdout_updates(
        begun.execution_id, devbox_id=devbox.id
    ):
        printed += chunk.output
        if printed.count("\n") == 3:
            break
    killed = await served.client.devboxes.executions.kill(begun.execution_id, devbox_id=devbox.id)
    again = await served.client.devboxes.executions.kill(begun.execution_id, devbox_id=devbox.id)
    assert killed.status == "completed"
    assert killed.exit_status in {137, 143}
    assert again == killed
    pids = " ".join((killed.stdout or "").split())
    find = f"for pid in {pids}; do grep -q '^State:.[^Z]' /proc/$pid/status && echo $pid; done 2>/dev/null"
    alive = await served.client.devboxes.execute(devbox.id, command=find)
    assert alive.stdout == ""


async def test_a_killed_command_never_counts_as_a_success(served: "Served") -> None:
    devbox = await served.devbox()
    begun = await served.client.devboxes.execute_async(
        devbox.id, command="trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    )
    async for _ in await served.client.devboxes.executions.stream_stdout_updates(
        begun.execution_id, devbox_id=devbox.id
    ):
        break
    killed = await served.client.devboxes.executions.kill(begun.execution_id, devbox_id=devbox.id)
    assert killed.exit_status


async def test_duplicates_in_flight_later_and_by_command_id_start_one_process(served: "Served") -> None:
    devbox = await served.devbox()
    command = "echo ran >> count; sleep 0.4; echo done"
    seen: list[View] = []

    async def execute(key: str) -> None:
        view = await served.client.devboxes.execute(devbox.id, command=command, command_id="c-1", idempotency_key=key)
        seen.append(view)

    async with anyio.create_task_group() as calls:
        for number in range(5):
            calls.start_soon(execute, f"k-{number}")
    await execute("k-later")
    assert len({view.execution_id for view in seen}) == 1
    assert {(view.status, view.stdout) for view in seen} == {("completed", "done\n")}
    assert await served.client.devboxes.read_file_contents(devbox.id, file_path="count") == "ran\n"
    by_command_id = await served.client.devboxes.executions.retrieve("c-1", devbox_id=devbox.id)
    assert by_command_id == seen[0]

    first = await served.client.devboxes.execute_async(devbox.id, command=command, idempotency_key="a")
    second = await served.client.devboxes.execute_async(devbox.id, command=command, idempotency_key="a")
    assert first.execution_id == second.execution_id


async def test_a_devbox_that_does_not_run_yet_gets_no_command_and_no_row(served: "Served") -> None:
    created = await served.client.devboxes.create(launch_parameters={"launch_commands": ["sleep 1000"]})
    await served.reached(created.id, "initializing")
    with pytest.raises(BadRequestError, match=f"Devbox {created.id} is initializing, not running"):
        await served.client.devboxes.execute_async(created.id, command="true", idempotency_key="k")
    assert await served.store.read(lambda db: EXECUTIONS.select(db, {})) == []


async def test_an_execution_is_found_in_its_own_devbox_only(served: "Served") -> None:
    devbox, other = await served.devbox(), await served.devbox()
    done = await served.client.devboxes.execute(devbox.id, command="true")
    with pytest.raises(NotFoundError, match=f"no execution with id '{done.execution_id}'"):
        await served.client.devboxes.executions.retrieve(done.execution_id, devbox_id=other.id)


async def test_nothing_of_an_execution_stays_in_memory(served: "Served") -> None:
    devbox = await served.devbox()
    for shell_name in ("a", None):
        await served.client.devboxes.execute(devbox.id, command="true", shell_name=shell_name)
    assert (served.executions._live, served.executions._turns._locks) == ({}, {})


async def test_input_arrives_in_order_and_ends_with_eof(served: "Served") -> None:
    devbox = await served.devbox()
    begun = await served.client.devboxes.execute_async(devbox.id, command="cat; echo over", attach_stdin=True)
    executions = served.client.devboxes.executions
    for text in ("one ", "zwö\n"):
        sent = await executions.send_std_in(begun.execution_id, devbox_id=devbox.id, text=text)
        assert (sent.success, sent.devbox_id, sent.execution_id) == (True, devbox.id, begun.execution_id)
    await executions.send_std_in(begun.execution_id, devbox_id=devbox.id, signal="EOF")
    done = await executions.await_completed(begun.execution_id, devbox_id=devbox.id)
    assert (done.stdout, done.exit_status) == ("one zwö\nover\n", 0)
    with pytest.raises(BadRequestError, match="has completed and takes no input"):
        await executions.send_std_in(begun.execution_id, devbox_id=devbox.id, text="late")


async def test_input_waits_for_a_command_that_has_not_started(served: "Served") -> None:
    devbox = await served.devbox()
    executions = served.client.devboxes.executions
    first = await served.client.devboxes.execute_async(devbox.id, command="cat", attach_stdin=True, shell_name="s")
    second = await served.client.devboxes.execute_async(devbox.id, command="cat", attach_stdin=True, shell_name="s")
    assert second.status == "queued"
    await executions.send_std_in(second.execution_id, devbox_id=devbox.id, text="early\n", signal="EOF")
    await executions.send_std_in(first.execution_id, devbox_id=devbox.id, signal="EOF")
    done = await executions.await_completed(second.execution_id, devbox_id=devbox.id)
    assert (done.stdout, done.exit_status) == ("early\n", 0)


async def test_an_interrupt_is_sigint(served: "Served") -> None:
    devbox = await served.devbox()
    begun = await served.client.devboxes.execute_async(
        devbox.id, command="trap 'echo caught; exit 9' INT; echo ready; while :; do read -r; done", attach_stdin=True
    )
    executions = served.client.devboxes.executions
    async for _ in await executions.stream_stdout_updates(begun.execution_id, devbox_id=devbox.id):
        break
    await executions.send_std_in(begun.execution_id, devbox_id=devbox.id, signal="INTERRUPT")
    done = await executions.await_completed(begun.execution_id, devbox_id=devbox.id)
    assert (done.stdout, done.exit_status) == ("ready\ncaught\n", 9)


async def test_a_command_without_input_takes_none(served: "Served") -> None:
    devbox = await served.devbox()
    begun = await served.client.devboxes.execute_async(devbox.id, command="sleep 1000")
    with pytest.raises(BadRequestError, match="attach_stdin=true"):
        await served.client.devboxes.executions.send_std_in(begun.execution_id, devbox_id=devbox.id, text="x")


async def test_a_command_with_descendants_that_hold_its_output_ends_when_it_does(served: "Served") -> None:
    devbox = await served.devbox()
    with anyio.fail_after(10):
        done = await served.client.devboxes.execute(devbox.id, command="setsid sleep 1000 & echo out")
    assert (done.status, done.stdout) == ("completed", "out\n")


async def test_a_named_shell_keeps_its_folder_and_its_exported_environment(served: "Served") -> None:
    devbox = await served.devbox(environment_variables={"GIVEN": "1"})

    async def run(command: str, shell_name: str | None = "s") -> str:
        done = await served.client.devboxes.execute(devbox.id, command=command, shell_name=shell_name)
        assert done.shell_name == shell_name
        return f"{done.exit_status}:{done.stdout}{done.stderr}"

    assert await run("mkdir -p 'a b'; cd 'a b'; export A=\"x 'y'\nz\" ; unset GIVEN; local_only=1; exit 5") == "5:"
    assert await run('basename "$PWD"; echo "$A|$GIVEN|$local_only|$1|$0"') == "0:a b\nx 'y'\nz||||bash\n"
    assert await run('basename "$PWD"; echo "$A|$GIVEN"', "other") == "0:user\n|1\n"
    assert await run('basename "$PWD"; echo "$A|$GIVEN"', None) == "0:user\n|1\n"


async def test_commands_of_one_named_shell_run_one_after_the_other_as_asked(served: "Served") -> None:
    devbox = await served.devbox()
    begun = [
        await served.client.devboxes.execute_async(
            devbox.id, command=f"echo {number} >> order; sleep 0.1; echo {number} >> order", shell_name="s"
        )
        for number in range(3)
    ]
    assert [view.status for view in begun][1:] == ["queued", "queued"]
    await served.client.devboxes.executions.await_completed(begun[-1].execution_id, devbox_id=devbox.id)
    order = await served.client.devboxes.read_file_contents(devbox.id, file_path="order")
    assert order.split() == ["0", "0", "1", "1", "2", "2"]


async def test_a_command_killed_while_it_waits_for_its_shell_never_runs(served: "Served") -> None:
    devbox = await served.devbox()
    first = await served.client.devboxes.execute_async(devbox.id, command="cat", attach_stdin=True, shell_name="s")
    second = await served.client.devboxes.execute_async(devbox.id, command="touch ran", shell_name="s")
    executions = served.client.devboxes.executions
    killed = await executions.kill(second.execution_id, devbox_id=devbox.id)
    assert (killed.status, killed.exit_status) == ("completed", 137)
    await executions.send_std_in(first.execution_id, devbox_id=devbox.id, signal="EOF")
    await executions.await_completed(first.execution_id, devbox_id=devbox.id)
    with pytest.raises(BadRequestError, match="No such file"):
        await served.client.devboxes.read_file_contents(devbox.id, file_path="ran")


async def test_logs_show_commands_their_output_and_their_end(served: "Served") -> None:
    devbox = await served.devbox(launch_parameters={"launch_commands": ["echo setting up"]})
    done = await served.client.devboxes.execute(devbox.id, command="echo out; echo err >&2; exit 2", shell_name="s")
    await served.client.devboxes.execute(devbox.id, command="echo other")
    logs = (await served.client.devboxes.logs.list(devbox.id)).logs
    assert [log.message for log in logs if log.message] == ["setting up", "out", "err", "other"]
    assert [log.timestamp_ms for log in logs] == sorted(log.timestamp_ms for log in logs)
    for only in ({"execution_id": done.execution_id}, {"shell_name": "s"}):
        part = (await served.client.devboxes.logs.list(devbox.id, **only)).logs  # type: ignore[arg-type]
        assert {(log.cmd_id, log.source, log.shell_name) for log in part} == {(done.execution_id, "exec", "s")}
        assert [(log.level, log.cmd or log.message or log.exit_code) for log in part] == [
            ("info", "echo out; echo err >&2; exit 2"),
            ("info", "out"),
            ("error", "err"),
            ("info", 2),
        ]
