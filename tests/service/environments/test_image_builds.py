"""Images of Dockerfiles: what each instruction leaves in a box, what is built once, and what a failure says."""

import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from secrets import token_bytes, token_hex
from threading import Thread
from typing import Any, Literal

import anyio
import pytest
import structlog

from orchestrator.core.protocol import Isolation
from orchestrator.service.environments import layer_writer
from orchestrator.service.environments.build_context import BuildContext
from orchestrator.service.environments.environments import built_reference
from orchestrator.service.environments.image_builds import (
    BuildFailed,
    BuildSource,
    BuiltImage,
    ImageBuilds,
    Tell,
    untold,
)
from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.image_store import ImageStore, open_images
from orchestrator.service.environments.images.manifest import ours
from orchestrator.service.sandbox.closure import PROGRAM
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.prepared import Preparation
from orchestrator.service.sandbox.provider import BoxSpec, BoxStartFailed, Capability, Provider, Resources, shell
from orchestrator.service.sandbox.providers import open_provider
from tests.images.base_images import base_image
from tests.images.packing import PackedImage
from tests.processes import carrying
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.root]
Build = Callable[..., Awaitable[BuiltImage]]


@dataclass(slots=True)
class Workshop:
    """A store that has the image `busybox`, builds into it, and looks at what came out."""

    store: ImageStore
    provider: Provider
    place: Path
    builds: ImageBuilds = field(init=False)

    def __post_init__(self) -> None:
        self.builds = ImageBuilds(self.store, self.provider)

    def folder(self, files: dict[str, str | bytes]) -> Path:
        """Make a folder of files."""
        folder = self.place / token_hex(4)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    def source(
        self, text: str, folder: Path, *, timeout: float = 60.0, ignore: str = "", tell: Tell = untold
    ) -> BuildSource:
        return BuildSource(
            text=text,
            file="environment/Dockerfile",
            reference=built_reference("A scenario", token_hex(4)),
            context=BuildContext.read(folder, ignore=ignore),
            resources=Resources(),
            timeout=timeout,
            limit="build_timeout_sec",
            tell=tell,
        )

    async def build(self, text: str, files: dict[str, str | bytes] | None = None, **options: Any) -> BuiltImage:
        return await self.builds.build(self.source(text, self.folder(files or {}), **options), Preparation())

    async def say(self, image: BuiltImage, script: str) -> str:
        """Run a script as the image says, and return its output."""
        spec = BoxSpec(
            id=f"look-{token_hex(4)}",
            image=image.root,
            user=image.config.user,
            environment=image.config.environment,
            working_directory=image.config.working_directory or "/",
        )
        box = await self.provider.start(spec)
        try:
            return (await run(box, shell(script, words=box.shell), timeout=30)).output
        finally:
            await box.stop()


@pytest.fixture(scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workshop]:
    place = tmp_path_factory.mktemp("builds")
    place.chmod(0o700)
    PackedImage.of(base_image("busybox")).save(place / "busybox.tar", "busybox:latest")
    async with (
        open_images(place / "cache") as store,
        open_provider(Isolation.LOCAL, place / "state", ()) as provider,
    ):
        archive = Archive.read(place / "busybox.tar", ours())
        for image in archive.images:
            await store.pull(image.reference, source=archive)
        yield Workshop(store, provider, place)


