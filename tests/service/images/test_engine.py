"""An image that a container engine of this machine has is taken from there, and only the one that was asked for.

The engine is a server of ours on a Unix socket, and a real dockerd where there is one.
"""

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from structlog.testing import capture_logs

from orchestrator.service.environments.images import engine
from orchestrator.service.environments.images.image_store import ImageStore, Progress
from orchestrator.service.environments.images.manifest import ours
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.images.registry import NoSuchImage
from tests.container_engine import dockerd
from tests.serving import serving_at

from .conftest import Typed
from .layers import entry, layer
from .registry_server import FakeRegistry
from .test_archive import saved_image, written

pytestmark = [pytest.mark.anyio, pytest.mark.root]
LOCAL = layer(entry("from", data=b"engine"))
REMOTE = layer(entry("from", data=b"registry"))
DIGEST = f"sha256:{'a' * 64}"


@dataclass(slots=True)
class FakeEngine:
    """Answers as Docker and Podman do; `images` are archives by the name that is asked for."""

    images: dict[str, Path] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=lambda: {"Os": "linux", "Architecture": ours().architecture})
    asked: list[str] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[Route("/_ping", self.pong), Route("/images/{name:path}/{what}", self.answer)],
        )

    async def pong(self, _: Request) -> Response:
        return Response("OK")

    async def answer(self, request: Request) -> Response:
        name, what = request.path_params["name"], request.path_params["what"]
        self.asked.append(f"{what} {name}")
        if name not in self.images:
            return JSONResponse({"message": f"No such image: {name}"}, 404)
        return FileResponse(self.images[name]) if what == "get" else JSONResponse({"Id": DIGEST, **self.facts})


@pytest.fixture
async def local(store: ImageStore, tmp_path: Path) -> AsyncIterator[FakeEngine]:
    """An engine that the store asks, and that has `tool:1` of docker.io."""
    fake = FakeEngine({"docker.io/library/tool:1": saved_image(tmp_path / "tool.tar", "tool:1", LOCAL)})
    async with serving_at(fake.app(), tmp_path / "engine.sock") as place:
        store.engines = (place,)
        yield fake


async def told(store: ImageStore, name: str) -> str:
    """Get an image; return what its file says of where it is from."""
    found = await store.get(Reference.parse(name))
    return (found.layers[-1] / "from").read_text()


async def test_an_image_of_an_engine_needs_no_registry(store: ImageStore, local: FakeEngine, tmp_path: Path) -> None:
    progress = Progress()
    with capture_logs() as logs:
        found = await store.get(Reference.parse("tool:1"), progress=progress)
    assert (found.layers[0] / "from").read_text() == "engine"
    assert (found.image.reference, progress.origin) == ("tool:1", f"the engine at {tmp_path / 'engine.sock'}")
    assert [each["origin"] for each in logs if each["event"] == "image.pulled"] == [progress.origin]
    assert list((store.cache / "images/blobs").iterdir()) == [], "the archive is gone"
    await store.get(Reference.parse("tool:1"))
    assert local.asked == ["json docker.io/library/tool:1", "get docker.io/library/tool:1"]


async def test_what_an_engine_lacks_comes_from_the_registry(
    store: ImageStore, local: FakeEngine, registry: FakeRegistry
) -> None:
    registry.add_image("tool", "1", REMOTE)
    assert await told(store, f"{registry.host}/tool:1") == "registry"
    assert local.asked == [f"json {registry.host}/tool:1"]


async def test_a_pull_of_what_is_here_asks_the_registry_for_a_newer_one(
    store: ImageStore, local: FakeEngine, registry: FakeRegistry
) -> None:
    reference = Reference.parse(f"{registry.host}/tool:1")
    local.images[str(reference)] = local.images["docker.io/library/tool:1"]
    assert await told(store, str(reference)) == "engine"
    registry.add_image("tool", "1", REMOTE)
    await store.pull(reference)
    assert await told(store, str(reference)) == "registry"


async def test_a_pull_of_an_image_that_only_an_engine_has_takes_it_from_there_again(
    store: ImageStore, local: FakeEngine, registry: FakeRegistry, tmp_path: Path
) -> None:
    reference = Reference.parse(f"{registry.host}/mine:1")
    local.images[str(reference)] = saved_image(tmp_path / "old.tar", str(reference), REMOTE)
    assert await told(store, str(reference)) == "registry"
    local.images[str(reference)] = saved_image(tmp_path / "new.tar", str(reference), LOCAL)
    await store.pull(reference)
    assert await told(store, str(reference)) == "engine"


