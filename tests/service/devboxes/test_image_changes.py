"""Changes that an agent makes in a devbox of an image: it is root there, and all of the file system is its own."""

import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.core.protocol import ScoringMode
from orchestrator.service.devboxes.succession import EVIDENCE, Collecting
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.closure import PROGRAM
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.folders import VERIFIER
from orchestrator.service.sandbox.provider import Bind, BoxDied, Command, ImageRoot
from tests.boxes import lent
from tests.sandbox.images import give
from tests.service.devboxes.test_succession import APP, Stage, applied, differences

pytestmark = pytest.mark.anyio
FILES = {
    "app/code.py": "one\n",
    "app/touched.py": "as it was\n",
    "app/gone.py": "to be removed\n",
    "app/pack/a.py": "a\n",
    "app/pack/deep/b.py": "b\n",
    "app/.gitignore": "build/\n",
    "app/env/pyvenv.cfg": "home = /usr/bin\n",
    "app/env/bin/tool": "tool\n",
    "opt/lib/module.py": "module\n",
    "usr/bin/tool": "tool\n",
    "usr/lib/python3/dist-packages/package.py": "package\n",
}


@pytest.fixture
async def stage(provider: BwrapProvider, image: ImageRoot, tmp_path: Path) -> AsyncIterator[Stage]:
    """A devbox whose working directory is the image's."""
    for path, text in FILES.items():
        (tmp_path / "layer" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "layer" / path).write_text(text)
    give(tmp_path / "layer")
    (tmp_path / "root").mkdir()
    layers = ImageRoot(layers=(*image.layers, tmp_path / "layer"))
    async with lent(provider):
        yield Stage(provider=provider, root=tmp_path / "root", place=tmp_path, image=layers)


def headers(patch: bytes) -> list[str]:
    """The files of a patch."""
    start = "diff --git a/"
    return [
        line.removeprefix(start).partition(" ")[0] for line in patch.decode().splitlines() if line.startswith(start)
    ]


async def system_changed(stage: Stage) -> list[str]:
    settled = await stage.boxes.settle(ScoringMode.SHARED)
    assert settled.changes is not None
    return list(settled.changes.system)


async def test_a_patch_is_made_of_the_images_own_files(stage: Stage, tmp_path: Path) -> None:
    """Changed, removed, moved and replaced ones, a whole folder, and one that begins anew."""
    await stage.begin()
    await stage.work(
        "echo two >>code.py; rm gone.py; mv touched.py moved.py; rm -r pack/deep; rm pack/a.py; mkdir pack/a.py"
        "; echo x >pack/a.py/x; rm -r env; mkdir env; echo new >env/new; chmod 755 code.py"
    )
    patch, told = await stage.patch()
    assert told == []
    applied(patch, tmp_path / "layer", tmp_path / "there")
    assert differences(stage.boxes.files / "app", tmp_path / "there") == ""


async def test_what_was_compared_once_is_compared_again_with_the_same_result(stage: Stage) -> None:
    """A live scoring that came to nothing is followed by one over the files alone."""
    await stage.begin()
    await stage.work("echo two >code.py; rm gone.py; mkdir new; echo x >new/x")
    first = await stage.boxes.settle(ScoringMode.LIVE)
    lists = {path.name: path.read_bytes() for path in stage.boxes._notes.glob("*.list")}
    second = await stage.boxes.settle(ScoringMode.SHARED, is_live_over=True)
    assert (second.mode, second.changes) == (ScoringMode.SHARED, first.changes)
    assert {path.name: path.read_bytes() for path in stage.boxes._notes.glob("*.list")} == lists
    assert (stage.boxes._notes / "kept/code.py").read_text() == "one\n"


async def test_files_that_were_copied_up_and_are_what_they_were_did_not_change(stage: Stage) -> None:
    await stage.begin()
    await stage.work(
        "touch touched.py; chmod 600 code.py; chmod 644 code.py; chown 33:33 pack/a.py; mv gone.py x; mv x gone.py"
        "; touch /usr/bin/tool /usr/bin; chmod 700 /opt/lib; cp /opt/lib/module.py /m"
        "; cat /m >/opt/lib/module.py; rm /m"
    )
    patch, told = await stage.patch()
    assert (patch, told) == (b"", [])
    assert await system_changed(stage) == []
    assert await stage.look(f"cat {EVIDENCE}/changes.txt") == ""


