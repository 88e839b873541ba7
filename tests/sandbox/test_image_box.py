"""What is special about a box of an image: its file system, its users, and what is left of both."""

import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.bwrap.bwrap_args import CAPABILITIES
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.bwrap.host import FIRST_USER, USER_COUNT, id_starts
from orchestrator.service.sandbox.bwrap.image_box import ImageBox
from orchestrator.service.sandbox.bwrap.image_files import IdRanges
from orchestrator.service.sandbox.bwrap.shared_files import WRITTEN
from orchestrator.service.sandbox.closure import IN_BOX, PROGRAM
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.disk import measure
from orchestrator.service.sandbox.process_provider import ProcessProvider
from orchestrator.service.sandbox.provider import (
    Bind,
    BoxNetwork,
    BoxSpec,
    BoxStartFailed,
    Command,
    ImageRoot,
    Limit,
    Resources,
    shell,
)
from orchestrator.service.sandbox.safe_fs import remove
from orchestrator.service.sandbox.user_namespace import ID_COUNT, IdMap
from tests.processes import carrying
from tests.sandbox.conftest import AnyProvider, opened, prepared
from tests.sandbox.test_service_death import in_session, start_alone
from tests.waiting import until

if TYPE_CHECKING:
    from tests.sandbox.conftest import Bench

pytestmark = pytest.mark.anyio


@pytest.fixture
async def imaged(local_provider: AnyProvider, image: ImageRoot, tmp_path: Path) -> AsyncIterator["Bench"]:
    async for bench in opened(local_provider, tmp_path, image):
        yield bench


@pytest.fixture
def one_id() -> IdMap:
    """The one id that files have here, whatever they have in their image."""
    ids = IdMap.own()
    if ids.is_whole:
        pytest.skip("this user has the ids of images")
    return ids


@pytest.fixture
def many_ids() -> IdMap:
    """The ids of images that files have here."""
    ids = IdMap.own()
    if not ids.is_whole:
        pytest.skip("this user has one id")
    return ids


async def say(bench: "Bench", box: ImageBox, script: str) -> str:
    return (await bench.run(box, script)).output


async def boot(bench: "Bench", **spec: object) -> ImageBox:
    box = await bench.boot(**spec)  # type: ignore[arg-type]
    assert isinstance(box, ImageBox)
    return box


async def test_the_root_is_the_images_layers_and_the_upper_ones_count(imaged: "Bench") -> None:
    box = await boot(imaged)
    said = await say(imaged, box, "cat /opt/kept; ls /opt; stat -c '%u %g' /var/www/page /bin/ls")
    owner = "33 33" if box.ids.is_whole else "0 0"
    assert said == f"upper\nkept\n{owner}\n0 0\n"


async def test_every_place_of_the_image_can_be_written_and_the_image_stays(imaged: "Bench", image: ImageRoot) -> None:
    box = await boot(imaged)
    script = "echo new >/etc/new && rm /bin/seq && mkdir /opt/old && ls /opt/old && chown 33:33 /opt/kept && echo done"
    assert await say(imaged, box, script) == "done\n"
    assert not (image.layers[0] / "etc/new").exists()
    assert (image.layers[0] / "usr/bin/seq").exists()
    assert await say(imaged, await boot(imaged), "ls /etc/new /bin/seq") != "done"
    assert (await imaged.run(await boot(imaged), "test ! -e /etc/new -a -e /bin/seq")).status == 0


async def test_root_of_the_box_is_nobody_on_the_host(imaged: "Bench", many_ids: IdMap) -> None:
    box = await boot(imaged)
    assert await say(imaged, box, "id -u; touch /made; chown 33:33 /made; stat -c %u /made") == "0\n33\n"
    assert os.stat(box.folder.files / "made").st_uid == box.first_id + 33  # noqa: PTH116
    assert os.stat(f"/proc/{max(box.pids())}").st_uid == box.first_id != os.geteuid()  # noqa: PTH116


async def test_boxes_are_strangers_to_each_other_where_the_machine_has_the_ids(
    imaged: "Bench", many_ids: IdMap
) -> None:
    first, second = await boot(imaged), await boot(imaged)
    if many_ids.user != 0:
        assert first.ids == second.ids == many_ids
        pytest.skip("an ordinary user is lent the ids of one box")
    assert abs(first.first_id - second.first_id) >= ID_COUNT


