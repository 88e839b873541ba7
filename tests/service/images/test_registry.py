"""Registries are asked over real sockets: what they send is checked, and no trouble on the way is the end of a pull."""

import json
import os
from base64 import b64encode
from ipaddress import ip_address
from pathlib import Path

import anyio
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from orchestrator.core.protocol import Mirror
from orchestrator.service.environments.images.credentials import Credentials
from orchestrator.service.environments.images.manifest import (
    BadImage,
    Descriptor,
    ImageConfig,
    ImageError,
    Platform,
    read,
)
from orchestrator.service.environments.images.reference import Reference
from orchestrator.service.environments.images.registry import NoSuchImage, Refused, Registries, Unavailable

from .registry_server import INDEX, PASSWORD, TOKEN, USER, FakeRegistry, broken_off, digest_of, served

pytestmark = pytest.mark.anyio
LINUX = Platform(architecture="amd64")
DATA = bytes(range(256)) * 4096


def named(registry: FakeRegistry, rest: str = "x:1") -> Reference:
    return Reference.parse(f"{registry.host}/{rest}")


def descriptor(data: bytes = DATA, **changes: object) -> Descriptor:
    return Descriptor(**({"digest": digest_of(data), "size": len(data)} | changes))  # type: ignore[arg-type]


def is_open(file: Path) -> bool:
    """Tell whether this process has a file open."""
    return str(file) in {os.path.realpath(each.path) for each in os.scandir("/proc/self/fd")}


async def test_an_image_is_found_with_its_configuration_and_layers(
    registry: FakeRegistry, registries: Registries
) -> None:
    made = registry.add_image("x", "1", b"low", b"high")
    digest, manifest = await registries.manifest(named(registry), LINUX)
    config = read(await registries.document(named(registry), manifest.config), ImageConfig, "x")
    assert digest == made["digest"]
    assert [layer.digest for layer in manifest.layers] == [digest_of(b"low"), digest_of(b"high")]
    assert config.config is not None
    assert (config.config.working_dir, config.config.env) == ("/srv", ["PATH=/bin"])


async def test_of_an_index_the_image_of_this_platform_is_taken(registry: FakeRegistry, registries: Registries) -> None:
    images = {name: registry.add_image("x", name, b"l", architecture=name) for name in ("arm64", "amd64")}
    entries = [{**made, "platform": {"os": "linux", "architecture": name}} for name, made in images.items()]
    entries.append({**images["arm64"], "platform": {"os": "unknown", "architecture": "unknown"}})
    registry.add_manifest("x", "1", {"schemaVersion": 2, "manifests": entries}, INDEX)
    digest, _ = await registries.manifest(named(registry), LINUX)
    assert digest == images["amd64"]["digest"]
    with pytest.raises(ImageError, match=r"no image for linux/s390x.*linux/arm64, linux/amd64"):
        await registries.manifest(named(registry), Platform(architecture="s390x"))


async def test_what_nobody_has_is_not_found_and_every_place_is_named(
    registry: FakeRegistry, registries: Registries
) -> None:
    with pytest.raises(NoSuchImage, match=f"{registry.host} has no x of this version: not known here"):
        await registries.manifest(named(registry), LINUX)


async def test_a_manifest_of_another_digest_than_asked_for_is_refused(
    registry: FakeRegistry, registries: Registries
) -> None:
    registry.manifests["x", f"sha256:{'0' * 64}"] = (b"{}", "application/vnd.oci.image.manifest.v1+json")
    with pytest.raises(BadImage, match="not what was asked for"):
        await registries.manifest(named(registry, f"x@sha256:{'0' * 64}"), LINUX)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"config": {"digest": "sha256:12", "size": 1}, "layers": []}',
        b'{"config": {"digest": "sha256:' + b"a" * 64 + b'", "size": -1}, "layers": []}',
        b'{"config": {"digest": "../../etc/passwd", "size": 1}, "layers": []}',
    ],
)
async def test_a_damaged_manifest_is_named_and_no_crash(
    registry: FakeRegistry, registries: Registries, data: bytes
) -> None:
    registry.manifests["x", "1"] = (data, "application/vnd.oci.image.manifest.v1+json")
    with pytest.raises(BadImage, match=f"x:1 of {registry.host} is damaged"):
        await registries.manifest(named(registry), LINUX)