async def test_the_same_size_mode_and_times_are_not_the_same_content(stage: Stage) -> None:
    await stage.begin()
    await stage.work("touch -r code.py /ref; printf 'two\\n' >code.py; touch -r /ref code.py; rm /ref")
    patch, _ = await stage.patch()
    assert b"-one" in patch
    assert b"+two" in patch


async def test_what_setup_did_to_the_image_is_not_the_agents(stage: Stage) -> None:
    await stage.begin(
        setup="cd /app; echo set >>code.py; rm gone.py; rm -r pack; mkdir pack; echo s >pack/s; echo x >/usr/bin/tool"
    )
    await stage.work("echo more >>code.py; echo t >>pack/s; echo back >gone.py; rm -r env/bin")
    patch, told = await stage.patch()
    assert told == []
    assert [line for line in patch.decode().splitlines() if line[0] in "+-" and line[:3] not in {"+++", "---"}] == [
        *("+more", "-tool", "+back", "+t"),
    ]
    assert await system_changed(stage) == ["/app/env/bin/tool"]


async def test_a_gitignore_of_the_image_counts_and_an_agents_does_not(stage: Stage) -> None:
    await stage.begin()
    await stage.work(
        "echo '*' >pack/.gitignore; echo x >pack/new; mkdir build; echo y >build/out; echo '!build/' >.gitignore"
    )
    patch, told = await stage.patch()
    assert b"b/pack/new" in patch
    assert told == ["cut build/out: .gitignore names it, and the agent did not stage it"]


@pytest.mark.parametrize(
    ("deed", "named"),
    [
        ("echo x >/usr/bin/tool", ["/usr/bin/tool"]),
        ("rm /usr/bin/tool", ["/usr/bin/tool"]),
        ("echo x >/usr/lib/python3/dist-packages/package.py", ["/usr/lib/python3/dist-packages/package.py"]),
        ("echo x >/opt/lib/module.py", ["/opt/lib/module.py"]),
        ("echo x >/usr/bin/another; echo y >/usr/lib/python3/dist-packages/another.py", []),
        ("mkdir -p /usr/local/bin; echo x >/usr/local/bin/tool", ["/usr/local/bin/tool"]),
        ("echo x >/usr/lib/python3/dist-packages/x.pth", ["/usr/lib/python3/dist-packages/x.pth"]),
        ("echo /x.so >/etc/ld.so.preload; echo y >~/.bashrc", ["/etc/ld.so.preload", "/root/.bashrc"]),
        (
            """cd /usr/lib/python3/dist-packages; mkdir x.dist-info y.dist-info
            printf '[pytest11]\\nx = x' >x.dist-info/entry_points.txt
            printf '[console_scripts]\\ny = y:y' >y.dist-info/entry_points.txt""",
            ["/usr/lib/python3/dist-packages/x.dist-info/entry_points.txt"],
        ),
        ("echo x >env/bin/tool; echo y >env/bin/new; echo z >code.py", ["/app/env/bin/tool"]),
        ("mv /opt/lib /opt/other; ln -s /opt/other /opt/lib", ["/opt/lib", "/opt/lib/module.py"]),
    ],
)
async def test_a_changed_part_of_the_system_is_named_and_a_new_one_if_it_comes_first(
    stage: Stage, deed: str, named: list[str]
) -> None:
    await stage.begin()
    await stage.work(deed)
    assert await system_changed(stage) == named


async def test_a_changed_shell_and_c_library_are_named(stage: Stage) -> None:
    await stage.begin()
    await stage.work(
        "for each in /usr/bin/bash /usr/lib/*/libc.so.6; do cp $each /x; echo >>/x; chmod 755 /x; mv /x $each; done"
    )
    assert {path.rpartition("/")[2] for path in await system_changed(stage)} == {"bash", "libc.so.6"}


async def test_where_the_root_is_the_working_directory_the_system_is_no_work(stage: Stage) -> None:
    stage.directory = "/"
    await stage.begin()
    await stage.work(
        "echo x >/data; mkdir -p /srv/y; echo y >/srv/y/z; echo two >/app/code.py; echo t >/usr/bin/tool"
        "; echo e >/etc/e; echo h >~/h"
    )
    patch, told = await stage.patch()
    assert told == []
    assert headers(patch) == ["app/code.py", "data", "srv/y/z"]
    assert await stage.look(f"cat {EVIDENCE}/changes.txt") == "changed /usr/bin/tool 2\nnew /etc/e 2\nnew /root/h 2\n"


