"""Builds in the room that images have: who lacks room waits and holds nothing, and what is used stays whole."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
import structlog

from orchestrator.core.protocol import Isolation
from orchestrator.service.environments.build_context import BuildContext
from orchestrator.service.environments.environments import built_reference
from orchestrator.service.environments.image_builds import BuildSource, BuiltImage, ImageBuilds
from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.image_store import ImageStore, open_images
from orchestrator.service.environments.images.manifest import ours
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.room_estimate import estimate
from orchestrator.service.sandbox.prepared import Preparation
from orchestrator.service.sandbox.provider import BoxStartFailed, Resources
from orchestrator.service.sandbox.providers import open_provider
from tests.images.base_images import base_image
from tests.images.packing import PackedImage
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.slow]
MB = 1_000_000
#: Busybox takes 2 MB, and each image below 4 MB more.
BUDGET = 9 * MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    store: ImageStore
    builds: ImageBuilds
    context: BuildContext

    async def build(self, name: str, preparation: Preparation, text: str = "") -> BuiltImage:
        source = BuildSource(
            text=text or f"FROM busybox\nRUN dd if=/dev/zero of=/big bs=1000000 count=4 && echo {name} >/name\n",
            file="Dockerfile",
            reference=built_reference(name, "1"),
            context=self.context,
            resources=Resources(),
            timeout=60,
            limit="limit",
        )
        return await self.builds.build(source, preparation)

    @property
    def names(self) -> list[str]:
        """The images that were built and are here."""
        return [each.reference.split("/")[2].partition(":")[0] for each in self.store.usages() if "/" in each.reference]


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Workshop]:
    (tmp_path / "context").mkdir()
    PackedImage.of(base_image("busybox")).save(tmp_path / "busybox.tar", "busybox:latest")
    async with (
        open_images(tmp_path / "cache", budget=BUDGET) as store,
        open_provider(Isolation.LOCAL, tmp_path / "state", ()) as provider,
    ):
        archive, lease = Archive.read(tmp_path / "busybox.tar", ours()), store.lease()
        await store.pull(archive.images[0].reference, source=archive, lease=lease)
        lease.end(lease)
        yield Workshop(
            store=store, builds=ImageBuilds(store, provider), context=BuildContext.read(tmp_path / "context")
        )


async def test_a_build_without_room_waits_until_another_use_ends_and_holds_nothing_meanwhile(shop: Workshop) -> None:
    one, other, early = Preparation(), Preparation(), Preparation(is_early=True)
    first = await shop.build("first", one)
    with pytest.raises(BoxStartFailed, match=r"early:1 needs about 4\.0 MB, and --image-cache 9\.0 MB"):
        await shop.build("early", early)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shop.build, "second", other)
        await until(lambda: other.doing().startswith("waiting for room: localhost/built/second:1"), "it does not wait")
        assert len(shop.store._leases) == 2  # what the store keeps itself, and `one`
        assert (first.root.layers[-1] / "big").stat().st_size == 4 * MB
        one.held.close()
    assert shop.names == ["second"]
    assert shop.store.size() <= BUDGET


async def test_a_built_image_is_kept_by_its_name_while_it_is_used_and_no_longer(shop: Workshop) -> None:
    preparation = Preparation()
    built = await shop.build("kept", preparation)
    assert shop.store.prune() == ["busybox:latest", "localhost/built/kept:1"]
    assert not shop.store.remove(Reference.parse("busybox"))
    assert await shop.builds.hold(built.root, preparation)
    preparation.held.close()
    assert shop.store.prune() == []
    assert shop.names == []
    assert not await shop.builds.hold(built.root, preparation)


async def test_layers_are_built_anew_where_that_is_asked_for(shop: Workshop) -> None:
    preparation = Preparation()
    layer = (await shop.build("again", preparation)).root.layers[-1]
    made = layer.stat().st_ino
    preparation.held.close()
    assert (await shop.build("again", preparation)).root.layers[-1].stat().st_ino == made
    preparation.held.close()
    anew = ImageBuilds(shop.store, shop.builds._provider, is_rebuilding=True)
    again = await Workshop(store=shop.store, builds=anew, context=shop.context).build("again", preparation)
    assert again.root.layers[-1] == layer
    assert layer.stat().st_ino != made


async def test_layers_that_a_build_needs_make_no_room_for_it(shop: Workshop) -> None:
    text = "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1000000 count=6\nRUN echo last >/last\n"
    preparation = Preparation()
    _, first, last = (await shop.build("kept", preparation, text)).root.layers
    made = first.stat().st_ino
    preparation.held.close()
    assert shop.store._layers.discard(last.parents[1].name)
    _, first, last = (await shop.build("kept", preparation, text)).root.layers
    assert first.stat().st_ino == made
    assert (last / "last").read_text() == "last\n"


async def test_a_stage_that_only_layers_which_are_here_have_read_is_not_made_again(shop: Workshop) -> None:
    text = """\
FROM busybox AS maker
RUN cat /proc/sys/kernel/random/uuid >/id
FROM busybox
COPY --from=maker /id /id
RUN echo last >/last
"""
    built = await shop.build("staged", Preparation(), text)
    for name in set(shop.store._layers.names()) - {layer.parents[1].name for layer in built.root.layers}:
        assert shop.store._layers.discard(name)
    with structlog.testing.capture_logs() as logs:
        again = await shop.build("again", Preparation(), text)
    assert (again.root, logs) == (built.root, [])
    more = await shop.build("more", Preparation(), f"{text}COPY --from=maker /id /other\n")
    assert (more.root.layers[-1] / "other").read_text() != (built.root.layers[1] / "id").read_text()


@pytest.mark.parametrize(
    ("text", "arguments", "unknown", "runs"),
    [
        ("ARG BASE=busybox\nFROM ${BASE} AS made\nRUN a\nFROM made\nRUN <<E\nRUN b\nE\n", {}, 0, 2),
        ("ARG BASE\nFROM $BASE\nRUN a\n", {"BASE": "busybox"}, 0, 1),
        ("ARG BASE\nFROM $BASE\nRUN a\n", {}, 1, 0),
        ("FROM Busy\n", {}, 1, 0),
        ("FROM scratch\nCOPY a b\n", {}, 0, 0),
    ],
)
async def test_an_image_is_of_unknown_size_if_its_dockerfile_does_not_tell_what_it_begins_with(
    shop: Workshop, text: str, arguments: dict[str, str], unknown: int, runs: int
) -> None:
    found = await estimate(shop.store, {built_reference("some", "1"): (text, arguments)})
    bases = shop.store.size() if "busybox" in f"{text}{arguments}" else 0
    assert (found.unknown, found.wanted) == (unknown, bases + runs * shop.store.run_bytes())