async def test_instructions_leave_what_a_container_engine_leaves(shop: Workshop) -> None:
    dockerfile = """\
FROM busybox
ARG LEVEL=two
ENV NAME=world LEVEL=$LEVEL
RUN mkdir -p /opt/tool && echo made >/opt/tool/file && chown 33:33 /opt/tool/file && chmod 4711 /opt/tool/file
WORKDIR /srv/app
COPY --chown=www-data:www-data --chmod=640 main.py ./
COPY sub /srv/app/copied/
COPY <<END said.txt
hello $NAME
END
RUN <<END
set -e
echo "in $PWD" >where
END
RUN rm /opt/tool/file.none 2>/dev/null || echo "$LEVEL" >level
USER www-data
CMD ["sleep", "1"]
"""
    image = await shop.build(dockerfile, {"main.py": "print()\n", "sub/a": "a", "sub/deep/b": "b"})
    assert image.config.working_directory == "/srv/app"
    assert (image.config.user, image.config.environment["NAME"]) == ("www-data", "world")
    said = await shop.say(
        image,
        "id -u; pwd; stat -c '%u:%g %a' /opt/tool/file main.py copied/deep; cat said.txt where level copied/deep/b",
    )
    assert said == "33\n/srv/app\n33:33 4711\n33:33 640\n0:0 755\nhello world\nin /srv/app\ntwo\nb"


async def test_folders_of_scenarios_are_not_there_before_an_image_makes_them(shop: Workshop) -> None:
    """Devboxes have them whatever their image has; and a working directory is its user's, who may write there."""
    image = await shop.build(
        "FROM busybox\nRUN mkdir /app /tests /solution /logs && mkdir -m 700 -p /home/user\nRUN rmdir /app\n"
        "RUN mkdir /src && touch /src/a && mv /src /app && ls /app >/seen\nRUN rm -r /app\n"
        "USER www-data\nWORKDIR /app\nRUN id -un >mine\n"
    )
    assert await shop.say(image, "cat /seen mine; stat -c %U:%a . /home/user") == (
        "a\nwww-data\nwww-data:755\nroot:700\n"
    )


async def test_stages_are_built_apart_and_copied_from(shop: Workshop) -> None:
    dockerfile = """\
FROM busybox AS maker
RUN mkdir -p /out/bin && echo tool >/out/bin/tool && ln -s bin/tool /out/link && chown -R 33:33 /out && echo >/out/skip
FROM busybox AS unused
RUN exit 7
FROM scratch AS bare
COPY --from=maker /out/bin/tool /only
FROM busybox
COPY --from=maker --exclude=skip /out /got
COPY --from=maker /out/b*/t??l /picked/
COPY --from=bare /only /only
COPY --from=busybox /etc/passwd /users
"""
    image = await shop.build(dockerfile)
    said = await shop.say(
        image, "ls /got /picked; readlink /got/link; stat -c %u /got/bin/tool; cat /only; head -1 /users"
    )
    assert said.splitlines()[:8] == ["/got:", "bin", "link", "", "/picked:", "tool", "bin/tool", "33"]
    assert said.endswith("tool\nroot:x:0:0:root:/root:/bin/sh\n")


async def test_patterns_mean_in_a_stage_what_they_mean_in_the_context(shop: Workshop) -> None:
    names = ["d/a1", "d/b1", "d/!1", "d/^1", "d/*1", "d/.h1", "d/deep/a2", "d/deep/er/a3", "d/a[0].txt"]
    meanings = {
        "d/[^a]1": ["!1", "*1", "^1", "b1"],
        "d/[!a]1": ["!1", "a1"],
        "d/\\\\**": ["*1"],
        "d/?1": ["!1", "*1", "^1", "a1", "b1"],
        "d/**1": ["!1", "*1", ".h1", "^1", "a1", "b1"],
        "d/a[[]0].txt": ["a[0].txt"],
        "d/**/a*": ["a2"],
        "d/*/*/a3": ["a3"],
        "d/none*": [],
        "none/*": [],
        "way/a[[]*": ["a[0].txt"],
        "--parents way/dee*/a*": ["way/deep/a2"],
        "--parents d/**/a?": ["d/a1", "d/deep/a2", "d/deep/er/a3"],
        "--parents d/./dee*": ["deep/a2", "deep/er/a3"],
        "--parents d/deep/er": ["d/deep/er/a3"],
        "--exclude=[!a]1 d/?1": ["*1", "^1", "b1"],
    }
    dockerfile = "FROM busybox AS maker\nCOPY d /d\nRUN ln -s d /way\nFROM busybox\n"
    for number, words in enumerate(meanings):
        dockerfile += f"COPY {words} /context/{number}/\nCOPY --from=maker {words} /stage/{number}/\n"
    folder = shop.folder(dict.fromkeys(names, "1"))
    (folder / "way").symlink_to("d")
    image = await shop.builds.build(shop.source(dockerfile, folder), Preparation())
    for number, (words, expected) in enumerate(meanings.items()):
        for place in ("context", "stage"):
            said = await shop.say(image, f"cd /{place}/{number} 2>/dev/null && find . -type f | sort")
            assert sorted(each.removeprefix("./") for each in said.split()) == sorted(expected), (place, words)