async def test_root_of_the_box_has_a_containers_capabilities_and_no_way_to_more(imaged: "Bench") -> None:
    box = await boot(imaged)
    script = "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status"
    assert await say(imaged, box, script) == "CapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\n"
    assert len(CAPABILITIES) == 0xA80425FB.bit_count()


async def test_a_program_that_root_starts_as_another_user_has_no_capability(imaged: "Bench", many_ids: IdMap) -> None:
    show = ("grep", "-E", "^Cap(Prm|Eff|Amb)", "/proc/self/status")
    code = f"import os; os.setgroups([]); os.setgid(33); os.setuid(33); os.execvp('grep', {show})"
    done = await run(await boot(imaged), Command(argv=(PROGRAM, "-c", code)), timeout=20)
    assert [line.split()[1] for line in done.output.splitlines()] == ["0" * 16] * 3


@pytest.mark.parametrize(
    "deed",
    [
        "mount -t tmpfs none /tmp",
        "umount /proc",
        f"umount {IN_BOX}",
        f"mv {IN_BOX} /gone",
        f"touch {IN_BOX}/x",
        "unshare -U true",
        "unshare -m true",
        "mknod /disk b 254 0 && test -e /disk",
        "echo 9 >/proc/sys/user/max_user_namespaces",
        "touch /x && chown 65536 /x && test $(stat -c %u /x) != 0",
    ],
)
async def test_what_root_of_the_box_must_not_do_is_refused(imaged: "Bench", deed: str) -> None:
    assert (await imaged.run(await boot(imaged), deed)).status != 0


async def test_a_box_with_one_user_says_that_owners_are_changed_and_installs_go_on(
    imaged: "Bench", one_id: IdMap
) -> None:
    box = await boot(imaged)
    script = (
        "touch /x && chown 33:34 /x && chown :5 /x && ln -s x /y && chown -h 33 /y && mknod /disk b 254 0 && mkfifo /p"
    )
    assert await say(imaged, box, f"{script}; echo $?; stat -c '%u %g %F' /x /p; test -e /disk; echo $?") == (
        "0\n0 0 regular empty file\n0 0 fifo\n1\n"
    )
    code = "import os; os.setgroups([33]); os.setresgid(33, 33, 33); os.setresuid(33, 33, 33); print(os.getuid())"
    assert (await run(box, Command(argv=(PROGRAM, "-c", code)), timeout=20)).output == "0\n"
    assert await say(imaged, box, "apt-config dump APT::Sandbox::User") == 'APT::Sandbox::User "root";\n'


async def test_a_box_with_one_user_runs_nothing_as_another(imaged: "Bench", one_id: IdMap) -> None:
    for user in ("root", "0:0"):
        assert await say(imaged, await boot(imaged, user=user), "id -u") == "0\n"
    for user in ("www-data", "33", "root:5"):
        with pytest.raises(
            BoxStartFailed, match=f"run as '{user}', and there is one user only: /etc/subuid has no line"
        ):
            await boot(imaged, user=user)


async def test_a_box_of_an_empty_image_runs_our_python(imaged: "Bench") -> None:
    (imaged.place / "empty").mkdir()
    box = await boot(imaged, image=ImageRoot(layers=(imaged.place / "empty",)), working_directory="/srv/deep")
    process = await box.spawn(Command(argv=(PROGRAM, "-c", "import os, ssl; print(os.getcwd(), os.getuid())")))
    assert await process.stdout.receive() == b"/srv/deep 0\n"
    assert await (await box.spawn(Command(argv=("true",)))).wait() == 127


async def test_a_box_has_more_layers_than_one_page_of_options_holds(imaged: "Bench", image: ImageRoot) -> None:
    layers = [imaged.place / f"a-layer-with-a-long-name-{number:064}" for number in range(150)]
    for number, layer in enumerate(layers):
        layer.mkdir()
        (layer / f"file-{number}").write_text("")
    box = await boot(imaged, image=ImageRoot(layers=(*image.layers, *layers)))
    assert await say(imaged, box, "ls -d /file-* | wc -l") == "150\n"


