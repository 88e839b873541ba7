"""Our own steps work in a box of an image that has little or nothing, and use nothing that an agent put there."""

import io
import tarfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agentkit.agent import Outputs
from orchestrator.engine.artifacts import scripts
from orchestrator.engine.artifacts.unpack import ArchiveLimits
from orchestrator.engine.workspace import NOT_WRITTEN, files_check
from orchestrator.service.content import Node
from orchestrator.service.definitions.self_extracting import pack, solution_script
from orchestrator.service.errors import BadRequest
from orchestrator.service.sandbox.bwrap.image_box import PATH, ImageBox
from orchestrator.service.sandbox.closure import TOOLS
from orchestrator.service.sandbox.commands import Download, Finished, read_file, run, write_file
from orchestrator.service.sandbox.provider import Command, ImageRoot, shell
from tests.images.base_images import base_image
from tests.sandbox.conftest import AnyProvider, Bench, opened

pytestmark = [pytest.mark.anyio, pytest.mark.root]
WRAPPER = Path(scripts.__file__).parents[1] / "agent_wrapper.sh"
PLACES: Mapping[str, str] = {"scratch": "/home/user/.sweep", "directory": "/app", "home": "/home/user"}


@pytest.fixture(params=["busybox", "musl", "empty"])
async def bare(request: pytest.FixtureRequest, local_provider: AnyProvider, tmp_path: Path) -> AsyncIterator[Bench]:
    """Boxes of an image without bash, whose upper layer is the test's."""
    (tmp_path / "upper").mkdir()
    layers = (*base_image(request.param).root.layers, tmp_path / "upper")
    async for bench in opened(local_provider, tmp_path, ImageRoot(layers=layers)):
        yield bench


@pytest.fixture
async def imaged(local_provider: AnyProvider, image: ImageRoot, tmp_path: Path) -> AsyncIterator[Bench]:
    async for bench in opened(local_provider, tmp_path, image):
        yield bench


async def boot(bench: Bench, **spec: Any) -> ImageBox:
    box = await bench.boot(**{"working_directory": "/app", **spec})
    assert isinstance(box, ImageBox)
    return box


async def do(box: ImageBox, script: str) -> Finished:
    """Run a user's script."""
    return await run(box, shell(script, words=box.shell), timeout=60)


async def say(box: ImageBox, script: str) -> str:
    done = await do(box, script)
    assert done.status == 0, done.output
    return done.output


async def tend(box: ImageBox, script: str) -> list[str]:
    """Run a script of the engine as the engine does, and return what it prints."""
    await write_file(box, "/home/user/.sweep/step.sh", script.encode())
    return (await say(box, "exec bash /home/user/.sweep/step.sh")).splitlines()


async def test_files_are_written_and_read(bare: Bench) -> None:
    box = await boot(bare)
    await write_file(box, "/deep/er/file", b"content" * 1000, mode=0o600)
    assert await read_file(box, "/deep/er/file", keep=7) == b"content"
    download = await Download.open(box, "/deep/er/file")
    assert b"".join([piece async for piece in download.pieces()]) == b"content" * 1000
    assert await say(box, "stat -c %a /deep/er/file") == "600\n"
    with pytest.raises(BadRequest, match="No such file"):
        await Download.open(box, "/none")


async def test_a_users_script_is_for_bash_and_finds_our_programs_behind_the_images(bare: Bench) -> None:
    box = await boot(bare, environment={"PATH": "/mine"})
    script = "shopt -q login_shell || echo $PATH; [[ a == a ]] && timeout 5 bash -c 'sh -c id' | head -c 5"
    assert await say(box, script) == f"/mine:{TOOLS}\nuid=0"


async def test_where_the_image_has_bash_nothing_is_added(imaged: Bench) -> None:
    box = await boot(imaged)
    assert box.shell == ("bash", "-c")
    assert await say(box, "echo $PATH; type -p bash") == f"{PATH}\n/usr/bin/bash\n"


@pytest.mark.parametrize("bare", ["empty"], indirect=True)
async def test_bash_may_be_anywhere_on_the_images_path(bare: Bench) -> None:
    assert bare.image is not None
    (bare.image.layers[0] / "opt/sh").mkdir(parents=True)
    (bare.image.layers[0] / "bin").symlink_to("/usr/bin")
    assert (await boot(bare)).shell == (f"{TOOLS}/bash", "-c")
    (bare.image.layers[0] / "opt/sh/bash").symlink_to("../../elsewhere")
    assert (await boot(bare, environment={"PATH": "/bin:/opt/sh"})).shell == ("bash", "-c")


async def test_an_agent_cannot_put_a_program_before_those_of_our_own_steps(imaged: Bench) -> None:
    box = await boot(imaged)
    spoil = "cd /usr/bin; for name in sh cat head mkdir chmod rm; do printf 'spoiled' >$name; done"
    spoil += "; echo /usr/bin/cat >/etc/ld.so.preload"
    await do(box, spoil)
    await write_file(box, "/app/x", b"true", mode=0o644)
    assert await read_file(box, "/app/x") == b"true"
    done = await run(box, Command(argv=("rm", "/app/x"), is_plain=True), timeout=20)
    assert (done.status, done.output) == (0, "")


async def test_a_script_without_a_first_line_is_our_shells(bare: Bench) -> None:
    box = await boot(bare)
    await write_file(box, "/app/tool", b"echo ran $1", mode=0o755)
    assert (await run(box, Command(argv=("/app/tool", "well")), timeout=20)).output == "ran well\n"