async def test_files_keep_other_names_attributes_and_names_that_are_no_text(shop: Workshop) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, name in enumerate(("one", "two", "odd\n\udce9 \\ *")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = (tarfile.LNKTYPE, "one") if number == 1 else (tarfile.REGTYPE, "")
            given = {"security.capability": capability, "user.tool": b"\0\377", "trusted.x": b"1"}
            entry.pax_headers = {
                f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in given.items()
            }
            archive.addfile(entry)
    dockerfile = f"""\
FROM busybox AS maker
ADD a.tar /d/
RUN mkfifo /d/pipe && {PROGRAM} -c "import socket; socket.socket(socket.AF_UNIX).bind('/d/socket')" && ls /d/socket
FROM busybox
COPY --from=maker --chown=33 /d /d
COPY --from=maker /d/t* /d/one /e/
"""
    image = await shop.build(dockerfile, {"a.tar": packed.getvalue()})
    layer = image.root.layers[-1]
    assert sorted(each.name for each in (layer / "d").iterdir()) == ["odd\n\udce9 \\ *", "one", "pipe", "two"]
    assert ((layer / "d/two").stat().st_nlink, (layer / "e/two").stat().st_nlink) == (2, 1)
    for file in (layer / "d/two", layer / "e/one", next((layer / "d").glob("odd*"))):
        assert os.getxattr(file, "user.tool") == b"\0\377"
        assert os.getxattr(file, "security.capability") == capability


async def test_a_whole_image_is_copied_without_what_its_box_has_besides(shop: Workshop) -> None:
    image = await shop.build("FROM scratch\nCOPY --from=busybox / /\n")
    layer = image.root.layers[-1]
    assert {"bin", "etc"} <= {each.name for each in layer.iterdir()}
    assert not {"dev", "proc", ".sweep"} & {each.name for each in layer.iterdir()}
    assert await shop.say(image, "head -1 /etc/passwd") == "root:x:0:0:root:/root:/bin/sh\n"


async def test_archives_are_unpacked_by_add_and_copied_by_copy(shop: Workshop) -> None:
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        entry = tarfile.TarInfo("inner/file")
        entry.size, entry.uid, entry.mode = 2, 33, 0o600
        archive.addfile(entry, BytesIO(b"in"))
    dockerfile = "FROM busybox\nADD a.tgz plain.txt /added/\nCOPY a.tgz /copied/\n"
    image = await shop.build(dockerfile, {"a.tgz": packed.getvalue(), "plain.txt": "no archive"})
    said = await shop.say(image, "ls /added /copied; stat -c '%u %a' /added/inner/file; cat /added/plain.txt")
    assert said == "/added:\ninner\nplain.txt\n\n/copied:\na.tgz\n33 600\nno archive"


def tar(*entries: tuple[str, str, str | bytes], mode: Literal["w", "w:gz", "w:xz"] = "w") -> bytes:
    """Pack (kind, name, content or target); kinds are those of `tarfile`."""
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for kind, name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.mtime = kind.encode(), 0o755, 1_500_000_000
            if isinstance(content, bytes):
                entry.size = len(content)
                archive.addfile(entry, BytesIO(content))
            else:
                entry.linkname = content
                archive.addfile(entry)
    return packed.getvalue()


FILE, HARD, LINK, FOLDER, PIPE = "0", "1", "2", "5", "6"


async def test_members_of_an_archive_take_the_place_of_what_is_in_their_way(shop: Workshop) -> None:
    packed = tar(
        (FILE, "/folder", b"file"),
        (FOLDER, "file", ""),
        (FILE, "file/inner", b"in"),
        (FOLDER, "link", ""),
        (FILE, "./kept/new", b"new"),
        (LINK, "full", "kept"),
        (HARD, "twin", "kept/new"),
        (PIPE, "pipe", ""),
        mode="w:xz",
    )
    dockerfile = """\
FROM busybox
WORKDIR /t
RUN mkdir -p folder/deep full/deep kept other && touch file kept/old other/safe && ln -s other link
ADD a.tar.xz ./
"""
    image = await shop.build(dockerfile, {"a.tar.xz": packed})
    said = await shop.say(image, "ls -F; cat folder file/inner twin; ls link other kept; stat -c %h twin")
    assert " ".join(said.split()) == (
        "file/ folder* full@ kept/ link/ other/ pipe| twin* fileinnewkept: new old link: other: safe 2"
    )


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        (tar((FILE, "a", b"a"), (FILE, "../b", b"b")), r"the archive has \.\./b, which leads out of its folder"),
        (tar((FILE, "a", b"a" * 2000))[:1024], "unexpected end of data"),
        (tar((FILE, "a", b"a"), (FILE, "b", b"b")).replace(b"b\0", b"c\0", 1), "the archive is damaged"),
        (tar((FILE, "a", token_bytes(99_999)), mode="w:gz")[:50_000], "ended before the end-of-stream marker"),
        (tar((FILE, "a", b"a"), (HARD, "b", "c")), "No such file or directory: '/x/c'"),
    ],
)
async def test_an_archive_that_cannot_be_unpacked_whole_fails_the_build(
    shop: Workshop, packed: bytes, why: str
) -> None:
    with pytest.raises(BuildFailed, match=f"Dockerfile:2: ADD a /x/: .*{why}"):
        await shop.build("FROM busybox\nADD a /x/\n", {"a": packed})