async def test_a_document_without_an_end_is_broken_off(registry: FakeRegistry, registries: Registries) -> None:
    registry.manifests["x", "1"] = (b" " * (5 << 20), INDEX)
    with pytest.raises(BadImage, match="sends more"):
        await registries.manifest(named(registry), LINUX)


async def test_a_download_that_broke_off_goes_on_where_it_was(
    registry: FakeRegistry, registries: Registries, tmp_path: Path
) -> None:
    registry.add_blob(DATA)
    left = [300_000, 500_000]

    def fault(request: Request) -> Response | None:
        start = int(request.headers.get("range", "bytes=0-")[6:-1])
        return broken_off(DATA[start:], left.pop(0) - start, 206 if start else 200) if left else None

    registry.fault = fault
    came: list[int] = []
    await registries.download(named(registry), descriptor(), tmp_path / "blob", came.append)
    assert (tmp_path / "blob").read_bytes() == DATA
    assert sum(came) == len(DATA)
    assert [headers.get("range") for headers in registry.asked("blobs")] == [None, "bytes=300000-", "bytes=500000-"]
    assert not (tmp_path / "blob.part").exists()


async def test_a_download_that_is_cancelled_closes_what_it_has(
    registry: FakeRegistry, registries: Registries, tmp_path: Path
) -> None:
    registry.add_blob(DATA)
    with anyio.CancelScope() as scope:
        await registries.download(named(registry), descriptor(), tmp_path / "blob", lambda _: scope.cancel())
    assert (tmp_path / "blob.part").stat().st_size > 0
    assert not is_open(tmp_path / "blob.part")


