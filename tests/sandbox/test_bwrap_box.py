"""Rights of a program in a sandboxed devbox."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator.service.sandbox.provider import Bind, BoxNetwork, BoxStartFailed, Command

if TYPE_CHECKING:
    from tests.sandbox.conftest import Bench

pytestmark = pytest.mark.anyio


async def test_a_command_has_no_capability_and_no_way_to_one(local: "Bench") -> None:
    done = await local.run(await local.boot(), "grep -E '^(Cap|NoNewPrivs)' /proc/self/status")
    facts = dict(line.split(":\t") for line in done.stdout.decode().splitlines())
    assert facts.pop("NoNewPrivs") == "1"
    assert {name: int(value, 16) for name, value in facts.items()} == dict.fromkeys(facts, 0)
    assert "CapBnd" in facts


async def test_user_namespaces_inside_are_refused(local: "Bench") -> None:
    attempt = (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.unshare(0x10000000), ctypes.get_errno() > 0)"
    )
    assert (await local.run(await local.boot(), f'python3 -c "{attempt}"')).output == "-1 True\n"


async def test_the_user_is_an_ordinary_one(local: "Bench") -> None:
    done = await local.run(await local.boot(), "id -u; id -un; id -G; echo $HOME $USER; hostname; umask")
    assert done.output == "1000\nuser\n1000\n/home/user user\ndevbox\n0022\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_each_box_has_a_user_of_its_own_on_the_host(local: "Bench") -> None:
    owners = set()
    for box in (await local.boot(), await local.boot()):
        await local.run(box, "touch ~/mine")
        owners.add(os.stat(box.folder.files / "home/user/mine").st_uid)  # noqa: PTH116
    assert len(owners) == 2
    assert min(owners) > 65535


@pytest.mark.parametrize(
    "place", ["/", "/usr", "/etc", "/bin", "/dev", "/home", "/run", "/usr/local/bin", "/run/devbox"]
)
async def test_the_system_is_read_only(local: "Bench", place: str) -> None:
    done = await local.run(await local.boot(), f"touch {place}/mark; mkdir {place}/folder")
    assert done.status == 1


async def test_shared_memory_is_there_and_bounded(local: "Bench") -> None:
    done = await local.run(
        await local.boot(), "df --output=size -k /dev/shm | tail -1; echo x > /dev/shm/x && cat /dev/shm/x"
    )
    assert done.output.split() == ["65536", "x"]


async def test_nothing_of_the_host_is_visible(local: "Bench") -> None:
    (local.place / "secret").write_text("secret")
    box = await local.boot()
    done = await local.run(
        box, f"ls {local.place}; ls /root/* /mnt /srv /var/log /sys/fs; cat /etc/shadow; env; ls /home"
    )
    assert b"secret" not in done.stdout
    assert done.stdout.decode().splitlines()[-1] == "user"
    seen = await local.run(box, "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'")
    assert box.id.encode() not in seen.stdout
    assert str(local.provider.state).encode() not in seen.stdout


async def test_processes_of_the_host_are_not_visible(local: "Bench") -> None:
    done = await local.run(await local.boot(), "ls -d /proc/[0-9]* | wc -l; kill -0 " + str(os.getpid() + 100_000))
    assert int(done.stdout) < 10


async def test_boxes_do_not_see_each_other(local: "Bench") -> None:
    first, second = await local.boot(), await local.boot()
    await local.run(first, "echo mine | tee ~/f /tmp/f /app/f /dev/shm/f")
    assert (await local.run(second, "ls ~ /tmp /app /dev/shm | grep -x f")).stdout == b""


async def test_without_network_there_is_only_loopback(local: "Bench") -> None:
    box = await local.boot()
    assert (await local.run(box, "ls /proc/sys/net/ipv4/conf; cat /proc/net/dev")).output.count("lo") == 2
    knock = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
    done = await local.run(box, f'python3 -c "{knock}"')
    assert b"Network is unreachable" in done.stderr


async def test_without_network_the_hosts_loopback_is_out_of_reach(local: "Bench") -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        done = await local.run(await local.boot(), f"exec 3<>/dev/tcp/127.0.0.1/{port}")
    assert b"refused" in done.stderr


async def test_with_network_the_hosts_loopback_is_within_reach(local: "Bench") -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        done = await local.run(await local.boot(network=BoxNetwork.HOST), f"exec 3<>/dev/tcp/127.0.0.1/{port}; echo $?")
    assert done.stdout == b"0\n"


async def test_names_are_resolved_only_with_network(local: "Bench") -> None:
    assert (await local.run(await local.boot(), "cat /etc/resolv.conf")).output == ""
    ours = await anyio.run_process("cat /etc/resolv.conf 2>/dev/null || true")
    assert (await local.run(await local.boot(network=BoxNetwork.HOST), "cat /etc/resolv.conf")).stdout == ours.stdout


async def test_the_state_folder_may_be_closed_to_everybody_else(local: "Bench") -> None:
    box = await local.boot()
    parent = await anyio.Path(local.provider.state.parent).stat()
    assert parent.st_mode & 0o077 == 0
    assert (await local.run(box, "echo works > ~/x && cat ~/x")).output == "works\n"


async def test_a_command_holds_its_own_three_streams_and_nothing_else(local: "Bench") -> None:
    box = await local.boot()
    holder = await box.spawn(Command(argv=("sleep", "1000")))
    process = await box.spawn(
        Command(argv=("python3", "-c", "import os; print(*os.listdir('/proc/self/fd'))"), stdin=True)
    )
    assert (await process.stdout.receive()).split() == [b"0", b"1", b"2", b"3"]
    await holder.kill()


async def test_the_agent_is_closed_to_commands(local: "Bench") -> None:
    """Its socket could order anything in the name of the host's side, and answer for other commands."""
    done = await local.run(await local.boot(), "cat /proc/2/comm; ls /proc/2/fd; cat /proc/2/environ; cat /proc/2/maps")
    assert done.stdout == b"agent\n"
    assert done.stderr.count(b"ermission denied") == 3


