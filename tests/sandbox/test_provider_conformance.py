"""The promises of every provider of devboxes; capabilities that a provider does not declare are skipped by name."""

import hashlib
import os
import time
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox import agent_connection
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.provider import (
    Bind,
    Box,
    BoxDied,
    BoxSpec,
    BoxStartFailed,
    Capability,
    Command,
    Limit,
    Process,
    Provider,
    Resources,
)
from orchestrator.service.sandbox.providers import PROVIDERS
from tests.processes import carrying
from tests.waiting import until

if TYPE_CHECKING:
    from tests.sandbox.conftest import Bench

pytestmark = pytest.mark.anyio

#: Leaves a process behind in a session of its own, twice forked.
DAEMON = "(setsid sleep 1000 >/dev/null 2>&1 &);"

PROCESSORS = anyio.Path("/sys/devices/system/cpu/online")


def needs(bench: "Bench", capability: Capability) -> None:
    if capability not in bench.provider.capabilities:
        pytest.skip(f"{bench.provider.name} does not declare {capability}")


def needs_the_machines_system(bench: "Bench") -> None:
    if bench.image is not None:
        pytest.skip("the system of an image is the box's own")


def needs_an_image(bench: "Bench") -> None:
    if bench.image is None:
        pytest.skip("boxes of images only")


async def read_all(stream: object) -> bytes:
    parts = [part async for part in stream]  # type: ignore[attr-defined]
    return b"".join(parts)


def test_every_word_for_isolation_has_a_provider() -> None:
    assert set(PROVIDERS) == set(Isolation)


async def test_provider_box_and_process_are_what_the_contract_calls_so(bench: "Bench") -> None:
    provider: Provider = bench.provider
    box: Box = await provider.start(BoxSpec(id="typed", image=bench.image))
    process: Process = await box.spawn(Command(argv=("true",)))
    assert (provider.name, box.id, await process.wait()) == (bench.provider.name, "typed", 0)
    await box.stop()