async def test_a_file_without_members_is_no_archive(shop: Workshop) -> None:
    files: dict[str, str | bytes] = {
        "zeros": bytes(4096),
        "none": b"",
        "cut.gz": tar((FILE, "a", b"a"), mode="w:gz")[:20],
    }
    image = await shop.build("FROM busybox\nADD zeros none cut.gz /x/\n", files)
    assert await shop.say(image, "stat -c '%n %s' /x/*") == "/x/cut.gz 20\n/x/none 0\n/x/zeros 4096\n"


async def test_what_comes_of_a_stage_or_an_archive_keeps_its_times_and_files_of_the_context_all_have_one(
    shop: Workshop,
) -> None:
    packed = tar((FOLDER, "inner", ""), (FILE, "inner/file", b"1"), (LINK, "inner/link", "file"))
    dockerfile = """\
FROM busybox AS maker
RUN mkdir -p /made/inner && ln -s x /made/inner/link && touch /made/inner/file \\
    && touch -hd @1400000000 /made/inner/* && touch -d @1400000000 /made/inner
FROM busybox
COPY --from=maker /made /made
ADD a.tar /unpacked/
COPY sub /copied/
COPY <<END /copied/said
said
END
"""
    image = await shop.build(dockerfile, {"a.tar": packed, "sub/inner/file": "1"})
    said = await shop.say(image, "find /made/* /unpacked/* /copied/* | sort | xargs stat -c '%Y %n'")
    assert said.splitlines() == [
        "946684800 /copied/inner",
        "946684800 /copied/inner/file",
        "946684800 /copied/said",
        *(f"1400000000 /made/inner{each}" for each in ("", "/file", "/link")),
        *(f"1500000000 /unpacked/inner{each}" for each in ("", "/file", "/link")),
    ]


