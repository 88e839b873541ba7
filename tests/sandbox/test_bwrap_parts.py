"""The parts of the sandbox provider, one by one."""

import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator.core.errors import SandboxUnavailable
from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.agent_connection import AnswerParser, Exited, Ready, WireError, spawn_frame
from orchestrator.service.sandbox.bwrap import host
from orchestrator.service.sandbox.bwrap.bwrap_args import HostPython, Mount, box_arguments, networking
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.bwrap.host import FIRST_USER, USER_COUNT, Users, explain, user_range
from orchestrator.service.sandbox.bwrap.shared_files import Bubblewrap, copy_for_others, find_bubblewrap
from orchestrator.service.sandbox.bwrap.spawner import Spawner
from orchestrator.service.sandbox.provider import BoxNetwork, BoxSpec
from orchestrator.service.sandbox.providers import check
from orchestrator.service.sandbox.safe_fs import MAX_DEPTH, Copier, TooDeep, disk_usage, remove

if TYPE_CHECKING:
    from tests.sandbox.conftest import Bench

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
ALL_USERS = "         0          0 4294967295\n"


def test_boxes_run_as_users_that_nobody_has() -> None:
    assert user_range(ALL_USERS) == range(FIRST_USER, FIRST_USER + USER_COUNT)


@pytest.mark.parametrize("uid_map", ["0 100000 65536\n", "0 1000 1\n1 100000 65536\n", "0 0 1000\n"])
def test_in_a_container_with_few_users_the_last_of_them_are_taken(uid_map: str) -> None:
    users = user_range(uid_map)
    total = max(int(line.split()[0]) + int(line.split()[2]) for line in uid_map.splitlines())
    assert 0 < users.start < users.stop < total


def test_root_of_a_namespace_without_other_users_has_one_to_give_as_an_ordinary_user_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uid_map").write_text("         0       1000          1\n")
    monkeypatch.setattr(host, "UID_MAP", tmp_path / "uid_map")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    users = Users()
    assert [users.lend(), users.lend()] == [None, None]


def test_the_newest_bubblewrap_is_taken() -> None:
    try:
        found = find_bubblewrap()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    assert found.version >= (0, 8)
    assert found.path.is_file()


def test_the_packaged_program_is_copied_with_its_libraries_and_runs(tmp_path: Path) -> None:
    try:
        found = find_bubblewrap()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    if found.packaged is None:
        pytest.skip("this machine's own bubblewrap is the newest")
    (tmp_path / "copy").mkdir()
    program = copy_for_others(found, tmp_path / "copy")
    assert subprocess.run([program, "--version"], capture_output=True, check=True).stdout.startswith(b"bubblewrap")
    assert not [path for path in (tmp_path / "copy").rglob("*") if path.stat().st_mode & 0o022]


def test_the_machines_own_program_is_used_where_it_is(tmp_path: Path) -> None:
    own = Bubblewrap(path=Path("/usr/bin/bwrap"), version=(1, 0))
    assert copy_for_others(own, tmp_path) == own.path


@pytest.mark.parametrize(
    ("setting", "value", "advice"),
    [
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces="),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "apparmor_restrict_unprivileged_userns=0"),
    ],
)
def test_a_refusal_names_the_rule_and_the_command(tmp_path: Path, setting: str, value: str, advice: str) -> None:
    (tmp_path / setting).parent.mkdir()
    (tmp_path / setting).write_text(f"{value}\n")
    error = explain("bwrap: setting up uid map: Permission denied", settings=tmp_path, container=False)
    assert advice in str(error)
    assert "--isolation none" in str(error)
    assert "setting up uid map" in str(error)


def test_a_refusal_in_a_container_names_its_flags(tmp_path: Path) -> None:
    error = explain("bwrap: Can't mount proc on /newroot/proc", settings=tmp_path, container=True)
    assert "systempaths=unconfined" in str(error)