async def test_a_command_answers_with_status_and_both_streams(bench: "Bench") -> None:
    box = await bench.boot()
    done = await bench.run(box, "echo out; echo err >&2; exit 3")
    assert (done.status, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


async def test_status_after_a_signal_is_128_and_its_number(bench: "Bench") -> None:
    box = await bench.boot()
    assert (await bench.run(box, "kill -TERM $$")).status == 143


async def test_wait_may_be_called_often(bench: "Bench") -> None:
    process = await (await bench.boot()).spawn(Command(argv=("true",)))
    assert [await process.wait(), await process.wait()] == [0, 0]


async def test_a_program_that_is_not_there_is_127_and_named(bench: "Bench") -> None:
    process = await (await bench.boot()).spawn(Command(argv=("no-such-program",)))
    assert (await process.wait(), await read_all(process.stderr)) == (127, b"no-such-program: command not found\n")


async def test_a_program_that_may_not_run_is_126(bench: "Bench") -> None:
    box = await bench.boot()
    await bench.run(box, "echo data > data.txt")
    process = await box.spawn(Command(argv=("./data.txt",)))
    assert await process.wait() == 126
    assert b"data.txt: Permission denied" in await read_all(process.stderr)


async def test_a_folder_that_is_not_there_is_126_and_named(bench: "Bench") -> None:
    process = await (await bench.boot()).spawn(Command(argv=("true",), cwd="nowhere"))
    assert await process.wait() == 126
    assert b"nowhere: No such file" in await read_all(process.stderr)


async def test_a_nul_character_is_126_and_explained(bench: "Bench") -> None:
    process = await (await bench.boot()).spawn(Command(argv=("echo", "a\0b")))
    assert await process.wait() == 126
    assert b"NUL" in await read_all(process.stderr)


async def test_a_script_without_a_first_line_is_run_by_the_shell(bench: "Bench") -> None:
    box = await bench.boot()
    await bench.run(box, "echo 'echo ran $1' > tool; chmod +x tool")
    process = await box.spawn(Command(argv=("./tool", "well")))
    assert (await read_all(process.stdout), await process.wait()) == (b"ran well\n", 0)


async def test_a_command_has_no_open_file_but_its_own(bench: "Bench") -> None:
    said = (await bench.run(await bench.boot(), "cd /proc/self/fd && echo *")).output
    assert set(said.split()) <= {"0", "1", "2", "3"}, "3 is the folder that is listed"


async def test_stdin_reaches_the_program_and_its_end_too(bench: "Bench") -> None:
    process = await (await bench.boot()).spawn(Command(argv=("sha256sum",), stdin=True))
    assert process.stdin is not None
    await process.stdin.send(b"x" * 3_000_000)
    await process.stdin.aclose()
    out = await read_all(process.stdout)
    assert (await process.wait(), out.split()[0].decode()) == (0, hashlib.sha256(b"x" * 3_000_000).hexdigest())


async def test_without_stdin_a_program_reads_nothing(bench: "Bench") -> None:
    process = await (await bench.boot()).spawn(Command(argv=("cat",)))
    assert process.stdin is None
    assert (await read_all(process.stdout), await process.wait()) == (b"", 0)


async def test_writing_to_a_program_that_has_ended_is_broken(bench: "Bench") -> None:
    process = await (await bench.boot()).spawn(Command(argv=("true",), stdin=True))
    await process.wait()
    assert process.stdin is not None
    with pytest.raises(anyio.BrokenResourceError):
        await process.stdin.send(b"x" * 200_000)


async def test_environment_of_box_and_command_add_up(bench: "Bench") -> None:
    box = await bench.boot(environment={"A": "box", "B": "box"})
    done = await bench.run(box, 'echo "$A $B"', environment={"B": "command"})
    assert done.stdout == b"box command\n"


async def test_the_environment_of_a_box_without_an_image_is_a_plain_terminals(bench: "Bench") -> None:
    needs_the_machines_system(bench)
    box = await bench.boot()
    assert (await bench.run(box, 'echo "$LANG $TERM $HOME"')).output == f"C.UTF-8 dumb {box.path('/home/user')}\n"


async def test_odd_bytes_in_arguments_survive(bench: "Bench") -> None:
    odd = os.fsdecode(b"caf\xe9 \xf0\x9f\x90\x99 '\"\n")
    process = await (await bench.boot()).spawn(Command(argv=("printf", "%s", odd)))
    assert await read_all(process.stdout) == os.fsencode(odd)


async def test_a_very_long_order_arrives(bench: "Bench") -> None:
    argv = ("sh", "-c", 'echo "$# ${#1}"', "sh", *("x" * 100_000 for _ in range(15)))
    process = await (await bench.boot()).spawn(Command(argv=argv))
    assert await read_all(process.stdout) == b"15 100000\n"


async def test_working_directory_and_cwd(bench: "Bench") -> None:
    box = await bench.boot(working_directory="/work/repo")
    assert (await bench.run(box, "pwd; mkdir sub; touch x")).stdout.decode() == box.path("/work/repo") + "\n"
    assert (await bench.run(box, "pwd", cwd="sub")).stdout.decode() == box.path("/work/repo/sub") + "\n"
    assert (await bench.run(box, "pwd", cwd=box.path("/tmp"))).stdout.decode() == box.path("/tmp") + "\n"


async def test_own_folders_are_there_and_writable(bench: "Bench") -> None:
    box = await bench.boot(working_directory="/srv/code")
    folders = " ".join(box.path(p) for p in ("/home/user", "/tmp", "/app", "/tests", "/solution", "/logs", "/srv/code"))
    done = await bench.run(box, f"for d in {folders}; do echo x > $d/file || exit 1; done")
    assert done.status == 0, done.output


async def test_folders_for_logs_are_writable_for_everybody(bench: "Bench") -> None:
    box = await bench.boot()
    folders = " ".join(box.path(f"/logs/{name}") for name in ("agent", "artifacts", "verifier"))
    assert (await bench.run(box, f"stat -c %a {folders}; touch {box.path('/logs/artifacts/x')}")).output == "777\n" * 3


async def test_python_is_there(bench: "Bench") -> None:
    done = await bench.run(await bench.boot(), "python3 -c 'import ssl, json, sqlite3; print(1)'")
    assert done.output == "1\n"


async def test_files_of_one_command_are_there_for_the_next(bench: "Bench") -> None:
    box = await bench.boot()
    await bench.run(box, "echo kept > note")
    assert (await bench.run(box, "cat note")).stdout == b"kept\n"


async def test_many_commands_run_side_by_side(bench: "Bench") -> None:
    box = await bench.boot()
    outputs: dict[int, bytes] = {}

    async def one(number: int) -> None:
        outputs[number] = (await bench.run(box, f"echo {number}; head -c 100000 /dev/zero | wc -c")).stdout

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(one, number)
    assert outputs == {number: f"{number}\n100000\n".encode() for number in range(20)}


async def test_a_flood_of_output_arrives_whole(bench: "Bench") -> None:
    process = await (await bench.boot()).spawn(Command(argv=("head", "-c", "50000000", "/dev/zero")))
    size = 0
    async for part in process.stdout:
        size += len(part)
    assert (size, await process.wait()) == (50_000_000, 0)


async def test_a_program_blocks_while_nobody_reads(bench: "Bench") -> None:
    process = await (await bench.boot()).spawn(Command(argv=("head", "-c", "1000000", "/dev/zero")))
    with anyio.move_on_after(0.3) as waited:
        await process.wait()
    assert waited.cancelled_caught
    assert len(await read_all(process.stdout)) == 1_000_000


async def test_output_ends_with_the_program_though_a_daemon_holds_the_pipe(bench: "Bench") -> None:
    box = await bench.boot()
    with anyio.fail_after(10):
        done = await bench.run(box, "echo last words; setsid sleep 1000 & exit 0")
    assert done.stdout == b"last words\n"


async def test_output_is_delivered_to_a_late_reader(bench: "Bench") -> None:
    process = await bench.start(await bench.boot(), "echo early; (sleep 1000; :) & exit 0")
    await process.wait()
    assert await read_all(process.stdout) == b"early\n"


async def test_a_daemon_outlives_its_command_and_may_write_to_its_old_pipe(bench: "Bench") -> None:
    box = await bench.boot()
    script = "(for i in 1 2 3 4 5 6 7 8 9 10; do head -c 50000 /dev/zero; sleep 0.02; done; touch survived) & exit 0"
    await bench.run(box, script)
    done = await bench.run(box, "until [ -e survived ]; do sleep 0.05; done; echo yes")
    assert done.stdout == b"yes\n"


async def test_a_server_left_behind_serves_the_next_command(bench: "Bench") -> None:
    box = await bench.boot()
    server = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "
    await bench.run(box, f"""setsid python3 -c "{server} c, _ = s.accept(); c.sendall(b'hello')" >port 2>&1 &""")
    client = "import socket; print(socket.create_connection(('127.0.0.1', int(open('port').read()))).recv(9).decode())"
    done = await bench.run(box, f'until [ -s port ]; do sleep 0.02; done; python3 -c "{client}"')
    assert done.stdout == b"hello\n"


async def test_interrupt_is_control_c(bench: "Bench") -> None:
    process = await bench.start(await bench.boot(), "trap 'echo stopped; exit 7' INT; echo ready; sleep 1000 & wait")
    assert await process.stdout.receive() == b"ready\n"
    await process.interrupt()
    assert (await read_all(process.stdout), await process.wait()) == (b"stopped\n", 7)


async def test_a_killed_command_leaves_none_of_its_descendants(bench: "Bench", marker: str) -> None:
    needs(bench, Capability.TREE_KILL)
    process = await bench.start(await bench.boot(), f"{DAEMON * 2} echo up; sleep 1000", environment={"M": marker})
    assert await process.stdout.receive() == b"up\n"
    await until(lambda: len(carrying(marker)) == 3, "the command and two daemons run")
    with anyio.fail_after(5):
        await process.kill()
    assert not carrying(marker)
    assert await process.wait() == 143


async def test_a_command_that_ignores_everything_is_killed_too(bench: "Bench", marker: str) -> None:
    needs(bench, Capability.TREE_KILL)
    deaf = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 15)]; print(1, flush=True); "
    process = await (await bench.boot()).spawn(Command(argv=("python3", "-c", deaf + "time.sleep(1000)", marker)))
    assert await process.stdout.receive() == b"1\n"
    await process.kill()
    assert (await process.wait(), carrying(marker)) == (137, {})