async def test_a_later_process_goes_on_with_what_an_earlier_one_got(
    registry: FakeRegistry, registries: Registries, tmp_path: Path
) -> None:
    registry.add_blob(DATA)
    (tmp_path / "blob.part").write_bytes(DATA[:1000])
    await registries.download(named(registry), descriptor(), tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == DATA
    assert registry.asked("blobs")[0]["range"] == "bytes=1000-"


async def test_a_registry_that_knows_no_ranges_begins_anew(
    registry: FakeRegistry, registries: Registries, tmp_path: Path
) -> None:
    registry.fault = lambda _: Response(DATA)
    (tmp_path / "blob.part").write_bytes(DATA[:1000])
    came: list[int] = []
    await registries.download(named(registry), descriptor(), tmp_path / "blob", came.append)
    assert (tmp_path / "blob").read_bytes() == DATA
    assert sum(came) == len(DATA) - 1000


@pytest.mark.parametrize(
    ("sent", "said"), [(DATA[:-1] + b"!", "its digest is another"), (DATA + b"more", "longer than the")]
)
async def test_a_blob_that_is_not_the_one_is_refused_and_nothing_of_it_kept(
    registry: FakeRegistry, registries: Registries, tmp_path: Path, sent: bytes, said: str
) -> None:
    registry.blobs[digest_of(DATA)] = sent
    with pytest.raises(BadImage, match=said):
        await registries.download(named(registry), descriptor(), tmp_path / "blob")
    assert not (tmp_path / "blob").exists()
    assert not (tmp_path / "blob.part").exists()


async def test_a_busy_registry_is_waited_for_as_long_as_it_asks(registry: FakeRegistry, registries: Registries) -> None:
    registry.add_image("x", "1", b"l")
    answers = [
        Response(status_code=429, headers={"retry-after": "0"}),
        Response(status_code=503),
        Response(status_code=502),
    ]
    registry.fault = lambda _: answers.pop() if answers else None
    await registries.manifest(named(registry), LINUX)
    assert len(registry.requests) == 4


async def test_one_that_asks_for_hours_is_not_waited_for(registry: FakeRegistry, registries: Registries) -> None:
    registry.fault = lambda _: Response(status_code=429, headers={"retry-after": "21600"})
    with pytest.raises(Unavailable, match="HTTP 429, and asks to come back in 21600 s"):
        await registries.manifest(named(registry), LINUX)


async def test_one_that_is_not_there_is_tried_several_times_and_named(registries: Registries) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 cannot be had"):
        await registries.manifest(Reference.parse("127.0.0.1:1/x"), LINUX)


async def test_a_login_is_exchanged_for_a_token_that_all_later_requests_use(
    registry: FakeRegistry, registries: Registries, tmp_path: Path
) -> None:
    registry.private = True
    registry.add_image("x", "1", b"l")
    secret = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": secret}}}))
    registries.credentials = Credentials((tmp_path / "absent", tmp_path / "config.json"))
    _, manifest = await registries.manifest(named(registry), LINUX)
    await registries.document(named(registry), manifest.config)
    assert len(registry.asked("/token")) == 1
    assert [headers.get("authorization") for headers in registry.asked("/v2/")] == [None, *2 * [f"Bearer {TOKEN}"]]


async def test_without_a_login_a_private_image_is_refused_with_the_command(
    registry: FakeRegistry, registries: Registries
) -> None:
    registry.private = True
    with pytest.raises(Refused, match=f"`docker login {registry.host}`"):
        await registries.manifest(named(registry), LINUX)


async def test_a_login_stays_where_it_belongs_when_a_registry_leads_elsewhere(
    registry: FakeRegistry, registries: Registries, tmp_path: Path
) -> None:
    registry.private = True
    registry.add_blob(DATA)
    registries._authorizations[registry.url, "x"] = f"Bearer {TOKEN}"
    other = FakeRegistry()
    async with served(other):
        other.add_blob(DATA)
        target = f"{other.url}/v2/x/blobs/{digest_of(DATA)}"
        registry.fault = lambda _: RedirectResponse(target)
        await registries.download(named(registry), descriptor(), tmp_path / "blob")
        assert "authorization" not in other.asked("blobs")[0]
        assert registry.asked("blobs")[0]["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("target", ["https://169.254.169.254/x", "https://intranet/x"])
async def test_a_registry_of_the_internet_does_not_lead_to_addresses_of_this_site(
    registry: FakeRegistry, registries: Registries, target: str
) -> None:
    async def resolve(host: str, _: int) -> list[object]:
        return [ip_address({"127.0.0.1": "8.8.8.8", "169.254.169.254": host}.get(host, "10.0.0.1"))]

    registries.resolve = resolve  # type: ignore[assignment]
    registry.fault = lambda _: RedirectResponse(target)
    with pytest.raises(BadImage, match="no address of the internet"):
        await registries.manifest(named(registry), LINUX)


@pytest.mark.parametrize("target", ["http://example.org/x", "file:///etc/passwd", "ftp://127.0.0.1/x"])
async def test_a_registry_does_not_lead_away_from_tls(
    registry: FakeRegistry, registries: Registries, target: str
) -> None:
    registry.fault = lambda _: RedirectResponse(target)
    registries.mirrors = [Mirror(registry="secure.example", url=registry.url.replace("http:", "https:"))]
    place = registries._places(Reference.parse("secure.example/x"))[0]
    with pytest.raises(BadImage, match="not secure"):
        await registries._check_target(place, httpx.URL(target))


async def test_mirrors_are_asked_first_and_what_they_lack_comes_from_the_registry(
    registry: FakeRegistry, registries: Registries
) -> None:
    async with served(FakeRegistry()) as mirror:
        registries.mirrors = [Mirror(registry=registry.host, url=mirror.url)]
        registry.add_image("x", "1", b"ours")
        mirror.add_image("x", "2", b"mirrored")
        await registries.manifest(named(registry, "x:1"), LINUX)
        await registries.manifest(named(registry, "x:2"), LINUX)
        assert len(registry.asked("manifests")) == 1
        assert len(mirror.asked("manifests")) == 2


async def test_a_helper_program_gives_the_login(
    registry: FakeRegistry, registries: Registries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-ours"
    helper.write_text(
        f"""#!/bin/sh\n[ "$1" = get ] && grep -q . && echo '{{"Username":"{USER}","Secret":"{PASSWORD}"}}'\n"""
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {registry.host: "ours"}}))
    registries.credentials = Credentials((tmp_path / "config.json",))
    registry.private = True
    registry.add_image("x", "1", b"l")
    await registries.manifest(named(registry), LINUX)


async def test_a_damaged_file_of_logins_is_skipped(
    registry: FakeRegistry, registries: Registries, tmp_path: Path
) -> None:
    damaged = ["{", "[]", json.dumps({"auths": {registry.host: {"auth": "!"}}}), '{"credsStore": "../x"}']
    files = tuple(tmp_path / str(number) for number in range(len(damaged)))
    for file, text in zip(files, damaged, strict=True):
        file.write_text(text)
    registries.credentials = Credentials(files)
    registry.add_image("x", "1", b"l")
    await registries.manifest(named(registry), LINUX)
    assert await registries.credentials.of(registry.host) is None