async def test_names_are_looked_up_as_on_the_host_when_the_network_is_on(imaged: "Bench") -> None:
    there = await anyio.Path("/etc/resolv.conf").exists()
    host = await anyio.Path("/etc/resolv.conf").read_text() if there else ""
    assert await say(imaged, await boot(imaged, network=BoxNetwork.HOST), "cat /etc/resolv.conf") == host
    assert await say(imaged, await boot(imaged), "cat /etc/resolv.conf; cat /etc/hosts") == WRITTEN["hosts"]


async def test_a_layer_that_is_gone_is_named(imaged: "Bench") -> None:
    with pytest.raises(BoxStartFailed, match=r"lacks the layer /gone; have the image fetched again"):
        await boot(imaged, image=ImageRoot(layers=(Path("/gone"),)))


@pytest.mark.parametrize("place", ["/proc/x", "/.sweep", "/dev", "/sys/y"])
async def test_folders_that_every_box_has_of_its_own_are_no_place_for_a_spec(imaged: "Bench", place: str) -> None:
    with pytest.raises(BoxStartFailed, match=f"{place} is not the image's"):
        await boot(imaged, working_directory=place)
    with pytest.raises(BoxStartFailed, match=f"{place} is not the image's"):
        await boot(imaged, binds=(Bind(source=imaged.place, target=place),))


async def test_a_prepared_root_may_change_the_images_own_folders(imaged: "Bench") -> None:
    (imaged.place / "root/etc").mkdir(parents=True)
    (imaged.place / "root/etc/motd").write_text("hello\n")
    (imaged.place / "root/etc/os-release").write_text("ID=other\n")
    box = await boot(imaged, root=imaged.place / "root")
    assert await say(imaged, box, "cat /etc/motd /etc/os-release; stat -c %u /etc/motd /etc; ls /etc/passwd") == (
        "hello\nID=other\n0\n0\n/etc/passwd\n"
    )


@pytest.mark.parametrize("path", ["bin/tool", "opt/kept/tool"])
async def test_a_prepared_root_that_does_not_fit_its_image_is_refused(imaged: "Bench", path: str) -> None:
    (imaged.place / "root" / path).parent.mkdir(parents=True)
    (imaged.place / "root" / path).write_text("")
    name = path.split("/")[-2]
    with pytest.raises(BoxStartFailed, match=f"{name} is a folder in one of them and none in the other"):
        await boot(imaged, root=imaged.place / "root")


async def test_links_of_an_image_lead_no_copy_and_no_mount_out_of_the_box(imaged: "Bench", image: ImageRoot) -> None:
    secret, hostile = imaged.place / "secret", imaged.place / "hostile"
    for folder in (secret, hostile / "opt", imaged.place / "root/app"):
        folder.mkdir(parents=True)
    for name in ("tests", "logs", ".sweep", "proc", "dev", "opt/tools", "etc"):
        (hostile / name).symlink_to(secret)
    (hostile / "srv").symlink_to("/opt")
    (hostile / "lost").symlink_to(secret)
    (imaged.place / "root/app/x").write_text("")
    spiked = ImageRoot(layers=(*image.layers, hostile))
    binds = (Bind(source=imaged.place / "root", target="/opt/tools"),)
    box = await boot(imaged, image=spiked, binds=binds, root=imaged.place / "root", working_directory="/srv/work")
    assert await say(imaged, box, "ls /opt/tools/app; ls -d /logs/verifier /opt/work; cat /etc/hostname") == (
        "x\n/logs/verifier\n/opt/work\ndevbox\n"
    )
    assert not list(secret.iterdir())
    with pytest.raises(BoxStartFailed, match=r"/lost is a link to nowhere in the image, and /lost/x is to be a folder"):
        await boot(imaged, image=spiked, working_directory="/lost/x")
    with pytest.raises(BoxStartFailed, match=r"/srv is a link in the image, and /srv/a has to be mounted there"):
        await boot(imaged, image=spiked, binds=(Bind(source=secret, target="/srv/a"),))