async def test_a_killed_command_may_clean_up_first(bench: "Bench") -> None:
    box = await bench.boot()
    process = await bench.start(box, "trap 'echo bye > bye; exit 0' TERM; echo up; sleep 1000 & wait")
    await process.stdout.receive()
    await process.kill()
    assert (await bench.run(box, "cat bye")).stdout == b"bye\n"


async def test_killing_a_command_spares_what_an_earlier_one_left(bench: "Bench", marker: str) -> None:
    needs(bench, Capability.TREE_KILL)
    box = await bench.boot()
    await bench.run(box, DAEMON, environment={"M": marker})
    process = await bench.start(box, "echo up; sleep 1000")
    await process.stdout.receive()
    await process.kill()
    assert len(carrying(marker)) == 1


async def test_kill_and_interrupt_after_the_end_do_nothing(bench: "Bench") -> None:
    process = await (await bench.boot()).spawn(Command(argv=("true",)))
    await process.wait()
    await process.kill()
    await process.interrupt()
    assert await process.wait() == 0


async def test_a_stopped_box_leaves_no_process_and_no_file(bench: "Bench", marker: str) -> None:
    needs(bench, Capability.TREE_KILL)
    box = await bench.boot()
    await bench.run(box, DAEMON, environment={"M": marker})
    waiting = await box.spawn(Command(argv=("sleep", "1000"), environment={"M": marker}))
    await until(lambda: len(carrying(marker)) == 2, "both run")
    await box.stop()
    await box.stop()
    assert not carrying(marker)
    assert await box.wait_dead() == "stopped"
    assert not box.folder.base.exists()
    with pytest.raises(BoxDied, match=r"stopped"):
        await waiting.wait()
    with pytest.raises(BoxDied, match=r"stopped"):
        await box.spawn(Command(argv=("true",)))