@pytest.mark.parametrize("user", ["", "1000"])
async def test_a_script_whose_shell_the_image_lacks_is_refused_by_name(bare: Bench, user: str) -> None:
    box = await boot(bare, user=user)
    await write_file(box, "/app/tool", b"#!/bin/bash -e\n", mode=0o755)
    done = await run(box, Command(argv=("/app/tool",)), timeout=20)
    words = "/app/tool: its #! line asks for /bin/bash -e, which is not there\n"
    assert (done.status, done.output) == (127, words)
    assert (await run(box, Command(argv=("none",)), timeout=20)).output == "none: command not found\n"


async def test_a_program_whose_loader_the_image_lacks_is_refused_by_name(bare: Bench) -> None:
    box = await boot(bare)
    await write_file(box, "/app/cat", await _contents(Path("/bin/cat")), mode=0o755)
    done = await run(box, Command(argv=("/app/cat",)), timeout=20)
    assert done.output == "/app/cat: its loader, which it names as a program of another system, is not there\n"


async def _contents(file: Path) -> bytes:
    return file.read_bytes()  # noqa: ASYNC240


async def test_patch_and_files_of_an_agent_come_out_of_it(bare: Bench) -> None:
    box = await boot(bare)
    await say(box, "cd /app; echo one >kept; echo two >'a b'; mkdir -p .git/x; head -c 300000 /dev/zero >big")
    await tend(box, scripts.snapshot(**PLACES))
    await say(box, "cd /app; echo three >'a b'; rm big; mkdir -p /logs/agent/deep; echo log >/logs/agent/deep/file")
    printed = await tend(box, scripts.patching(1 << 20, **PLACES))
    assert printed == ["piece patch.aaa"]
    patch = (await read_file(box, "/home/user/.sweep/patch/patch.aaa")).decode()
    assert "-two\n+three\n" in patch
    assert "big" in patch

    printed = await tend(box, scripts.packing(Outputs(), (), ArchiveLimits(), **PLACES))
    assert printed == ["piece traces.near.aaa"]
    archive = io.BytesIO(await read_file(box, "/home/user/.sweep/gather/traces.near.aaa"))
    assert tarfile.open(fileobj=archive).getnames() == ["./deep/file"]  # noqa: SIM115


async def test_what_is_written_for_a_command_is_compared_before_it_runs(bare: Bench) -> None:
    box = await boot(bare)
    await write_file(box, "/app/given", b"content")
    assert (await do(box, files_check({"/app/given": b"content"}))).status == 0
    assert (await do(box, files_check({"/app/given": b"contend"}))).status == NOT_WRITTEN


@pytest.mark.parametrize(("command", "status"), [("echo $WHO; exit 7", "7"), ("sleep 60 & sleep 60", "timed-out")])
async def test_an_agent_runs_at_most_once_within_its_limit(bare: Bench, command: str, status: str) -> None:
    box = await boot(bare)
    folder = "/home/user/.sweep/agent"
    files = {"command": command.encode(), "env": b"export WHO=me", "run": WRAPPER.read_bytes()}
    for name, content in files.items():
        await write_file(box, f"{folder}/{name}", content)
    first = await do(box, f"bash {folder}/run 1 /dev/null /app")
    assert (first.status, first.output) == ((7, "me\n") if status == "7" else (124, ""))
    assert await say(box, f"cat {folder}/status") == f"{status}\n"
    again = await do(box, f"bash {folder}/run 1 /dev/null /app")
    assert (again.status, again.output) == (first.status, "")
    assert not (await box.remaining()).names


async def test_an_agent_sees_the_path_of_the_image_and_no_start_up_file(imaged: Bench) -> None:
    box = await boot(imaged, environment={"PATH": f"/opt/conda/bin:{PATH}"})
    await write_file(box, "/etc/profile", b"export PATH=/undone")
    for name, content in {"command": b"echo $PATH", "run": WRAPPER.read_bytes()}.items():
        await write_file(box, f"/home/user/.sweep/agent/{name}", content)
    assert await say(box, "bash /home/user/.sweep/agent/run 9 /dev/null /app") == f"/opt/conda/bin:{PATH}\n"


async def test_a_solution_is_unpacked_and_executed(bare: Bench) -> None:
    box = await boot(bare)
    node = Node(path="solve.sh", kind="file", place="", is_executable=True)
    archive = pack([node], lambda _: b"[[ -n $X ]] && echo solved >/app/done")
    script = solution_script(archive, working_directory="/app", variables={"X": "1"})
    await write_file(box, "/app/reference", script.encode())
    assert await say(box, "bash /app/reference; cat /app/done") == "solved\n"


async def test_an_agent_of_another_user_works_with_what_is_written_for_it(imaged: Bench) -> None:
    box = await boot(imaged, user="www-data")
    for name, content in {"command": b"id -un", "run": WRAPPER.read_bytes(), "env": b""}.items():
        await write_file(box, f"/home/user/.sweep/agent/{name}", content, as_user=True)
    assert await say(box, "bash /home/user/.sweep/agent/run 9 /dev/null /app") == "www-data\n"
    assert await say(box, "ls /home/user/.sweep/agent") == "command\nmarker\nrun\nstatus\n"
    with pytest.raises(BadRequest, match="Permission denied"):
        await write_file(box, "/etc/new", b"", as_user=True)
    await write_file(box, "/etc/new", b"")
