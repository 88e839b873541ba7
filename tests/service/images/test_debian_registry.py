"""Images come from a real registry, with and without tokens: they are what was pushed, and boxes boot from them."""

import json
import os
import stat
from base64 import b64encode
from pathlib import Path

import anyio
import pytest

from orchestrator.core.protocol import Isolation
from orchestrator.service.environments.images.archive import Archive
from orchestrator.service.environments.images.credentials import TOKEN_USER, Credentials
from orchestrator.service.environments.images.image_store import ImageStore
from orchestrator.service.environments.images.manifest import Descriptor, ours
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.images.registry import NoSuchImage, Refused, Registries
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.provider import BoxSpec, ImageRoot, shell
from tests.images.base_images import RECIPES, BaseImage, base_image
from tests.images.debian_registry import DebianRegistry
from tests.images.packing import PackedImage, digest_of
from tests.images.token_server import IDENTITY_TOKEN, PASSWORD, USER, TokenServer
from tests.sandbox.conftest import prepared

from .conftest import Typed
from .layers import entry, layer

pytestmark = [pytest.mark.anyio, pytest.mark.root]
NAMES = [*RECIPES, "empty"]
EMPTY = BaseImage(name="empty")
SMALL = PackedImage.of(EMPTY, layer(entry("small", data=b"small")))
LARGE = os.urandom(20_000_000)


def files(tree: Path) -> list[tuple[object, ...]]:
    """What a folder has, by path: kind, mode, owner, size and time of each file, and where each link leads."""
    found: list[tuple[object, ...]] = []
    for place in sorted(tree.rglob("*")):
        status = place.lstat()
        kept = (stat.filemode(status.st_mode), status.st_uid, status.st_gid, int(status.st_mtime), status.st_nlink)
        size = 0 if place.is_dir() else status.st_size
        found.append((str(place.relative_to(tree)), *kept, size, place.readlink() if place.is_symlink() else ""))
    return found