async def test_closing_the_provider_stops_every_box(bench: "Bench") -> None:
    boxes = [await bench.boot() for _ in range(3)]
    await bench.provider.close()
    assert [await box.wait_dead() for box in boxes] == ["stopped"] * 3


async def test_closing_the_provider_while_a_box_boots_leaves_nothing(bench: "Bench") -> None:
    await bench.boot()
    refusals: list[str] = []

    async def boot() -> None:
        with pytest.raises(BoxStartFailed) as caught:
            await bench.boot()
        refusals.append(str(caught.value))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(boot)
        await anyio.sleep(0.01)
        await bench.provider.close()
    assert "stopped while it booted" in refusals[0]
    assert not bench.provider._boxes


async def test_a_dying_box_is_noticed_at_once(bench: "Bench") -> None:
    box = await bench.boot()
    process: Process = await bench.start(box, "echo up; sleep 1000")
    await process.stdout.receive()
    assert box._child is not None
    started = time.perf_counter()
    box._child.kill()
    with anyio.fail_after(2):
        assert await box.wait_dead() == "killed by signal 9"
        with pytest.raises(BoxDied, match="killed by signal 9"):
            await process.wait()
        assert await read_all(process.stdout) == b""
    assert time.perf_counter() - started < 1


async def test_a_prepared_root_is_copied_in_with_links_and_modes(bench: "Bench") -> None:
    root = bench.place / "root"
    (root / "app/bin").mkdir(parents=True)
    (root / "home/user").mkdir(parents=True)
    (root / "app/bin/tool").write_text("#!/bin/sh\necho tool ran\n")
    (root / "app/bin/tool").chmod(0o755)
    (root / "app/link").symlink_to("bin/tool")
    (root / "app/secret").symlink_to("/etc/shadow")
    (root / "home/user/hello").write_text("hello")
    box = await bench.boot(root=root)
    done = await bench.run(box, f"cat hello; cd {box.path('/app')}; ./link; readlink secret; echo x >> bin/tool")
    assert done.output == "hellotool ran\n/etc/shadow\n"
    assert "echo x" not in (root / "app/bin/tool").read_text()