async def test_a_number_is_no_name_and_stands_for_its_group_where_none_is_given(shop: Workshop) -> None:
    dockerfile = """\
FROM busybox
RUN echo 'tool:x:70:80::/:/bin/sh' >>/etc/passwd && echo '7:x:700:' >>/etc/group && echo 'tool:x:90:' >>/etc/group
COPY --chown=70 f /number
COPY --chown=tool f /name
COPY --chown=tool:7 f /both
COPY --chown=7:tool f /other
COPY --chown=:tool f /group
USER 70
WORKDIR /place
"""
    image = await shop.build(dockerfile, {"f": "f"})
    said = await shop.say(image, "stat -c '%u:%g' /number /name /both /other /group /place")
    assert said.split() == ["70:70", "70:80", "70:7", "7:90", "0:90", "70:70"]


async def test_root_owns_files_where_no_user_is_known(shop: Workshop) -> None:
    image = await shop.build("FROM scratch\nCOPY --chown=root:root f /f\n", {"f": "f"})
    assert (image.root.layers[0] / "f").read_text() == "f"


async def test_a_target_is_a_folder_where_docker_takes_it_for_one(shop: Workshop) -> None:
    dockerfile = """\
FROM busybox
RUN mkdir /there && ln -s /there /way && ln -s /nowhere/else /lost && echo >/file && ln -s file /named
COPY one /there
COPY one /new
COPY one two /many/
COPY tree /way
COPY one /way/linked
COPY one /lost/
COPY two /named
"""
    image = await shop.build(dockerfile, {"one": "1", "two": "2", "tree/x": "x"})
    assert await shop.say(image, "ls -F /there /many; cat /new; readlink /way; cat /nowhere/else/one /file") == (
        "/many:\none\ntwo\n\n/there:\nlinked\none\nx\n1/there\n12"
    )


async def test_what_a_command_is_shown_is_in_no_layer(shop: Workshop) -> None:
    dockerfile = """\
FROM busybox AS maker
RUN mkdir /m && echo made >/m/file
FROM busybox
RUN mkdir -p /kept/deep /usr/real && echo kept >/kept/file && echo kept >/kept/deep/file && ln -s usr/real /way
RUN --mount=type=bind,source=data,target=/kept --mount=type=bind,from=maker,source=/m,target=/m \\
    --mount=type=cache,target=/cache --mount=type=tmpfs,target=/scratch \\
    --mount=from=maker,source=/m/file,target=/way/tool --mount=source=data/d,target=/etc/passwd \\
    cat /kept/* /m/file /way/tool /etc/passwd >/seen && echo c >/cache/c && echo s >/scratch/s && rm -r /kept/*
RUN <<EOF
#!/bin/sh
echo "$0" >/script
EOF
"""
    image = await shop.build(dockerfile, {"data/d": "data\n"})
    said = await shop.say(
        image,
        "cat /seen /kept/file /script; ls -d /m /cache /scratch /run/* 2>/dev/null; ls /kept /way/; "
        "grep -c root: /etc/passwd",
    )
    assert said.split() == (
        ["data", "made", "made", "data", "kept", "/run/scripts/EOF", "/kept:", "deep", "file", "/way/:", "1"]
    )


async def test_a_mount_covers_what_the_image_has_with_the_owner_and_mode_that_it_asks_for(shop: Workshop) -> None:
    dockerfile = """\
FROM busybox
RUN mkdir -p /c/full && echo old >/c/file
RUN --mount=type=cache,target=/c,uid=33,gid=44,mode=0770 --mount=type=cache,target=/d --mount=type=tmpfs,target=/tmp \\
    stat -c '%n %u:%g %a' /c /d /tmp >/said && ls /c >>/said
USER 33
RUN --mount=type=cache,target=/c,uid=33 touch /c/mine
"""
    image = await shop.build(dockerfile)
    assert await shop.say(image, "cat /said /c/file") == "/c 33:44 770\n/d 0:0 755\n/tmp 0:0 1777\nold\n"