async def test_a_box_cannot_move_a_bind_away(imaged: "Bench") -> None:
    tools = imaged.place / "tools"
    tools.mkdir()
    (tools / "tool").write_text("ours")
    box = await boot(imaged, binds=(Bind(source=tools, target="/opt/deep/tools"),))
    script = "mv /opt/deep /opt/gone; mv /opt /gone; rm -rf /opt; cat /opt/deep/tools/tool"
    assert (await say(imaged, box, script)).startswith("ours")
    assert (tools / "tool").exists()


async def test_boxes_of_one_image_beside_each_other_have_one_file_system(imaged: "Bench") -> None:
    box = await boot(imaged)
    await imaged.run(box, "echo changed >/etc/os-release; rm /bin/seq; echo mine >/tmp/file; chmod 600 /tmp/file")
    await box.retire()
    assert (box.place("/etc") / "os-release").read_text() == "changed\n"
    assert not (box.place("/bin/seq")).exists()
    other = await boot(imaged, beside=box)
    assert await say(imaged, other, "cat /etc/os-release /tmp/file; ls /bin/seq 2>/dev/null") == "changed\nmine\n"
    await imaged.run(other, "echo later >/app/file")
    assert (box.place("/app") / "file").read_text() == "later\n"
    await box.stop()
    assert await other.wait_dead() == "stopped"


async def test_what_a_box_did_to_our_folders_does_not_keep_another_from_its_files(imaged: "Bench") -> None:
    for name in ("secret", "tests"):
        (imaged.place / name).mkdir()
    box = await boot(imaged)
    await imaged.run(box, f"rm -r /tests /logs /solution; ln -s {imaged.place}/secret /tests; touch /solution")
    await imaged.run(box, f"mkdir /logs; ln -s /etc /logs/verifier; chmod 0 /tmp; mv /app /away; ln -s / {IN_BOX}")
    await box.retire()
    (imaged.place / "tests/ours").write_text("")
    binds = [Bind(source=imaged.place / "tests", target=target) for target in ("/tests/deep", "/logs/verifier")]
    other = await boot(imaged, beside=box, binds=tuple(binds))
    said = await say(imaged, other, "ls /tests /logs/verifier; stat -c %a /tmp /logs/artifacts; ls -d /solution/")
    assert said == "/logs/verifier:\nours\n\n/tests:\ndeep\n1777\n777\n/solution/\n"
    assert not list((imaged.place / "secret").iterdir())


async def test_a_box_of_another_image_beside_one_may_use_its_files(imaged: "Bench", image: ImageRoot) -> None:
    box = await boot(imaged)
    await imaged.run(box, "umask 077; echo first >/app/file")
    await box.retire()
    binds = (Bind(source=box.place("/app"), target="/app", is_writable=True),)
    other = await boot(imaged, beside=box, binds=binds, image=ImageRoot(layers=image.layers[:2]))
    assert await say(imaged, other, "cat /app/file /opt/kept; echo second >/app/file") == "first\nlower\n"
    assert (box.place("/app") / "file").read_text() == "second\n"


async def test_a_box_of_an_image_is_not_started_beside_one_of_the_machine(imaged: "Bench") -> None:
    box = await imaged.boot(image=None)
    with pytest.raises(BoxStartFailed, match="beside another such box only"):
        await boot(imaged, beside=box)


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("", "0 0 /root"),
        ("www-data", "33 33 /var/www"),
        ("33", "33 33 /var/www"),
        ("4000", "4000 0 /"),
        ("4000:5000", "4000 5000 /"),
        ("www-data:0", "33 0 /var/www"),
    ],
)
async def test_commands_run_as_the_specs_user_and_in_its_home(
    imaged: "Bench", user: str, said: str, many_ids: IdMap
) -> None:
    """Names and numbers mean what container engines make of them."""
    box = await boot(imaged, user=user)
    assert await say(imaged, box, "echo $(id -u) $(id -g) $HOME") == f"{said}\n"
    plain = await run(box, Command(argv=("id", "-u"), is_plain=True), timeout=20)
    assert plain.output == "0\n"


async def test_our_folders_are_writable_for_the_images_user(imaged: "Bench", many_ids: IdMap) -> None:
    """A solution, and tests that run beside what an agent left, unpack there by themselves."""
    box = await boot(imaged, user="www-data")
    assert await say(imaged, box, "for each in /solution /tests /logs/verifier /tmp; do touch $each/x; done") == ""