@pytest.mark.parametrize("name", ["usr", "etc", "proc"])
async def test_a_root_that_replaces_the_system_is_refused_by_name(bench: "Bench", name: str) -> None:
    needs_the_machines_system(bench)
    (bench.place / "root" / name).mkdir(parents=True)
    with pytest.raises(BoxStartFailed, match=f"/{name} belongs to the system"):
        await bench.boot(root=bench.place / "root")


async def test_a_working_directory_in_the_system_is_refused(bench: "Bench") -> None:
    needs_the_machines_system(bench)
    with pytest.raises(BoxStartFailed, match="/usr/src belongs to the system"):
        await bench.boot(working_directory="/usr/src")


async def test_an_id_is_used_once(bench: "Bench") -> None:
    await bench.boot(id="twin")
    with pytest.raises(BoxStartFailed, match="twin"):
        await bench.provider.start(BoxSpec(id="twin"))
    with pytest.raises(BoxStartFailed, match="an id has letters"):
        await bench.provider.start(BoxSpec(id="../up"))


async def test_export_brings_the_own_folders_home(bench: "Bench") -> None:
    box = await bench.boot()
    await bench.run(box, "mkdir deep; echo made > deep/file; chmod 4711 deep/file", cwd="/app")
    target = bench.place / "out"
    target.mkdir()
    await box.export(target)
    copy = target / "app/deep/file"
    assert copy.read_text() == "made\n"
    assert copy.stat().st_mode & 0o7777 == 0o711
    assert copy.stat().st_uid == os.geteuid()
    assert (target / "home/user").is_dir()


async def test_an_export_is_a_root_again(bench: "Bench") -> None:
    box = await bench.boot()
    await bench.run(box, f"echo first > note; ln -s note link; mkdir {box.path('/app')}/empty")
    target = bench.place / "out"
    target.mkdir()
    await box.export(target)
    second = await bench.boot(root=target)
    done = await bench.run(second, f"cat link; ls {second.path('/app')}")
    assert done.output == "first\nempty\n"


async def test_export_does_not_follow_links_out_of_the_box(bench: "Bench") -> None:
    secret = bench.place / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    box = await bench.boot()
    await bench.run(box, f"ln -s {secret} dir; ln -s {secret}/key file; ln -s . loop; mkfifo pipe")
    target = bench.place / "out"
    target.mkdir()
    await box.export(target)
    home = target / "home/user"
    assert (home / "dir").is_symlink()
    assert (home / "file").is_symlink()
    assert not (home / "pipe").exists()


async def test_a_bind_is_seen_at_its_target(bench: "Bench") -> None:
    tools = bench.place / "tools"
    tools.mkdir()
    (tools / "data").write_text("tooled")
    bind = Bind(source=tools, target="/opt/tools")
    box = await bench.boot(binds=(bind,))
    done = await bench.run(box, f"cat {box.path('/opt/tools/data')}")
    assert done.output == "tooled"


async def test_nothing_in_the_sys_of_an_image_can_be_written_or_tells_of_the_firmware(bench: "Bench") -> None:
    needs_an_image(bench)
    box = await bench.boot()
    walk = "found = [os.path.join(at, each) for at, _, names in os.walk('/sys') for each in (*names, '.')]"
    script = f"import os; {walk}; print(len(found) > 1000, [each for each in found if os.access(each, os.W_OK)])"
    done = await run(box, Command(argv=("python3", "-c", script)), timeout=60)
    assert done.output == "True []\n"
    assert (await bench.run(box, "ls -A /sys/firmware")).output == ""
    for script in ("echo 100 >/sys/class/net/lo/mtu", "mkdir /sys/fs/cgroup/x", "mv /sys /y", "umount /sys"):
        assert (await bench.run(box, script)).status != 0, script