def test_a_refusal_elsewhere_names_namespaces(tmp_path: Path) -> None:
    assert "user namespaces" in str(explain("", settings=tmp_path, container=False))


@pytest.mark.anyio
async def test_asking_the_machine_leaves_no_process_and_no_thread() -> None:
    threads = {thread.name for thread in threading.enumerate()}
    with suppress(SandboxUnavailable):
        await check(Isolation.LOCAL)
    started = {thread.name for thread in threading.enumerate()} - threads
    assert not [name for name in started if name.startswith("devbox-spawner")]


def test_the_machines_network_is_shared_only_when_asked() -> None:
    own = {network for network in BoxNetwork if "--unshare-net" in networking(network, "/s")}
    assert own == {BoxNetwork.NONE, BoxNetwork.PUBLIC, BoxNetwork.NEIGHBOURS}


def test_root_and_devices_are_sealed_after_all_mounts() -> None:
    mounts = [Mount(source="/a", target="/app", writable=True), Mount(source="/b", target="/opt/b")]
    arguments = box_arguments(network=BoxNetwork.HOST, shared="/s", mounts=mounts)
    seal = next(i for i, word in enumerate(arguments) if word == "--remount-ro" and arguments[i + 1] == "/")
    assert arguments[arguments.index("/app") - 2] == "--bind"
    assert arguments[arguments.index("/opt/b") - 2] == "--ro-bind"
    assert not [word for word in arguments[seal + 2 :] if "bind" in word or "tmpfs" in word]


def test_the_interpreter_is_on_the_path_behind_the_systems() -> None:
    path = HostPython(program="/opt/py/bin/python3.12", prefix=Path("/opt/py")).path
    assert path == "/usr/local/bin:/usr/bin:/bin:/opt/py/bin"
    assert HostPython(program="/usr/bin/python3.12", prefix=None).path == "/usr/local/bin:/usr/bin:/bin"


@pytest.mark.anyio
async def test_two_providers_may_live_in_one_service(local: "Bench", tmp_path: Path) -> None:
    other = BwrapProvider(tmp_path / "other")
    await local.boot(id="same")
    box = await other.start(BoxSpec(id="same"))
    await other.close()
    assert await box.wait_dead() == "stopped"
    assert (await local.run(local.boxes[0], "echo alive")).output == "alive\n"


def test_answers_are_cut_at_newlines() -> None:
    answers = AnswerParser()
    assert answers.feed(b"rea") == []
    assert answers.feed(b"dy\nexit 7 255\nexit") == [Ready(), Exited(number=7, status=255)]
    assert answers.feed(b" 8 0\n") == [Exited(number=8, status=0)]


@pytest.mark.parametrize(
    "data",
    [b"\n", b"exit 1\n", b"exit 1 256\n", b"exit -1 0\n", b"exit 1 0 \n", b"ready \n", b"x" * 65, b"exit \xb2 0\n"],
)
def test_an_invalid_answer_of_a_boxs_agent_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        AnswerParser().feed(data)


def test_an_order_is_length_and_fields() -> None:
    assert spawn_frame(1, "/", "u", ["a", ""], {"K": "v=w"}) == b"\0\0\0\x16spawn\x001\0/\0u\x002\0a\0\0K=v=w"


def test_a_copy_keeps_links_modes_times_and_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    (source / "dir").mkdir(parents=True)
    target.mkdir()
    (source / "dir/file").write_text("text")
    (source / "dir/file").chmod(0o640)
    os.utime(source / "dir/file", ns=(1, 10**18))
    (source / "dir").chmod(0o500)
    (source / "link").symlink_to("/etc")
    with (source / "sparse").open("wb") as file:
        file.seek(50 << 20)
        file.write(b"end")
    Copier().copy(source, target)
    copied = (target / "dir/file").stat()
    assert (copied.st_mode & 0o777, copied.st_mtime_ns) == (0o640, 10**18)
    assert (target / "dir").stat().st_mode & 0o777 == 0o500
    assert (target / "link").readlink() == Path("/etc")
    assert (target / "sparse").read_bytes().endswith(b"\0end")
    assert (target / "sparse").stat().st_blocks * 512 < 1 << 20
    (source / "dir").chmod(0o700)
    remove(target)
    assert not target.exists()