async def test_what_a_root_did_to_its_box_does_not_reach_the_evidence(stage: Stage) -> None:
    """Links and files in the place of our folders, other programs, and a library for every program to load."""
    await stage.begin()
    await stage.work(
        "echo two >code.py; rm -rf /run /evidence /tests /logs /home /solution; ln -s /etc /run; ln -s /none /evidence"
        "; touch /tests /solution; ln -s /proc /logs; ln -s /app /home; echo /lib/evil.so >/etc/ld.so.preload"
        "; printf '#!/bin/sh\\necho forged\\n' >/forged; chmod 755 /forged; chmod 0 /app /"
        "; for each in cat git sort head sh bash find; do cp /forged /usr/bin/$each; done"
    )
    patch, told = await stage.patch()
    assert (headers(patch), told) == (["code.py"], [])
    assert b"forged" not in patch
    said = await run(stage.boxes.front, Command(argv=("cat", "/app/code.py"), is_plain=True), timeout=20)
    assert said.output == "two\n"
    for path in ("/app/x", "/usr/bin/cat", "/etc/x", "/run/x"):
        assert "Read-only file system" in await stage.look(f"echo x >{path}")


async def test_a_shared_scoring_is_over_all_that_was_left(stage: Stage) -> None:
    given = stage.place / "given"
    given.mkdir(mode=0o755)
    (given / "test.sh").write_text("ours\n")
    await stage.begin()
    await stage.work(
        "echo two >code.py; echo made >/usr/bin/made; echo t >/tmp/t; echo old >/tests/old; ln -s /etc /run/scorer"
        "; rm -r /opt; ln -s /usr /opt; echo 1 >/logs/verifier/reward.txt; rm -rf /var"
    )
    await stage.boxes.settle(ScoringMode.SHARED)
    await stage.boxes.lay_out(ScoringMode.SHARED)
    binds = [Bind(source=given, target=target) for target in ("/run/scorer", "/opt/sweep/python/x")]
    async with stage.boxes.scoring_box(binds, tests=given) as box:
        show = (
            "cat /app/code.py /usr/bin/made /tests/* /run/scorer/* /opt/sweep/python/x/*; ls /tmp /logs/verifier /tests"
        )
        said = await run(box, Command(argv=("bash", "-c", show)), timeout=20)
        assert said.stdout == b"two\nmade\n" + b"ours\n" * 3 + b"/logs/verifier:\n\n/tests:\ntest.sh\n\n/tmp:\nt\n"
    async with stage.boxes.scoring_box() as box:
        assert (await run(box, Command(argv=("ls", "/tests", "/tmp")), timeout=20)).output == "/tests:\n\n/tmp:\nt\n"


async def test_what_tests_change_in_their_folder_is_gone_with_their_box(stage: Stage) -> None:
    given = stage.place / "given"
    (given / "deep").mkdir(mode=0o755, parents=True)
    (given / "deep/data").write_text("ours\n")
    await stage.begin()
    await stage.boxes.settle(ScoringMode.SHARED)
    await stage.boxes.lay_out(ScoringMode.SHARED)
    change = "cd /tests; cat deep/data; ls; sed -i s/ours/theirs/ deep/data; touch new; cat deep/data; chown 7 deep"
    for _ in range(2):
        async with stage.boxes.scoring_box(tests=given) as box:
            said = await run(box, Command(argv=("bash", "-c", change)), timeout=20)
            assert said.stdout == b"ours\ndeep\ntheirs\n"
    assert sorted(place.name for place in given.rglob("*")) == ["data", "deep"]
    assert (given / "deep/data").read_text() == "ours\n"
    assert not list(stage.boxes.files.joinpath("tests").iterdir())


async def test_a_separate_scoring_is_over_a_new_layer_with_what_crosses(stage: Stage) -> None:
    await stage.begin(setup="echo set >>/app/code.py; echo s >/by-setup")
    await stage.work(
        "echo two >>code.py; rm gone.py; mkdir new; echo n >new/x; chown 33:34 new/x; chmod 750 new/x; rm -r env"
        "; ln -s code.py link; echo bad >/usr/bin/tool; echo h >~/h; rm /by-setup; echo out >/logs/artifacts/a"
        "; echo skip >new/skip"
    )
    await stage.boxes.settle(ScoringMode.SEPARATE)
    show = (
        "cat code.py link new/x /usr/bin/tool /by-setup /logs/artifacts/a; ls new ~; ls -d env gone.py pack/deep/b.py"
    )
    for _ in range(2):
        await stage.boxes.lay_out(ScoringMode.SEPARATE, {APP: ("skip",)})
        async with stage.boxes.scoring_box() as box:
            said = await run(box, Command(argv=("bash", "-c", f"{show}; stat -c '%u %g %a' new/x")), timeout=20)
            owner = "0 0" if stage.boxes.agents.has_one_user else "33 34"
            words = "one\nset\ntwo\n" * 2 + f"n\ntool\ns\nout\n/root:\n\nnew:\nx\npack/deep/b.py\n{owner} 750\n"
            assert said.stdout.decode() == words
    async with stage.boxes.untouched(), stage.boxes.scoring_box() as box:
        said = await run(box, Command(argv=("bash", "-c", f"cat /app/code.py; ls /app/gone.py {VERIFIER}")), timeout=20)
        assert said.output == f"one\nset\n/app/gone.py\n\n{VERIFIER}:\n"
    await stage.boxes.show()
    assert await stage.look("cat /usr/bin/tool code.py") == "tool\none\nset\ntwo\n"