async def test_a_user_that_the_image_lacks_is_named(imaged: "Bench", many_ids: IdMap) -> None:
    done = await imaged.run(await boot(imaged, user="nemo"), "true")
    assert (done.status, done.output) == (126, "user nemo: /etc/passwd has no such user\n")


async def test_programs_of_another_user_end_with_their_command(imaged: "Bench", marker: str, many_ids: IdMap) -> None:
    box = await boot(imaged, user="www-data")
    process = await box.spawn(shell(f"export M={marker}; setsid sleep 1000 & exec sleep 1000"))
    await until(lambda: len(carrying(marker)) >= 2, "the programs did not start")
    await process.kill()
    assert not carrying(marker)


async def test_a_script_without_a_first_line_is_the_shells_for_every_user(imaged: "Bench", many_ids: IdMap) -> None:
    box = await boot(imaged, user="www-data")
    assert await say(imaged, box, "printf 'id -u' >/tmp/x; chmod 755 /tmp/x; /tmp/x; /tmp/none") != ""
    done = await run(box, Command(argv=("/tmp/x",)), timeout=20)
    assert (done.status, done.output) == (0, "33\n")
    assert (await run(box, Command(argv=("nothing-here",)), timeout=20)).status == 127


@pytest.mark.parametrize("is_copied", [False, True])
async def test_a_box_leaves_what_it_wrote_as_a_layer_with_the_ids_of_images(
    imaged: "Bench", image: ImageRoot, many_ids: IdMap, *, is_copied: bool
) -> None:
    """Owners, modes that lend rights, capabilities and removed files are what another box on top of it sees."""
    place = imaged.place / "building"
    box = await boot(imaged, layer=place)
    script = "echo new >/made; chown 33:34 /made; chmod 6755 /made; ln /made /again; rm /opt/kept; mkdir /var/x"
    assert await say(imaged, box, f"{script}; cp /bin/ls /l") == ""
    give = (
        "import os; os.setxattr('/l', 'security.capability', bytes.fromhex('0100000200040000000000000000000000000000'))"
    )
    assert (await run(box, Command(argv=(PROGRAM, "-c", give)), timeout=20)).output == ""
    if is_copied:
        await box.freeze()
        await box.save(imaged.place / "kept")
        await box.thaw()
        assert await say(imaged, box, "cat /made; stat -c '%u %g %a' /made") == "new\n33 34 6755\n"
    else:
        await box.keep_layer(imaged.place / "kept")
    await box.stop()
    assert not place.exists()

    made = (imaged.place / "kept/made").stat()
    owner = (made.st_uid - many_ids.user, made.st_gid - many_ids.group)
    assert (*owner, oct(made.st_mode), made.st_nlink) == (33, 34, "0o106755", 2)
    on_top = await boot(imaged, image=ImageRoot(layers=(*image.layers, imaged.place / "kept")))
    shown = "stat -c '%u %g %a' /made /again /var/x; ls /opt; cat /made"
    assert await say(imaged, on_top, shown) == "33 34 6755\n33 34 6755\n0 0 755\nnew\n"
    read = "import os; print(os.getxattr('/l', 'security.capability').hex())"
    assert (await run(on_top, Command(argv=(PROGRAM, "-c", read)), timeout=20)).output.startswith("01000002000400")


async def test_users_of_a_box_share_its_limit_of_processes(imaged: "Bench", many_ids: IdMap) -> None:
    """A limit for each user would let a box of thousands of users take all processes of the machine."""
    box = await boot(imaged, resources=Resources(processes=60))
    if Limit.PROCESSES not in box.cgroup.enforced:
        pytest.skip("this machine has no control group for processes")
    fork = "while true; do sleep 1000 & done 2>/dev/null"
    script = f"for user in 1001 1002 1003 1004; do setpriv --reuid $user --clear-groups sh -c '{fork}' & done"
    process = await box.spawn(shell(f"{script}; sleep 1000", words=box.shell))
    events = box.cgroup.folders[Limit.PROCESSES] / "pids.events"
    await until(lambda: events.read_text().split() != ["max", "0"], "no process is refused")
    assert 60 - 20 < len(list(box.pids())) <= 60 + 40  # a shell that may not fork ends
    await process.kill()
    assert await say(imaged, box, "echo alive") == "alive\n"