async def test_what_a_cache_holds_decides_no_key(shop: Workshop) -> None:
    step = f"RUN --mount=type=cache,target=/c cat /proc/sys/kernel/random/uuid | tee /c/kept >/id # {token_hex(4)}"
    first, second = await shop.build(f"FROM busybox\n{step}\n"), await shop.build(f"FROM busybox\n{step}\n")
    assert first.root == second.root


async def test_a_step_is_taken_once_for_all_files_that_begin_alike(shop: Workshop) -> None:
    marker = token_hex(8)
    first = await shop.build(
        f"FROM busybox\nRUN echo {marker} && cat /proc/sys/kernel/random/uuid >/id\nRUN echo a >/a\n"
    )
    second = await shop.build(
        f"from  busybox\n# other words\nRUN  echo {marker} && cat /proc/sys/kernel/random/uuid >/id\n"
    )
    assert first.root.layers[:2] == second.root.layers
    assert await shop.say(first, "cat /id") == await shop.say(second, "cat /id")


async def test_files_decide_what_is_built_again_and_their_times_do_not(shop: Workshop) -> None:
    dockerfile = f"FROM busybox\nCOPY f /{token_hex(4)}\n"
    first, again = await shop.build(dockerfile, {"f": "1"}), await shop.build(dockerfile, {"f": "1"})
    other = await shop.build(dockerfile, {"f": "2"})
    assert first.root == again.root != other.root


@pytest.mark.parametrize("step", ["COPY sub/f /f", "RUN --mount=target=/seen cp /seen/sub/f /f"])
async def test_a_file_that_changes_during_the_build_is_kept_in_no_layer(shop: Workshop, step: str) -> None:
    folder = shop.folder({"sub/f": "old"})
    dockerfile = f"FROM busybox\nRUN echo {token_hex(4)}\n{step}\n"

    async def change(message: str) -> None:
        if message.endswith(step):
            (folder / "sub/f").write_text("new")

    with pytest.raises(BoxStartFailed, match="sub/f was changed while the image was built: try again"):
        await shop.builds.build(shop.source(dockerfile, folder, tell=change), Preparation())
    (folder / "sub/f").write_text("old")
    image = await shop.builds.build(shop.source(dockerfile, folder), Preparation())
    assert await shop.say(image, "cat /f") == "old"


async def test_many_who_need_a_step_at_once_get_one_build(shop: Workshop) -> None:
    dockerfile = f"FROM busybox\nRUN echo {token_hex(8)}; cat /proc/sys/kernel/random/uuid >/id\n"
    found: list[BuiltImage] = []

    async def ask() -> None:
        found.append(await shop.build(dockerfile))

    with structlog.testing.capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(ask)
    assert len({each.root for each in found}) == 1
    assert [each["event"] for each in logs].count("image.layer_built") == 1


async def test_a_failed_step_names_its_line_shows_its_end_and_is_not_tried_again(shop: Workshop) -> None:
    flag = token_hex(4)
    dockerfile = f"FROM busybox\n# why\nRUN echo {flag}; echo broken >&2; exit 3\n"
    for _ in range(2):
        with pytest.raises(BuildFailed) as failure:
            await shop.build(dockerfile)
        assert failure.value.message.startswith("environment/Dockerfile:3: RUN echo")
        assert failure.value.message.endswith(f"ended with status 3\n{flag}\nbroken")
    with structlog.testing.capture_logs() as logs, pytest.raises(BuildFailed):
        await shop.build(dockerfile)
    assert logs == []


async def test_a_step_whose_time_ran_out_is_tried_again(shop: Workshop) -> None:
    dockerfile = f"FROM busybox\nRUN sleep 1; echo {token_hex(4)} >/done\n"
    with pytest.raises(BuildFailed, match="ran out of time"):
        await shop.build(dockerfile, timeout=0.3)
    assert (await shop.say(await shop.build(dockerfile), "cat /done")).strip() in dockerfile