def logged_in(home: Path, registry: DebianRegistry, password: str = PASSWORD) -> Path:
    """The folder `home` of somebody who said `docker login`."""
    auth = b64encode(f"{USER}:{password}".encode()).decode()
    (home / ".docker").mkdir(parents=True)
    (home / ".docker/config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    return home


@pytest.mark.parametrize("name", NAMES)
async def test_an_image_comes_as_it_was_pushed(open_registry: DebianRegistry, store: ImageStore, name: str) -> None:
    image = base_image(name)
    reference = open_registry.push(f"{name}:1", PackedImage.of(image))
    pulled = await store.get(reference)
    assert [files(tree) for tree in pulled.layers] == [files(layer.tree) for layer in image.layers]
    assert pulled.image.config.config is not None
    assert pulled.image.digest == digest_of(PackedImage.of(image).manifest)


@pytest.mark.slow
async def test_a_box_boots_from_a_debian_with_layers_that_change_it(
    open_registry: DebianRegistry, store: ImageStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    more = (
        layer(entry("etc/.wh.hostname"), entry("etc/.wh.debian_version"), entry("etc/motd", data=b"hello\n")),
        layer(entry("etc/apt", "d"), entry("etc/apt/.wh..wh..opq"), entry("etc/apt/only", data=b"", owner=33)),
    )
    pulled = await store.get(open_registry.push("changed:1", PackedImage.of(base_image("debian"), *more)))
    async for provider in prepared(Isolation.LOCAL, tmp_path_factory.mktemp("boxes")):
        box = await provider.start(BoxSpec(id="pulled", image=ImageRoot(layers=pulled.layers)))
        script = (
            "test ! -e /etc/debian_version && cat /etc/motd && ls /etc/apt && stat -c %u /etc/apt/only && dpkg --audit"
        )
        done = await run(box, shell(script, words=box.shell), timeout=20)
        await box.stop()
    assert (done.status, done.output) == (0, "hello\nonly\n33\n")


@pytest.mark.parametrize("name", NAMES)
async def test_an_archive_has_what_the_image_has(store: ImageStore, tmp_path: Path, name: str) -> None:
    image = base_image(name)
    PackedImage.of(image).save(tmp_path / "image.tar", f"{name}:12")
    archive = Archive.read(tmp_path / "image.tar", ours())
    pulled = await store.pull(Reference.parse(f"{name}:12"), source=archive)
    assert [files(tree) for tree in pulled.layers] == [files(layer.tree) for layer in image.layers]


@pytest.mark.slow
async def test_an_image_is_pulled_by_its_name_and_by_its_digest(open_registry: DebianRegistry, typed: Typed) -> None:
    reference = open_registry.push("team/small:1.0", SMALL)
    by_digest = f"{open_registry.host}/team/small@{digest_of(SMALL.manifest)}"
    await typed("pull", str(reference), by_digest)
    assert {image["digest"] for image in await typed.listed()} == {digest_of(SMALL.manifest)}
    assert {image["reference"] for image in await typed.listed()} == {str(reference), by_digest}


async def test_of_several_architectures_that_of_this_machine_is_pulled(
    open_registry: DebianRegistry, store: ImageStore
) -> None:
    images = {"z80": PackedImage.of(EMPTY, layer(entry("other"))), ours().architecture: SMALL}
    pulled = await store.get(open_registry.push_index("several:1", images))
    assert pulled.image.digest == digest_of(SMALL.manifest)


async def test_what_is_not_there_is_named_with_the_registrys_words(
    open_registry: DebianRegistry, store: ImageStore
) -> None:
    with pytest.raises(NoSuchImage, match=f"{open_registry.host} has no none of this version: manifest unknown"):
        await store.get(Reference.parse(f"{open_registry.host}/none:1"))


async def test_a_download_that_was_broken_off_goes_on_where_it_was(
    open_registry: DebianRegistry, registries: Registries, tmp_path: Path
) -> None:
    large = PackedImage.of(EMPTY, LARGE)
    reference = open_registry.push("large:1", large)
    blob = Descriptor(digest=digest_of(LARGE), size=len(LARGE))
    with anyio.CancelScope() as scope:
        await registries.download(reference, blob, tmp_path / "blob", lambda _: scope.cancel())
    before = (tmp_path / "blob.part").stat().st_size
    assert 0 < before < len(LARGE)
    came: list[int] = []
    await registries.download(reference, blob, tmp_path / "blob", came.append)
    assert (tmp_path / "blob").read_bytes() == LARGE
    assert sum(came) == len(LARGE) - before
    assert open_registry.answered(blob.digest)[-1] == 206


@pytest.fixture(params=["closed_registry", "simple_registry"])
def registry_with_logins(request: pytest.FixtureRequest) -> DebianRegistry:
    found: DebianRegistry = request.getfixturevalue(request.param)
    return found


@pytest.mark.slow
async def test_with_a_login_a_private_image_is_pulled(
    registry_with_logins: DebianRegistry, typed: Typed, tmp_path: Path
) -> None:
    registry = registry_with_logins
    reference = registry.push("team/small:1", SMALL)
    home = logged_in(tmp_path / "home", registry)
    await typed("pull", str(reference), HOME=str(home), DOCKER_CONFIG="")
    assert [image["reference"] for image in await typed.listed()] == [str(reference)]


async def test_a_registry_without_tokens_says_too_how_to_log_in(
    simple_registry: DebianRegistry, registries: Registries, tmp_path: Path
) -> None:
    reference = simple_registry.push("team/small:1", SMALL)
    with pytest.raises(Refused, match=f"wants a login.*`docker login {simple_registry.host}`"):
        await registries.manifest(reference, ours())
    home = logged_in(tmp_path / "home", simple_registry, password="wrong")
    registries.credentials = Credentials((home / ".docker/config.json",))
    with pytest.raises(Refused, match=f"`docker login {simple_registry.host}`"):
        await registries.manifest(reference, ours())


@pytest.mark.slow
async def test_a_wrong_password_is_an_error_that_says_how_to_log_in(
    closed_registry: DebianRegistry, typed: Typed, tmp_path: Path
) -> None:
    reference = closed_registry.push("team/small:1", SMALL)
    home = logged_in(tmp_path / "home", closed_registry, password="wrong")
    ended = await typed("pull", str(reference), status=1, HOME=str(home), DOCKER_CONFIG="")
    said = ended.stderr.decode()
    assert f"{closed_registry.host} refuses the login" in said
    assert f"`docker login {closed_registry.host}`" in said
    assert "wrong" not in said


@pytest.mark.slow
async def test_without_a_login_public_images_are_pulled_and_private_ones_are_not(
    closed_registry: DebianRegistry, typed: Typed
) -> None:
    public, private = (closed_registry.push(f"{group}/small:1", SMALL) for group in ("public", "team"))
    ended = await typed("pull", str(public), str(private), status=1, DOCKER_CONFIG="")
    assert f"{closed_registry.host} lets us not have team/small: authentication required" in ended.stderr.decode()
    assert f"`docker login {closed_registry.host}`" in ended.stderr.decode()
    assert [image["reference"] for image in await typed.listed()] == [str(public)]


async def test_an_identity_token_is_a_login_too(
    closed_registry: DebianRegistry, registries: Registries, tmp_path: Path
) -> None:
    config = {"auths": {closed_registry.host: {"auth": "", "identitytoken": IDENTITY_TOKEN}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    registries.credentials = Credentials((tmp_path / "config.json",))
    login = await registries.credentials.of(closed_registry.host)
    assert login is not None
    assert login.user == TOKEN_USER
    digest, _ = await registries.manifest(closed_registry.push("team/small:2", SMALL), ours())
    assert digest == digest_of(SMALL.manifest)


async def test_a_token_that_has_expired_is_exchanged_for_a_new_one(
    closed_registry: DebianRegistry, tokens: TokenServer, store: ImageStore, tmp_path: Path
) -> None:
    home = logged_in(tmp_path / "home", closed_registry)
    store.registries.credentials = Credentials((home / ".docker/config.json",))
    old = tokens.token("team/small", "pull", lifetime_s=-200)
    store.registries._authorizations[f"http://{closed_registry.host}", "team/small"] = f"Bearer {old}"
    pulled = await store.get(closed_registry.push("team/small:3", SMALL))
    assert (pulled.layers[0] / "small").read_text() == "small"