def test_a_copy_for_which_there_is_no_room_fails(tmp_path: Path) -> None:
    """The system writes as much of the last piece as there is room for, and calls that a success."""
    (tmp_path / "from").mkdir()
    (tmp_path / "from/file").write_bytes(b"x" * 1_000_000)
    (tmp_path / "to").mkdir()
    mount = 'mount -t tmpfs -o size=512k none "$1/to" || exit 9; shift; exec "$@"'
    copy = (
        "import sys; from pathlib import Path; from orchestrator.service.sandbox.safe_fs import Copier; "
        "Copier().copy(Path(sys.argv[1], 'from'), Path(sys.argv[1], 'to'))"
    )
    command = [*NAMESPACE, "sh", "-c", mount, "sh", str(tmp_path), sys.executable, "-c", copy, str(tmp_path)]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if done.returncode == 9 or "unshare" in done.stderr:
        pytest.skip(f"no file system of our own can be mounted here: {done.stderr}")
    assert "No space left" in done.stderr


@pytest.mark.anyio
async def test_a_place_for_others_is_gone_when_nobody_needs_it(tmp_path: Path) -> None:
    spawner = Spawner()
    try:
        await spawner.run(spawner.take_private_mounts)
    except OSError as error:
        pytest.skip(f"no mounts of its own are permitted to a thread here: {error}")
    (tmp_path / "file").touch()
    for source in (tmp_path, tmp_path / "file"):
        place = Path(await spawner.run(partial(spawner.admit, source)))
        assert await spawner.run(place.exists)
        await spawner.run(partial(spawner.dismiss, source))
        assert not await spawner.run(place.exists)
    await anyio.to_thread.run_sync(spawner.close)


def test_folders_that_their_owner_closed_are_measured_copied_and_stay_closed(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    (source / "closed").mkdir(parents=True)
    target.mkdir()
    (source / "closed/file").write_bytes(b"x" * 100_000)
    (source / "closed/file").chmod(0)
    (source / "closed").chmod(0)
    assert disk_usage(source) > 100_000
    Copier().copy(source, target)
    assert [(p / "closed").stat().st_mode & 0o777 for p in (source, target)] == [0, 0]
    (target / "closed").chmod(0o700)
    assert (target / "closed/file").stat().st_size == 100_000
    remove(source)
    assert not source.exists()


def test_nesting_without_end_is_refused_and_can_be_removed(tmp_path: Path) -> None:
    top = tmp_path / "a"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(MAX_DEPTH + 2):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with pytest.raises(TooDeep):
        disk_usage(top)
    remove(top)
    assert not top.exists()


def test_removing_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/link").symlink_to(tmp_path / "precious")
    (tmp_path / "a/b/link").symlink_to(tmp_path / "precious")
    remove(tmp_path / "a")
    assert (tmp_path / "precious/file").exists()


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove(tmp_path / "nothing")


@pytest.mark.root
def test_folders_of_an_overlays_lower_layers_are_removed(tmp_path: Path) -> None:
    """They cannot be moved, and new folders may be in them."""
    lower, upper, work, place = (tmp_path / name for name in ("lower", "upper", "work", "place"))
    (lower / "a/b/c").mkdir(parents=True)
    (lower / "a/b/file").touch()
    for each in (upper, work, place):
        each.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    if subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, place], check=False).returncode != 0:
        pytest.skip("no overlay can be mounted here")
    try:
        (place / "a/b/new/newer").mkdir(parents=True)
        remove(place / "a")
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", place], check=True)