@pytest.mark.parametrize("is_copied", [False, True])
async def test_folders_that_nest_too_deep_harm_nobody(imaged: "Bench", *, is_copied: bool) -> None:
    box = await boot(imaged)
    deep = "import os\nos.chdir('/srv')\nfor n in range(3000): os.mkdir('a'), os.chdir('a')"
    assert (await run(box, Command(argv=(PROGRAM, "-c", deep)), timeout=20)).status == 0
    with suppress(OSError):  # where a layer has the box's ids already, it may be kept
        await (box.save(imaged.place / "kept") if is_copied else box.keep_layer(imaged.place / "kept"))
    remove(imaged.place / "kept")
    await box.stop()
    assert not box.folder.base.exists()


async def test_marks_of_overlays_that_a_program_writes_hide_nothing(imaged: "Bench", image: ImageRoot) -> None:
    box = await boot(imaged)
    marks = {f"user.overlay.{name}": b"y" for name in ("opaque", "whiteout", "metacopy")}
    marks["user.overlay.redirect"] = b"/etc"
    forge = f"""
import os, stat
for place in ("/opt", "/opt/kept", "/var/www"):
    for name, value in {marks}.items():
        try:
            os.setxattr(place, name, value)
        except OSError:
            pass  # so it is before Linux 6.7
for place in ("/opt/gone", "/var/www/page"):
    try:
        os.mknod(place, stat.S_IFCHR, 0)
    except OSError as error:
        print(error.strerror)
"""
    assert (await run(box, Command(argv=(PROGRAM, "-c", forge)), timeout=20)).status == 0
    await box.keep_layer(imaged.place / "kept")
    own = [os.listxattr(each) for each in (imaged.place / "kept", *(imaged.place / "kept").rglob("*"))]
    assert not [name for names in own for name in names if name in marks]
    await box.stop()
    on_top = await boot(imaged, image=ImageRoot(layers=(*image.layers, imaged.place / "kept")))
    assert await say(imaged, on_top, "cat /opt/kept /var/www/page; ls /opt /var/www") == (
        "upper\npage\n/opt:\nkept\n\n/var/www:\npage\n"
    )


async def test_unlinked_files_of_every_user_in_a_box_count(imaged: "Bench") -> None:
    box = await boot(imaged, resources=Resources(disk=100 << 20))
    script = "import os, time; os.setuid({}); f = open('/tmp/{}', 'wb'); os.unlink(f.name); f.write(bytes(9_000_000)); "
    script += "f.flush(); print(1, flush=True); time.sleep(1000)"
    for user in (0, 33):
        process = await box.spawn(Command(argv=(PROGRAM, "-c", script.format(user, user))))
        assert await process.stdout.receive() == b"1\n"
    assert measure(imaged.provider.watch._boxes[box.folder.files]) > 18_000_000


async def test_what_a_box_writes_anywhere_counts_for_its_disk(imaged: "Bench") -> None:
    box = await boot(imaged, resources=Resources(disk=20 << 20))
    await box.spawn(
        Command(argv=("bash", "-c", "head -c 15000000 /dev/zero >/usr/lib/a; cp /usr/lib/a /b; sleep 1000"))
    )
    with anyio.fail_after(90):  # it is looked at once a minute at least, if others free room at the same time
        assert "out of disk" in await box.wait_dead()


async def test_a_stopped_box_leaves_no_mount_and_its_ids_are_used_again(imaged: "Bench") -> None:
    box = await boot(imaged)
    first, outside = box.first_id, box.place("/")
    await imaged.run(box, "mkdir -m 0 /closed; touch /opt/kept")
    thread = Path(*outside.parts[:5])
    assert _overlays(thread)
    await box.stop()
    assert not _overlays(thread)
    assert not outside.exists()
    again = await boot(imaged)
    assert again.first_id == first