async def test_who_waits_for_a_step_does_not_share_the_time_limit_of_who_takes_it(shop: Workshop) -> None:
    marker = token_hex(8)
    dockerfile = f"FROM busybox\nRUN sleep 2; echo {marker} >/done\n"

    async def hasty() -> None:
        with pytest.raises(BuildFailed, match="ran out of time"):
            await shop.build(dockerfile, timeout=1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hasty)
        await until(lambda: carrying(marker), "the command did not begin")
        image = await shop.build(dockerfile)
    assert await shop.say(image, "cat /done") == f"{marker}\n"


async def test_waiting_for_a_step_that_another_build_takes_is_no_part_of_the_time_limit(shop: Workshop) -> None:
    marker = token_hex(8)
    dockerfile = f"FROM busybox\nRUN sleep 5; echo {marker} >/done\n"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shop.build, dockerfile)
        await until(lambda: carrying(marker), "the command did not begin")
        image = await shop.build(f"{dockerfile}RUN cp /done /twice\n", timeout=4)
    assert await shop.say(image, "cat /twice") == f"{marker}\n"


async def test_a_step_that_a_full_disk_has_failed_is_tried_again(shop: Workshop) -> None:
    said = "cat /proc/sys/kernel/random/uuid; echo 'cannot write: No space left on device' >&2; exit 1"
    dockerfile = f"FROM busybox\nRUN {said} # {token_hex(4)}\n"
    messages = set[str]()
    for _ in range(2):
        with pytest.raises(BuildFailed) as failure:
            await shop.build(dockerfile)
        messages.add(failure.value.message)
    assert len(messages) == 2


async def test_commands_share_one_time_limit(shop: Workshop) -> None:
    with pytest.raises(BuildFailed, match=r"Dockerfile:2: RUN sleep 60.*: ran out of time \(build_timeout_sec = 0.5"):
        await shop.build(f"FROM busybox\nRUN sleep 60 # {token_hex(4)}\n", timeout=0.5)


