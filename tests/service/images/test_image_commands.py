"""`sweep images` as it is typed: what it gets is listed, shared, kept while it is used, and gone when it is removed."""

import os
import pty
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.common import sweep_command
from orchestrator.service.environments.images.image_store import ImageStore
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.images.registry import Registries
from orchestrator.service.sandbox.user_namespace import UserNamespace
from tests.waiting import until

from .conftest import Typed
from .layers import entry, layer
from .registry_server import FakeRegistry, broken_off, digest_of
from .test_archive import saved_image

pytestmark = [pytest.mark.anyio, pytest.mark.root]
BASE = layer(entry("base", data=b"b" * 3_000_000))
TOP = layer(entry("top", data=b"t" * 1_000_000))


@pytest.fixture
def using(typed: Typed, registries: Registries, namespace: UserNamespace) -> ImageStore:
    """Another process's store over the same folder: locks are between open files."""
    return ImageStore(cache=typed.cache, registries=registries, namespace=namespace)


async def test_what_is_pulled_is_listed_with_what_it_shares(registry: FakeRegistry, typed: Typed) -> None:
    registry.add_image("one", "1", BASE)
    registry.add_image("two", "1", BASE, TOP)
    pulled = await typed("pull", f"{registry.host}/one:1", f"{registry.host}/two:1")
    assert pulled.stdout.decode().count("layer") == 2
    one, two = await typed.listed()
    assert (one["reference"], one["size_bytes"], one["shared_bytes"]) == (
        f"{registry.host}/one:1",
        3_000_000,
        3_000_000,
    )
    assert (two["reference"], two["size_bytes"], two["shared_bytes"]) == (
        f"{registry.host}/two:1",
        4_000_000,
        3_000_000,
    )
    table = (await typed("list")).stdout.decode()
    assert "reference" in table
    assert "4.0 MB" in table


@pytest.mark.slow
@pytest.mark.parametrize("how", ["option", "variable"])
async def test_a_mirror_is_asked_for_the_images_of_its_registry(registry: FakeRegistry, typed: Typed, how: str) -> None:
    registry.add_image("library/python", "3.12-slim", BASE)
    mirror = f"docker.io={registry.url}"
    words = ["--registry-mirror", mirror] if how == "option" else []
    exported = f"ghcr.io=https://127.0.0.1:1 {mirror}" if how == "variable" else ""
    await typed("pull", "python:3.12-slim", *words, SWEEP_REGISTRY_MIRRORS=exported)
    assert [image["reference"] for image in await typed.listed()] == ["python:3.12-slim"]


@pytest.mark.slow
async def test_one_image_that_cannot_be_had_does_not_keep_the_others_away(registry: FakeRegistry, typed: Typed) -> None:
    registry.add_image("one", "1", BASE)
    ended = await typed("pull", f"{registry.host}/none:1", f"{registry.host}/one:1", status=1)
    assert f"{registry.host}/none:1: {registry.host} has no none".encode() in ended.stderr
    assert [image["reference"] for image in await typed.listed()] == [f"{registry.host}/one:1"]


@pytest.mark.slow
async def test_a_pull_that_was_killed_is_continued_by_the_next(registry: FakeRegistry, typed: Typed) -> None:
    registry.add_image("one", "1", BASE)

    def stall(request: Request) -> Response | None:
        if digest_of(BASE) not in request.url.path or "range" in request.headers:
            return None
        return broken_off(BASE, 2_000_000, 200, pause_s=60)

    registry.fault = stall
    env = {**os.environ, "SWEEP_CACHE": str(typed.cache)}
    async with await anyio.open_process(
        [*sweep_command(), "images", "pull", f"{registry.host}/one:1"], env=env
    ) as pull:
        parts = typed.cache / "images/blobs"
        await until(lambda: any(part.stat().st_size == 2_000_000 for part in parts.glob("*/blob.part")), "nothing came")
        pull.kill()
    assert await typed.listed() == []
    registry.fault = lambda _: None
    await typed("pull", f"{registry.host}/one:1")
    assert registry.asked(digest_of(BASE))[-1]["range"] == "bytes=2000000-"
    assert [image["size_bytes"] for image in await typed.listed()] == [3_000_000]
    assert list(parts.iterdir()) == []