@pytest.mark.parametrize("facts", [{"Architecture": "vax"}, {"Os": "windows"}])
async def test_an_image_for_another_machine_is_left_there(
    store: ImageStore, local: FakeEngine, registry: FakeRegistry, facts: dict[str, str]
) -> None:
    registry.add_image("tool", "1", REMOTE)
    local.images[f"{registry.host}/tool:1"] = local.images["docker.io/library/tool:1"]
    local.facts |= facts
    assert await told(store, f"{registry.host}/tool:1") == "registry"


async def test_a_digest_must_be_one_that_the_engine_knows_the_image_by(
    store: ImageStore, local: FakeEngine, registry: FakeRegistry
) -> None:
    name = f"{registry.host}/tool@{DIGEST}"
    local.images[name] = local.images["docker.io/library/tool:1"]
    local.facts["RepoDigests"] = [f"{registry.host}/tool@sha256:{'b' * 64}"]
    with pytest.raises(NoSuchImage):
        await store.get(Reference.parse(name))
    local.facts["RepoDigests"].append(name)
    assert await told(store, name) == "engine"


@pytest.mark.parametrize("damage", ["no archive", "another platform in it"])
async def test_an_archive_that_is_no_good_is_not_the_end(
    store: ImageStore, local: FakeEngine, registry: FakeRegistry, tmp_path: Path, damage: str
) -> None:
    registry.add_image("tool", "1", REMOTE)
    bad = tmp_path / "bad.tar"
    if damage == "no archive":
        bad.write_bytes(b"not a tar")
    else:
        manifest = b'[{"Config": "c.json", "RepoTags": ["tool:1"], "Layers": []}]'
        written(bad, {"c.json": b'{"os": "linux", "architecture": "vax"}', "manifest.json": manifest})
    local.images[f"{registry.host}/tool:1"] = bad
    with capture_logs() as logs:
        assert await told(store, f"{registry.host}/tool:1") == "registry"
    assert "image.engine_failed" in [each["event"] for each in logs]


async def test_a_dead_socket_delays_nothing_and_a_mute_one_little(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_image("tool", "1", REMOTE)
    monkeypatch.setattr(engine, "ANSWER_S", 0.3)
    with ExitStack() as opened:
        listeners = [opened.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        for listener, name in zip(listeners, ("dead.sock", "mute.sock"), strict=True):
            listener.bind(str(tmp_path / name))
        listeners[1].listen()
        store.engines = (tmp_path / "dead.sock", tmp_path / "mute.sock", tmp_path / "none.sock")
        assert [await engine.is_alive(each) for each in store.engines] == [False] * 3
        with anyio.fail_after(5):
            assert await told(store, f"{registry.host}/tool:1") == "registry"


async def test_the_users_own_engine_is_asked_and_no_other_docker(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeEngine({"docker.io/library/tool:1": saved_image(tmp_path / "tool.tar", "tool:1", LOCAL)})
    async with serving_at(fake.app(), tmp_path / "engine.sock") as place:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{place}")
        assert engine.sockets()[0] == place
        assert Path("/var/run/docker.sock") not in engine.sockets()
        assert await engine.is_alive(place)
        ended = await typed("pull", "tool:1")
        assert f"came from the engine at {place}" in ended.stdout.decode()
        link = tmp_path / "podman/podman.sock"
        link.parent.mkdir()
        link.symlink_to(place)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert [each for each in engine.sockets() if each.is_relative_to(tmp_path)] == [place], "each once"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/gone.sock")
    assert tmp_path / "gone.sock" not in engine.sockets()


@pytest.mark.slow
async def test_a_real_docker_is_asked_as_well(store: ImageStore, tmp_path: Path) -> None:
    archive = saved_image(tmp_path / "tool.tar", "tool:1", LOCAL)
    with dockerd() as place:
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(place)), base_url="http://engine", timeout=60
        ) as http:
            (await http.post("/images/load", content=archive.read_bytes())).raise_for_status()
        store.engines = (place,)
        assert await told(store, "tool:1") == "engine"