async def test_logins_of_this_machine_are_in_no_message(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:openwide@proxy.example:3128")
    told: list[str] = []

    async def tell(message: str) -> None:
        told.append(message)

    await shop.build(f"FROM busybox\nRUN env # {token_hex(4)}\n", tell=tell)
    with pytest.raises(BuildFailed) as failure:
        await shop.build(f"FROM busybox\nRUN env >&2; exit 1 # {token_hex(4)}\n")
    for words in (told[-1], failure.value.message):
        assert "HTTPS_PROXY=http://************proxy.example:3128" in words
        assert "openwide" not in words


@pytest.mark.parametrize(
    ("dockerfile", "why"),
    [
        ("FROM busybox\nRUN --mount=type=secret,id=key,required=true true\n", "the secret key is required"),
        ("FROM busybox\nCOPY --from=busybox /none /x\n", "Dockerfile:2: .*/none is not there"),
        ("FROM busybox\nCOPY --chown=nemo f /x\n", "there is no user nemo in /etc/passwd"),
        ("FROM busybox\nCOPY --chown=0:65536 f /x\n", "0:65536 is beyond the users and groups of an image"),
        ("FROM busybox\nCOPY f /bin\nCOPY f /etc/passwd/x\n", "/etc/passwd is no folder"),
        ("FROM busybox\nUSER nemo\nRUN true\n", "user nemo: /etc/passwd has no such user"),
        ("FROM Busy\n", "'Busy' names no image"),
        ("FROM --platform=linux/riscv64 busybox\n", "Dockerfile:1: .* is wanted for linux/riscv64"),
        ("FROM busybox\nADD https://example.com/a.git /x\n", "Dockerfile:2: .*clone it by a RUN"),
        ("FROM busybox\nADD https://127.0.0.1:9/x /x\n", "Dockerfile:2: ADD"),
    ],
)
async def test_what_cannot_be_built_is_named(shop: Workshop, dockerfile: str, why: str) -> None:
    with pytest.raises(BuildFailed, match=f"(?s){why}"):
        await shop.build(dockerfile, {"f": "f"})


async def test_commands_do_not_find_what_listens_on_this_machine(shop: Workshop) -> None:
    if Capability.PUBLIC not in shop.provider.capabilities:
        pytest.skip("this machine gives no box a network of its own")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        image = await shop.build(
            f"FROM busybox\nRUN nc -w 2 127.0.0.1 {port} </dev/null && echo in >/got || echo out >/got\n"
        )
    assert await shop.say(image, "cat /got") == "out\n"


async def test_an_address_is_fetched_by_the_box_and_not_by_this_machine(shop: Workshop) -> None:
    if Capability.PUBLIC not in shop.provider.capabilities:
        pytest.skip("this machine gives no box a network of its own")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        with pytest.raises(BuildFailed, match="Dockerfile:2: ADD"):
            await shop.build(f"FROM busybox\nADD http://127.0.0.1:{server.getsockname()[1]}/x /x\n")
        with pytest.raises(BlockingIOError):
            server.accept()


class Files(SimpleHTTPRequestHandler):
    """Serves a file, whole or only its beginning; one without a time."""

    def do_GET(self) -> None:
        if self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.send_header("Last-Modified", "soon")
            self.end_headers()
            self.wfile.write(b"fetched")
        else:
            super().do_GET()


@pytest.mark.parametrize(
    ("path", "checksum", "why"),
    [
        ("/a%20b.txt", "", ""),
        ("/a%20b.txt", f"sha256:{sha256(b'fetched').hexdigest()}", ""),
        ("/a%20b.txt", "sha256:00", "its checksum is sha256:"),
        ("/none", "", "HTTP Error 404: File not found"),
        ("/cut", "", "it broke off while it was fetched"),
        ("x/port", "", "it cannot be fetched: "),
    ],
)
def test_what_was_fetched_has_its_checksum_name_mode_and_time(
    tmp_path: Path, path: str, checksum: str, why: str
) -> None:
    """Our program in a box, run beside a server, which no box of a build can reach."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/a b.txt").write_bytes(b"fetched")
    os.utime(tmp_path / "served/a b.txt", (1_500_000_000, 1_500_000_000))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(tmp_path / "served"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}{path}"
        order = {"url": url, "checksum": checksum, "target": f"{tmp_path}/new/", "mode": "600"}
        words = [sys.executable, "-I", layer_writer.__file__, json.dumps(order)]
        done = subprocess.run(words, capture_output=True, check=False, text=True)
        server.shutdown()
    if why:
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done
        assert done.stderr.startswith(why)
    else:
        assert done.returncode == 0, done
        found = tmp_path / "new/a b.txt"
        status = found.stat()
        assert (found.read_bytes(), oct(status.st_mode), status.st_mtime) == (b"fetched", "0o100600", 1_500_000_000)


def test_an_archive_that_was_fetched_is_unpacked_with_its_times(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served/a.tar").write_bytes(tar((FOLDER, "d", ""), (FILE, "d/f", b"f")))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(tmp_path / "served"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.tar"
        order = {"url": url, "checksum": "", "target": f"{tmp_path}/new", "is_unpacking": True}
        subprocess.run([sys.executable, "-I", layer_writer.__file__, json.dumps(order)], check=True)
        server.shutdown()
    assert {(tmp_path / "new" / each).stat().st_mtime for each in ("d", "d/f")} == {1_500_000_000}


async def test_links_and_archives_of_strangers_lead_to_nothing_but_the_box(shop: Workshop, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    packed = tar((LINK, "up", f"../../../../../..{tmp_path}"), (LINK, "direct", str(tmp_path)))
    dockerfile = f"""\
FROM busybox
ADD a.tar /x/
COPY evil /x/up/outside
COPY evil /x/direct/outside
RUN ln -s {tmp_path} /y
COPY evil /y/outside
"""
    await shop.build(dockerfile, {"a.tar": packed, "evil": "evil"})
    assert outside.read_text() == "mine"
