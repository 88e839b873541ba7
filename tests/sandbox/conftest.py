"""Providers to test, boxes of them, and what tests ask of a box."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator.core.errors import SandboxUnavailable
from orchestrator.core.protocol import DiskLimit, Isolation
from orchestrator.service.sandbox.agent_connection import AgentProcess
from orchestrator.service.sandbox.base_provider import AgentBox, BaseProvider
from orchestrator.service.sandbox.commands import Finished, run
from orchestrator.service.sandbox.provider import BoxSpec, ImageRoot, shell
from orchestrator.service.sandbox.providers import PROVIDERS
from tests.sandbox.images import make_image

PATIENCE = 20.0
#: Kinds of box beside the providers of the table: the local one, on these base images.
IMAGES = ("debian", "busybox", "musl")
AnyProvider = BaseProvider[Any]


@dataclass(slots=True)
class Bench:
    """One provider under test, its state folder below `place`, and helpers that wait with a deadline."""

    provider: AnyProvider
    place: Path
    image: ImageRoot | None = None
    boxes: list[AgentBox] = field(default_factory=list)

    async def boot(self, *, beside: AgentBox | None = None, **spec: Any) -> AgentBox:
        given = BoxSpec(**{"id": f"dbx-{uuid.uuid4().hex[:8]}", "image": self.image, **spec})
        box = await self.provider.start(given, beside=beside)
        self.boxes.append(box)
        return box

    async def run(self, box: AgentBox, script: str, *, timeout: float = PATIENCE, **how: Any) -> Finished:
        return await run(box, shell(script, words=box.shell, **how), timeout=timeout)

    async def pass_on_files(self, **spec: Any) -> None:
        """See that the files of a box, copied and then moved, are another one's."""
        box = await self.boot(**spec)
        await self.run(box, "mkdir deep; echo first >deep/file; chmod 750 deep")
        await box.save(self.place / "saved")
        await self.run(box, "echo second >deep/file")
        await box.keep_layer(self.place / "kept")
        await box.stop()
        for place, text in (("saved", "first\n750\n"), ("kept", "second\n750\n")):
            tree = self.place / place
            image = self.image and replace(self.image, layers=(*self.image.layers, tree))
            other = await self.boot(image=image, root=None if image else tree)
            assert (await self.run(other, "cat deep/file; stat -c %a deep")).output == text

    async def start(self, box: AgentBox, script: str, **how: Any) -> AgentProcess:
        return await box.spawn(shell(script, words=box.shell, **how))


@pytest.fixture
def marker() -> str:
    """A word that only this test's processes carry."""
    return f"marker-{uuid.uuid4().hex}"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A place for a state folder, below one that only its owner can enter."""
    return closed_folder(tmp_path)


def closed_folder(place: Path) -> Path:
    (place / "locked").mkdir(mode=0o700)
    return place / "locked/state"


async def prepared(
    isolation: Isolation, place: Path, disk_limit: DiskLimit = DiskLimit.WATCHED
) -> AsyncIterator[AnyProvider]:
    provider = PROVIDERS[isolation](closed_folder(place), ())
    provider.disk_limit = disk_limit
    try:
        await provider.prepare()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    yield provider
    await provider.close()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> ImageRoot:
    """An unpacked Debian that the boxes of this machine can boot, with what tests of boxes look for."""
    return unpacked("debian", tmp_path_factory)


def unpacked(name: str, places: pytest.TempPathFactory) -> ImageRoot:
    place = places.mktemp(name)
    place.chmod(0o700)
    return make_image(name, place)


#: One image is enough for a quick look: the others differ from it in what they bring.
KINDS = [*PROVIDERS, *(each if each == "busybox" else pytest.param(each, marks=pytest.mark.slow) for each in IMAGES)]


@pytest.fixture(scope="module", params=KINDS)
def any_kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AnyProvider, ImageRoot | None]:
    """Each provider of the table in turn, and the boxes of images of the one that has walls."""
    image = unpacked(request.param, tmp_path_factory) if request.param in IMAGES else None
    fixtures = {Isolation.LOCAL: "local_provider", Isolation.NONE: "process_provider"}
    return request.getfixturevalue(fixtures[Isolation.LOCAL if image else request.param]), image


@pytest.fixture(scope="module")
async def local_provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AnyProvider]:
    async for provider in prepared(Isolation.LOCAL, tmp_path_factory.mktemp("local")):
        yield provider


@pytest.fixture(scope="module")
async def process_provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AnyProvider]:
    async for provider in prepared(Isolation.NONE, tmp_path_factory.mktemp("process")):
        yield provider


async def opened(provider: AnyProvider, place: Path, image: ImageRoot | None = None) -> AsyncIterator[Bench]:
    """A bench whose boxes are gone afterwards, with their files."""
    bench = Bench(provider, place, image)
    yield bench
    async with anyio.create_task_group() as stops:
        for box in bench.boxes:
            stops.start_soon(box.stop)
    assert not provider._boxes
    assert not list(provider.state.glob("boxes/*")), "a box's files outlived it"


@pytest.fixture
async def local(local_provider: AnyProvider, tmp_path: Path) -> AsyncIterator[Bench]:
    async for bench in opened(local_provider, tmp_path):
        yield bench


@pytest.fixture
async def process(process_provider: AnyProvider, tmp_path: Path) -> AsyncIterator[Bench]:
    async for bench in opened(process_provider, tmp_path):
        yield bench


@pytest.fixture
async def bench(any_kind: tuple[AnyProvider, ImageRoot | None], tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench for each kind of box."""
    provider, image = any_kind
    async for each in opened(provider, tmp_path, image):
        yield each