async def test_the_sys_of_an_image_shows_this_machines_processors_and_the_boxs_own_network_and_limits(
    bench: "Bench",
) -> None:
    needs_an_image(bench)
    box = await bench.boot(resources=Resources(memory=300 << 20))
    processors = await PROCESSORS.read_text()
    assert (await bench.run(box, f"cat {PROCESSORS}; ls /sys/class/net")).output == f"{processors}lo\n"
    limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max"
    if Limit.MEMORY in box.enforced:
        assert (await bench.run(box, f"{limit} 2>/dev/null")).output == f"{300 << 20}\n"


async def test_starting_and_cancelling_leaves_nothing(bench: "Bench") -> None:
    await bench.boot()
    for pause in (0.0, 0.005, 0.02, 0.03, 0.05):
        with anyio.move_on_after(pause):
            await bench.boot(id="cancelled")
        kept = [box for box in bench.provider._boxes.values() if box.id == "cancelled"]
        for box in kept:
            await box.stop()
    assert "cancelled" not in bench.provider._boxes
    assert not [folder for folder in (bench.provider.state / "boxes").iterdir() if folder.name == "cancelled"]


async def test_a_box_says_which_limits_it_enforces(bench: "Bench") -> None:
    box = await bench.boot()
    assert box.enforced


@pytest.mark.slow
async def test_a_box_beyond_its_disk_ends_and_says_so(bench: "Bench") -> None:
    box = await bench.boot(resources=Resources(disk=20 << 20))
    process = await bench.start(box, "for i in 1 2 3 4; do head -c 10000000 /dev/zero > f$i; done; sleep 1000")
    with anyio.fail_after(90):
        assert "out of disk" in await box.wait_dead()
        with pytest.raises(BoxDied, match="out of disk"):
            await process.wait()


async def test_one_file_cannot_be_larger_than_the_disk(bench: "Bench") -> None:
    box = await bench.boot(resources=Resources(disk=1 << 20))
    assert (await bench.run(box, "head -c 2000000 /dev/zero > big")).status != 0
    assert (await bench.run(box, "stat -c %s big")).stdout == b"1048576\n"


async def test_what_is_frozen_does_nothing_until_it_is_thawed(bench: "Bench") -> None:
    """What its own programs had stopped stays so."""
    box = await bench.boot()
    loop = "while sleep 0.01; do echo >>ticks; done"
    await bench.run(box, f"({loop}) >/dev/null 2>&1 & (kill -STOP $BASHPID; echo >woken) >/dev/null 2>&1 &")
    await bench.run(box, "until [ -s ticks ]; do sleep 0.01; done")
    await box.freeze()
    place = box.place("/home/user/ticks")
    size = place.stat().st_size
    other = await bench.boot()
    await bench.run(other, "sleep 0.2")
    assert place.stat().st_size == size
    await box.thaw()
    await until(lambda: place.stat().st_size > size, "it does not go on")
    assert not box.place("/home/user/woken").exists()
    await box.freeze()
    await box.stop()


async def test_a_command_that_is_killed_while_its_box_is_frozen_ends_with_the_thaw(
    bench: "Bench", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_connection, "KILL_TIMEOUT_S", 0.5)
    box = await bench.boot()
    process = await box.spawn(Command(argv=("sleep", "600")))
    await box.freeze()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(process.kill)
        other = await bench.boot()
        await bench.run(other, "sleep 1")
        await box.thaw()
    assert await process.wait() != 0
    assert (await bench.run(box, "echo here")).output == "here\n"


async def test_what_a_box_has_is_copied_or_moved_for_another_one(bench: "Bench") -> None:
    await bench.pass_on_files()
