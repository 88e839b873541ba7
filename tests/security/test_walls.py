"""Attempts of a hostile program, or of a hostile environment, against the walls of a box: each was real."""

import ctypes
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from orchestrator.service.sandbox.base_provider import AgentBox
from orchestrator.service.sandbox.bwrap.bwrap_args import ALLOW, RETURN, HostPython, seccomp_filter, veils
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.bwrap.spawner import JOIN_SESSION_KEYRING, KEYCTL, Spawner
from orchestrator.service.sandbox.provider import Bind, BoxNetwork, BoxSpec, BoxStartFailed
from orchestrator.service.sandbox.safe_fs import ENTRY_BYTES, disk_usage

pytestmark = pytest.mark.anyio
Boot = Callable[..., Awaitable[AgentBox]]
Ask = Callable[[AgentBox, str], Awaitable[str]]


@pytest.mark.parametrize("target", ["/", "../../../../../../etc"])
async def test_a_link_in_a_prepared_home_becomes_no_mount_of_the_host(boot: Boot, tmp_path: Path, target: str) -> None:
    """The program that mounts would follow it outside and hand the place over, writable."""
    (tmp_path / "root/home").mkdir(parents=True)
    (tmp_path / "root/home/mine").symlink_to(target)
    with pytest.raises(BoxStartFailed, match=r"folders only, not home/mine"):
        await boot(root=tmp_path / "root")


async def test_mounts_in_a_boxs_own_folder_cannot_be_moved_away(boot: Boot, say: Ask, tmp_path: Path) -> None:
    """A scorer's program would be one of the agent's."""
    (tmp_path / "root/opt").mkdir(parents=True)
    (tmp_path / "tool").write_text("#!/bin/sh\necho real\n")
    (tmp_path / "tool").chmod(0o755)
    binds = (
        Bind(source=tmp_path / "tool", target="/opt/sweep/a/tool"),
        Bind(source=tmp_path / "tool", target="/opt/sweep/b/tool"),
    )
    box = await boot(root=tmp_path / "root", binds=binds)
    deed = "mv /opt/sweep /opt/x; mv /opt/sweep/a /opt/x; rm -rf /opt/sweep/a; mkdir -p /opt/sweep/a; "
    forge = "printf '#!/bin/sh\\necho forged\\n' > /opt/sweep/a/tool; chmod +x /opt/sweep/a/tool; "
    answer = await say(
        box, f"({deed}{forge}) 2>/dev/null; /opt/sweep/a/tool; /opt/sweep/b/tool; touch /opt/free && echo ok"
    )
    assert answer == "real\nreal\nok\n"


async def test_a_link_on_the_way_to_a_mount_is_refused(boot: Boot, tmp_path: Path) -> None:
    (tmp_path / "root/opt").mkdir(parents=True)
    (tmp_path / "root/opt/sweep").symlink_to("/oldroot")
    (tmp_path / "tool").write_text("")
    with pytest.raises(BoxStartFailed, match=r"/opt/sweep is a link"):
        await boot(root=tmp_path / "root", binds=(Bind(source=tmp_path / "tool", target="/opt/sweep/tool"),))


async def test_the_interpreter_stays_where_it_is_though_a_box_owns_the_folder_above(boot: Boot, say: Ask) -> None:
    prefix = HostPython.ours().prefix
    if prefix is None:
        pytest.skip("this Python is the system's")
    top = Path("/", prefix.parts[1])
    box = await boot(working_directory=str(top / "work"))
    answer = await say(
        box, f"mv {'/'.join(prefix.parts[:3])[1:]} {top}/x; test -x {HostPython.ours().program} && echo there"
    )
    assert "busy" in answer
    assert "there" in answer.splitlines()


async def test_hidden_folders_are_hidden_wherever_they_are_installed(sandboxes: None, tmp_path: Path, say: Ask) -> None:
    """Benchmarks come with their solutions, and may lie in /usr or in the folder of the interpreter."""
    hidden = _some_folder_of_the_system()
    provider = BwrapProvider(tmp_path / "devboxes", hidden=[hidden, Path("/usr/share/not-there")])
    try:
        box = await provider.start(BoxSpec(id="x"))
        assert await say(box, f"ls -A {hidden}; touch {hidden}/x 2>/dev/null || echo sealed") == "sealed\n"
    finally:
        await provider.close()