async def test_a_box_that_has_started_is_not_among_the_mounts_that_the_next_ones_start_reads(imaged: "Bench") -> None:
    box = await boot(imaged)
    host = await imaged.provider.prepare()
    assert not await host.spawner.run(partial(_overlays, Path("/proc/thread-self")))
    assert await host.roots.run(partial(_overlays, Path("/proc/thread-self")))
    await boot(imaged, beside=box)
    assert not await host.spawner.run(partial(_overlays, Path("/proc/thread-self")))


def _overlays(thread: Path) -> list[str]:
    """File systems of boxes of images that are mounted for a thread."""
    return [line for line in (thread / "mountinfo").read_text().splitlines() if " - overlay devbox " in line]


SERVICE = """
import asyncio, sys
from pathlib import Path
from orchestrator.service.sandbox.provider import BoxSpec, Command, ImageRoot
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider

async def main():
    state = Path(sys.argv[1])
    (state.parent / "empty").mkdir(exist_ok=True)
    image = ImageRoot(layers=(state.parent / "empty",))
    provider = BwrapProvider(state)
    box = await provider.start(BoxSpec(id="first", image=image))
    await box.spawn(Command(argv=("/.sweep/bin/agent", "-c", "import time; time.sleep(1000)", "MARKER")))
    print("up", flush=True)
    await asyncio.gather(*(provider.start(BoxSpec(id=f"victim-{n}", image=image)) for n in range(12)))

asyncio.run(main())
"""


@pytest.mark.parametrize("booting", [1, 4])
async def test_a_killed_service_leaves_nothing_of_boxes_of_images(
    booting: int, state: Path, marker: str, imaged: "Bench"
) -> None:
    service = start_alone(SERVICE.replace("MARKER", marker), state)
    assert service.stdout is not None
    with anyio.fail_after(60):
        assert await anyio.to_thread.run_sync(service.stdout.readline) == b"up\n"
    await until(lambda: len(list((state / "boxes").iterdir())) > booting, "boxes boot")
    service.send_signal(signal.SIGKILL)
    service.communicate()
    await until(lambda: not in_session(service.pid), "nothing is left of those that booted")
    await until(lambda: not carrying(marker), "nothing is left of those that ran")
    following = BwrapProvider(state)
    await following.start(BoxSpec(id="next", image=ImageRoot(layers=())))
    assert [place.name for place in (state / "boxes").iterdir()] == ["next"]
    await following.close()


@pytest.mark.slow
async def test_boxes_boot_after_somebody_emptied_the_cache_folder_under_the_service(
    image: ImageRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEP_CACHE", str(tmp_path / "cache"))
    async for provider in prepared(Isolation.LOCAL, tmp_path):
        async for bench in opened(provider, tmp_path, image):
            earlier = await boot(bench)
            shutil.rmtree(tmp_path / "cache")
            later = await boot(bench)
            assert [await say(bench, box, "echo here") for box in (earlier, later)] == ["here\n", "here\n"]


async def test_without_walls_there_is_no_box_of_an_image(process: "Bench") -> None:
    assert isinstance(process.provider, ProcessProvider)
    with pytest.raises(BoxStartFailed, match="without walls no box can be of an image"):
        await process.boot(image=ImageRoot(layers=()))


def test_a_service_that_has_no_ids_to_give_says_so() -> None:
    with pytest.raises(BoxStartFailed, match="there are none"):
        IdRanges((), IdMap.own(), "there are none").lend()


def test_ranges_of_ids_are_above_those_of_other_boxes_and_are_used_up_by_name() -> None:
    starts = id_starts("         0          0 4294967295\n")
    assert starts[0] >= FIRST_USER + USER_COUNT
    assert starts[-1] + ID_COUNT <= 1 << 31
    assert len(starts) > 3000
    assert not id_starts("         0     100000      65536\n")
    assert not id_starts("")
    ranges = IdRanges(starts[:1], IdMap.own())
    assert ranges.lend() == IdMap(user=starts[0], group=starts[0])
    with pytest.raises(BoxStartFailed, match="no range of user ids is left"):
        ranges.lend()


def test_a_spec_without_an_image_is_as_before() -> None:
    assert BoxSpec(id="x").image is None
    assert replace(BoxSpec(id="x"), image=ImageRoot(layers=())) != BoxSpec(id="x")