@pytest.mark.slow
async def test_an_image_that_is_removed_takes_only_its_own_layers_with_it(registry: FakeRegistry, typed: Typed) -> None:
    registry.add_image("one", "1", BASE)
    registry.add_image("two", "1", BASE, TOP)
    await typed("pull", f"{registry.host}/one:1", f"{registry.host}/two:1")
    await typed("rm", f"{registry.host}/two:1")
    assert [image["reference"] for image in await typed.listed()] == [f"{registry.host}/one:1"]
    assert len(list((typed.cache / "images/layers").iterdir())) == 1
    ended = await typed("rm", f"{registry.host}/two:1", status=1)
    assert f"is not here; there are: {registry.host}/one:1".encode() in ended.stderr


@pytest.mark.slow
async def test_what_a_process_uses_stays_and_all_else_is_pruned(
    registry: FakeRegistry, typed: Typed, using: ImageStore
) -> None:
    registry.add_image("one", "1", BASE)
    registry.add_image("two", "1", BASE, TOP)
    registry.add_image("three", "1", layer(entry("three", data=b"3")))
    await typed("pull", *(f"{registry.host}/{name}:1" for name in ("one", "two", "three")))
    found = await using.get(Reference.parse(f"{registry.host}/one:1"))
    ended = await typed("rm", f"{registry.host}/one:1", status=1)
    assert b"in use by a running process" in ended.stdout
    ended = await typed("prune")
    assert f"In use: {registry.host}/one:1.\n".encode() in ended.stdout
    assert [image["reference"] for image in await typed.listed()] == [f"{registry.host}/one:1"]
    assert (found.layers[0] / "base").stat().st_size == 3_000_000
    assert len(list((typed.cache / "images/layers").iterdir())) == 1


async def test_the_names_of_an_image_and_of_its_base_are_pruned_once_it_is_not_used(
    registry: FakeRegistry, typed: Typed, using: ImageStore
) -> None:
    registry.add_image("base", "1", BASE)
    registry.add_image("two", "1", BASE, TOP)
    registry.add_image("two", "latest", BASE, TOP)
    names = [f"{registry.host}/{name}" for name in ("base:1", "two:1", "two:latest")]
    await typed("pull", *names)
    lease = using.lease()
    await using.get(Reference.parse(f"{registry.host}/two:1"), lease=lease)
    ended = await typed("prune")
    assert f"0.0 MB removed, 4.0 MB stay. In use: {', '.join(names)}.\n".encode() in ended.stdout
    assert [image["reference"] for image in await typed.listed()] == names
    lease.end(lease)
    ended = await typed("prune")
    assert b"4.0 MB removed, 0.0 MB stay. In use: none." in ended.stdout
    assert await typed.listed() == []


@pytest.mark.slow
async def test_an_archive_is_taken_in_under_its_names(typed: Typed, tmp_path: Path) -> None:
    saved_image(tmp_path / "saved.tar", "mine:7", TOP)
    await typed("load", str(tmp_path / "saved.tar"))
    assert [(image["reference"], image["size_bytes"]) for image in await typed.listed()] == [("mine:7", 1_000_000)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pull", "UPPER"], "'UPPER' names no image"),
        (["pull", "x", "--registry-mirror", "docker.io"], "--registry-mirror: 'docker.io' is not a mirror"),
        (["load", "/nowhere.tar"], "/nowhere.tar: there is no such file"),
        (["rm", "UPPER"], "'UPPER' names no image"),
    ],
)
async def test_a_mistake_is_one_line_and_exit_code_two(typed: Typed, words: Sequence[str], says: str) -> None:
    ended = await typed(*words, status=2)
    assert says in ended.stderr.decode()
    assert ended.stderr.count(b"\n") == 1


async def test_a_folder_that_is_not_ours_is_refused_by_name(registry: FakeRegistry, typed: Typed) -> None:
    registry.add_image("one", "1", BASE)
    typed.cache.chmod(0o777)
    ended = await typed("pull", f"{registry.host}/one:1", status=1)
    assert b"can be written by others" in ended.stderr


async def test_a_terminal_shows_how_far_a_pull_has_come(registry: FakeRegistry, typed: Typed) -> None:
    registry.add_image("one", "1", BASE)
    ours, theirs = pty.openpty()
    env = {**os.environ, "SWEEP_CACHE": str(typed.cache), "TERM": "xterm", "COLUMNS": "100"}
    process = await anyio.open_process(
        [*sweep_command(), "images", "pull", f"{registry.host}/one:1"], env=env, stdout=theirs, stderr=sys.stderr
    )
    os.close(theirs)
    seen = b""
    async with process:
        while True:
            try:
                seen += await anyio.to_thread.run_sync(os.read, ours, 4096)
            except OSError:  # its end is closed
                break
    os.close(ours)
    assert b"layers unpacked" in seen or b"layer unpacked" in seen
    assert b"1 layer, 3.0 MB came" in seen
