"""Names of images mean what they mean to every other tool, and those that name none are refused with the reason."""

import pytest

from orchestrator.core.protocol import Mirror
from orchestrator.service.environments.images.reference import BadReference, Reference, base_url

DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("python", "docker.io", "library/python", "latest", None),
        ("python:3.12-slim", "docker.io", "library/python", "3.12-slim", None),
        ("team/x", "docker.io", "team/x", "latest", None),
        ("docker.io/python", "docker.io", "library/python", "latest", None),
        ("index.docker.io/team/x:1", "docker.io", "team/x", "1", None),
        ("localhost/x", "localhost", "x", "latest", None),
        ("host:5000/x/y:v", "host:5000", "x/y", "v", None),
        ("[::1]:5000/x", "[::1]:5000", "x", "latest", None),
        (f"ghcr.io/a/b/c@{DIGEST}", "ghcr.io", "a/b/c", None, DIGEST),
        (f"host:5000/x:v@{DIGEST}", "host:5000", "x", "v", DIGEST),
        ("Host/x", "Host", "x", "latest", None),
        ("a.b/x__y/z-_0".replace("-_", "--"), "a.b", "x__y/z--0", "latest", None),
    ],
)
def test_a_name_has_the_registry_repository_tag_and_digest_of_everywhere(
    text: str, registry: str, repository: str, tag: str | None, digest: str | None
) -> None:
    found = Reference.parse(text)
    assert (found.registry, found.repository, found.tag, found.digest) == (registry, repository, tag, digest)


@pytest.mark.parametrize("text", ["python:3.12-slim", "team/x:1", "host:5000/x:v", f"ghcr.io/a/b@{DIGEST}"])
def test_the_shortest_spelling_is_the_one_that_is_shown(text: str) -> None:
    assert str(Reference.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "repository"),
        ("Python", "capital letters"),
        ("x:", "tag"),
        ("x:-1", "tag"),
        ("x@sha256:12", "digest"),
        ("x@", "digest"),
        ("host:port/x", "'host:port' is no host"),
        ("a//b", "repository"),
        ("../x", "no host"),
        ("x y", "repository"),
        ("http://host/x", "no host"),
        (f"a/{'b' * 300}", "longer"),
    ],
)
def test_a_text_that_names_no_image_is_refused_with_the_reason_and_an_example(text: str, why: str) -> None:
    with pytest.raises(BadReference, match=why) as refusal:
        Reference.parse(text)
    assert "python:3.12-slim" in str(refusal.value)


def test_only_loopback_is_spoken_to_without_tls() -> None:
    assert base_url("127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert base_url("localhost:5000") == "http://localhost:5000"
    assert base_url("[::1]:5000") == "http://[::1]:5000"
    assert base_url("10.0.0.1:5000") == "https://10.0.0.1:5000"
    assert base_url("docker.io").startswith("https://")


def test_a_mirror_is_a_registry_and_an_address() -> None:
    found = Mirror.parse("docker.io=http://127.0.0.1:5000/")
    assert (found.registry, found.url) == ("docker.io", "http://127.0.0.1:5000")


@pytest.mark.parametrize(
    "text", ["", "docker.io", "docker.io=127.0.0.1:5000", "=http://x", "a=ftp://x", "a=http://u:p@x"]
)
def test_a_text_that_is_no_mirror_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match="mirror"):
        Mirror.parse(text)