def _some_folder_of_the_system() -> Path:
    return next(place for place in map(Path, ("/usr/share/doc", "/usr/share/zoneinfo", "/usr/share")) if place.is_dir())


def test_hidden_folders_are_covered_in_every_place_where_a_box_would_see_them(tmp_path: Path) -> None:
    prefix = tmp_path / "python"
    hidden = [prefix / "lib/us", tmp_path / "elsewhere", tmp_path / "bound/in"]
    for folder in hidden:
        folder.mkdir(parents=True)
    binds = {"/opt/b": tmp_path / "bound", "/opt/state": tmp_path / "elsewhere"}
    assert list(veils(hidden, binds, prefix)) == [f"{prefix}/lib/us", "/opt/b/in"]


async def test_keys_of_the_login_that_started_the_service_are_out_of_reach(
    sandboxes: None, tmp_path: Path, tell: Ask
) -> None:
    number = KEYCTL.get(os.uname().machine, 0)
    key = _have_key(number)
    if key < 0:
        pytest.skip("keys cannot be had here")
    provider = BwrapProvider(tmp_path / "devboxes")
    try:
        box = await provider.start(BoxSpec(id="x"))
        head = f"import ctypes; call = ctypes.CDLL(None).syscall; b = ctypes.create_string_buffer(99); n = {number}"
        calls = f"print(call(n, 10, -3, b'user', b'sweep-test', 0), call(n, 11, {key}, b, 99), b.value)"
        assert await tell(box, f"{head}; {calls}") == "-1 -1 b''\n"
    finally:
        await provider.close()


async def test_the_thread_that_starts_boxes_has_left_the_logins_keyring() -> None:
    number = KEYCTL.get(os.uname().machine, 0)
    if _have_key(number) < 0:
        pytest.skip("keys cannot be had here")
    spawner = Spawner()
    session = ctypes.CDLL(None).syscall
    assert await spawner.run(lambda: session(number, 0, -3, 0)) != session(number, 0, -3, 0)
    await anyio.to_thread.run_sync(spawner.close)


def _have_key(number: int) -> int:
    """A session keyring with a key in it, for this thread and those that it starts."""
    libc = ctypes.CDLL(None)
    libc.syscall(number, JOIN_SESSION_KEYRING, None)
    return int(libc.syscall(number - 2, b"user", b"sweep-test", b"secret", 6, -3))


async def test_sockets_that_no_namespace_holds_cannot_be_opened(boot: Boot, tell: Ask) -> None:
    code = """
import ctypes, socket
for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
    socket.socket(family, socket.SOCK_DGRAM).close()
for family in (40, 38, 31, 17):
    try:
        socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        print(error.errno)
print(ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(120)))
"""
    assert await tell(await boot(network=BoxNetwork.HOST), code) == "97\n97\n97\n97\n-1\n"


@pytest.mark.parametrize("has_one_user", [False, True])
def test_the_filter_ends_every_path_with_a_verdict(*, has_one_user: bool) -> None:
    made = seccomp_filter(has_one_user=has_one_user)
    code = [made[start : start + 8] for start in range(0, len(made), 8)]
    assert code[-1][:2] == RETURN.to_bytes(2, "little")
    for at, each in enumerate(code):
        operation, yes, no = int.from_bytes(each[:2], "little"), each[2], each[3]
        if operation & 7 == 5:
            assert at + 1 + max(yes, no) < len(code)
    assert int.from_bytes(code[-1][4:], "little") == ALLOW


async def test_abstract_sockets_of_the_host_are_fenced_off_even_with_the_network_on(boot: Boot, tell: Ask) -> None:
    if tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) < (6, 12):
        pytest.skip("Linux 6.12 is the first that can")
    name = f"sweep-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        own = "a = s(); a.bind(z + 'own'); a.listen(); s().connect(z + 'own'); print('own')"
        code = f"import socket; s = lambda: socket.socket(socket.AF_UNIX); z = chr(0); {own}; s().connect(z + '{name}')"
        answer = await tell(await boot(network=BoxNetwork.HOST), code)
    assert answer.startswith("own\n")
    assert "PermissionError" in answer or "Operation not permitted" in answer


def test_a_file_without_content_counts_too(tmp_path: Path) -> None:
    """Else a box could use up all the file system's entries and be small."""
    for number in range(50):
        (tmp_path / str(number)).touch()
    assert disk_usage(tmp_path) == 50 * ENTRY_BYTES