async def test_a_crossing_that_broke_off_goes_on_and_is_not_judged_before(stage: Stage) -> None:
    await stage.begin()
    await stage.work("mkdir a z; echo first >a/x; head -c 3000000 /dev/zero >big; echo last >z/x; rm code.py")
    await stage.boxes.settle(ScoringMode.SEPARATE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # as a disk that is full
    try:
        with pytest.raises(BoxDied, match="cannot be handled"):
            await stage.boxes.lay_out(ScoringMode.SEPARATE, {APP: ()})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await stage.boxes.lay_out(ScoringMode.SEPARATE, {APP: ()})
    async with stage.boxes.scoring_box() as box:
        said = await run(box, Command(argv=("bash", "-c", "cat a/x z/x; wc -c <big; ls code.py")), timeout=20)
        assert said.stdout == b"first\nlast\n3000000\n"


async def test_work_crosses_though_folders_nest_too_deep(stage: Stage) -> None:
    await stage.begin()
    deep = "import os\nfor n in range(900): os.mkdir('a'), os.chdir('a')"
    await stage.work(f'echo work >z; {PROGRAM} -c "{deep}"')
    await stage.boxes.settle(ScoringMode.SEPARATE)
    await stage.boxes.lay_out(ScoringMode.SEPARATE, {APP: ()})
    async with stage.boxes.scoring_box() as box:
        said = await run(box, Command(argv=("bash", "-c", "cat z; cd a/a/a && echo deep")), timeout=20)
        assert said.stdout == b"work\ndeep\n"


async def test_of_a_root_that_is_the_working_directory_all_work_crosses_and_nothing_of_the_system(stage: Stage) -> None:
    stage.directory = "/"
    await stage.begin()
    await stage.work(
        "echo x >/data; mkdir -p /srv/y; echo y >/srv/y/z; echo two >/app/code.py; echo t >/usr/bin/tool; echo h >~/h"
        "; echo e >/etc/e; echo u >/home/u; echo out >/logs/artifacts/a"
    )
    await stage.boxes.settle(ScoringMode.SEPARATE)
    await stage.boxes.lay_out(ScoringMode.SEPARATE, {"/": ()})
    async with stage.boxes.scoring_box() as box:
        show = "cat /data /srv/y/z /app/code.py /usr/bin/tool /logs/artifacts/a; ls ~/h /etc/e /home/u"
        said = await run(box, Command(argv=("bash", "-c", show)), timeout=20)
        assert said.stdout == b"x\ny\ntwo\ntool\nout\n"


async def test_files_that_did_not_change_are_not_copied_when_they_cross(stage: Stage) -> None:
    await stage.begin()
    await stage.work("echo two >code.py")
    await stage.boxes.settle(ScoringMode.SEPARATE)
    await stage.boxes.lay_out(ScoringMode.SEPARATE, {APP: ()})
    own = stage.boxes._holder.written.own
    assert [path.name for path in (own / "app").rglob("*") if path.is_file()] == ["code.py"]


async def test_commands_that_collect_run_where_nothing_of_the_agent_runs(stage: Stage) -> None:
    await stage.begin()
    await stage.work("(setsid sleep 1000 >/dev/null 2>&1 </dev/null &); echo t >/tmp/t")
    script = "cat /tmp/t >/logs/artifacts/t; grep -lx sleep /proc/[0-9]*/comm >/logs/artifacts/running"
    await stage.boxes.settle(ScoringMode.SEPARATE, [Collecting(script=script, timeout=20)])
    await stage.boxes.lay_out(ScoringMode.SEPARATE, {APP: ()})
    assert (stage.boxes.files / "logs/artifacts/t").read_text() == "t\n"
    assert (stage.boxes.files / "logs/artifacts/running").read_text() == ""