async def test_killing_all_pythons_is_survived(local: "Bench") -> None:
    box = await local.boot()
    assert (
        await local.run(box, "pkill -9 -f python; pkill -TERM agent; kill -TERM -1; sleep 0.1; echo on")
    ).status != 127
    assert (await local.run(box, "echo alive")).output == "alive\n"


async def test_a_frozen_agent_costs_its_box_and_no_more(local: "Bench") -> None:
    box = await local.boot()
    process = await box.spawn(Command(argv=("bash", "-c", "kill -STOP 2; sleep 1000")))
    with anyio.fail_after(9):
        await anyio.sleep(0.1)
        await process.kill()
        assert "could not be ended" in await box.wait_dead()


async def test_a_bind_is_read_only_and_may_come_from_a_closed_folder(local: "Bench") -> None:
    closed = local.place / "closed"
    closed.mkdir(mode=0o700)
    (closed / "tools").mkdir()
    (closed / "tools/data").write_text("tooled\n")
    (closed / "one.txt").write_text("single\n")
    binds = (
        Bind(source=closed / "tools", target="/opt/tools"),
        Bind(source=closed / "one.txt", target="/home/user/one.txt"),
    )
    box = await local.boot(binds=binds)
    done = await local.run(box, "cat /opt/tools/data ~/one.txt; echo no > /opt/tools/data; echo no > ~/one.txt")
    assert done.stdout == b"tooled\nsingle\n"
    assert done.stderr.count(b"Read-only file system") == 2


async def test_a_bind_of_nothing_is_refused_by_name(local: "Bench") -> None:
    with pytest.raises(BoxStartFailed, match="no-such-thing"):
        await local.boot(binds=(Bind(source=local.place / "no-such-thing", target="/opt/x"),))


async def test_a_prepared_root_may_come_from_a_closed_folder(local: "Bench") -> None:
    root = local.place / "closed/root"
    (root / "app").mkdir(parents=True)
    (local.place / "closed").chmod(0o700)
    (root / "app/private").write_text("x")
    (root / "app/private").chmod(0o600)
    done = await local.run(
        await local.boot(root=root), "cat /app/private; stat -c '%a %U' /app/private; rm /app/private"
    )
    assert (done.status, done.output) == (0, "x600 user\n")


async def test_a_planted_link_does_not_lead_the_disk_watch_or_removal_astray(local: "Bench") -> None:
    precious = local.place / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    box = await local.boot()
    await local.run(box, f"ln -s {precious} ~/link; mkdir -p ~/a/b; chmod 0 ~/a; ln -s / /tmp/root")
    await box.stop()
    assert (precious / "file").read_text() == "kept"


async def test_a_very_deep_folder_is_removed_with_its_box(local: "Bench") -> None:
    box = await local.boot()
    deep = "import os\nfor i in range(1100): os.mkdir('deeper'); os.chdir('deeper')"
    done = await local.run(box, f'python3 -c "{deep}"')
    assert done.status == 0
    target = local.place / "out"
    target.mkdir()
    with pytest.raises(OSError, match="nest deeper"):
        await box.export(target)
    await box.stop()
    assert not box.folder.base.exists()


async def test_git_and_a_login_shell_work(local: "Bench") -> None:
    commit = "git -c user.name=a -c user.email=b commit -qm c --allow-empty"
    done = await local.run(await local.boot(), f"git init -q r && cd r && {commit} && git log --format=%s; echo $PATH")
    subject, path = done.stdout.decode().splitlines()
    assert subject == "c"
    assert path.startswith("/usr/local/bin:/usr/bin:/bin")


async def test_the_same_python_is_on_the_path(local: "Bench") -> None:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    done = await local.run(await local.boot(), f"{name} -c 'import sys, venv; print(sys.version)'")
    assert done.stdout.decode().strip().startswith(".".join(map(str, sys.version_info[:2])))


async def test_idle_boxes_cost_nothing(local: "Bench") -> None:
    """A handful, measured: agents and service wait in the kernel, none polls."""
    boxes = [await local.boot() for _ in range(5)]
    pids = [pid for box in boxes for pid in box.pids()]
    before = sum(cpu_ticks(pid) for pid in pids)
    await anyio.sleep(0.5)
    assert sum(cpu_ticks(pid) for pid in pids) - before <= 1


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_the_thread_that_starts_sandboxes_leaves_no_mount_behind(local: "Bench") -> None:
    await local.boot()
    mounts = (await anyio.run_process(["cat", "/proc/self/mounts"])).stdout.decode()
    assert "gate" not in mounts
    assert str(local.place) not in mounts
