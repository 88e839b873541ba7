"""The published client's own smoke tests, against the served service: written by others, for a service of others.

They come from the client's source distribution, whose hash is in our lock file, and run as they are. What they ask for
and is not served here is listed by name; the list is held to be exact, so that it cannot grow old.
"""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from anyio.from_thread import start_blocking_portal

from orchestrator.common.address import Address
from orchestrator.core.protocol import Isolation
from orchestrator.service.server import serve

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("published-client")]

PROJECT: Final = Path(__file__).parents[2]
CLIENT: Final = "runloop-api-client"
#: Seconds for a package index to give the client's source, and for all of its smoke tests.
DOWNLOADING: Final = 60
TESTING: Final = 240
#: Two of them sleep for 70 seconds each, so these have processes of their own; the others build on those before them.
#: Those of benchmarks find or make one of the same name, asynchronous or not, and so run one after another.
SHARDS: Final = (
    ("long_set_up", "--dist=load"),
    ("not long_set_up and not benchmark", "--dist=loadfile"),
    ("not long_set_up and benchmark", "--numprocesses=0"),
)
#: What fails, by why it is not served: whole files of tests, or single ones. The asynchronous twin goes without saying.
UNSERVED: Final[Mapping[str, tuple[str, ...]]] = {
    "builds have no secrets": ("test_blueprints::test_create_blueprint_with_secret_and_await_build",),
    "a devbox is of this machine and nobody enters it from outside": (
        "test_devbox::test_create_ssh_key",
        "test_devbox::test_create_with_tunnel_param",
        "test_devbox::test_enable_tunnel",
        "test_network_policy::test_network_policy_with_devbox_to_devbox",
    ),
    "secrets are the service owner's, and clients only name them": ("test_secret",),
    "objects are build contexts, and nothing that a devbox mounts": (
        "test_storage_object::test_mount_storage_object_to_devbox",
        "test_storage_object::test_access_mounted_storage_object",
        "test_storage_object::test_storage_object_in_devbox_workflow",
    ),
    "the service has no agents, axons, gateways or MCP servers": (
        "test_agent",
        "test_axon",
        "test_gateway_config",
        "test_mcp_config",
    ),
}
#: Not asked for: these build on images and packages from the internet, which the machine of a test may not reach.
ELSEWHERE: Final = (
    "test_blueprint_create_basic",
    "test_blueprint_create_with_system_setup",
    "test_blueprint_get_info",
    "test_blueprint_delete",
    "test_blueprint_with_base_blueprint",
    "test_blueprint_with_metadata",
    "test_blueprint_invalid_dockerfile",
    "test_get_blueprint_by_id",
    "test_list_blueprints_by_name",
    "test_create_devbox_from_blueprint",
    "test_create_from_blueprint_id",
    "test_create_from_blueprint_name",
    "test_scenario_builder_with_blueprint",
    "test_scenario_builder_with_snapshot",
)
#: In place of theirs, which makes failures of deprecations in the test runner; examples need accounts elsewhere.
SETTINGS: Final = """\
[pytest]
testpaths = tests/smoketests
addopts = -m smoketest --ignore=tests/smoketests/examples -n 2 -p no:cacheprovider --show-capture=no --tb=short
asyncio_mode = auto
asyncio_default_fixture_loop_scope = session
markers =
    smoketest: theirs
    timeout: theirs
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's source, in the version and with a hash of our lock file."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "client.txt").write_text(locked(CLIENT))
    words = f"download --quiet --no-deps --no-binary {CLIENT} --require-hashes --retries 0 -r client.txt"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", *words.split()],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=DOWNLOADING,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the client's source is out of reach: no answer from a package index")
    assert "DO NOT MATCH THE HASHES" not in done.stderr, done.stderr
    archives = list(folder.glob("*.tar.gz"))
    if not archives:
        pytest.skip(f"the client's source is out of reach: {done.stderr.strip()[-300:]}")
    subprocess.run(["tar", "-xzf", archives[0]], cwd=folder, check=True)
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


def locked(package: str) -> str:
    """The lines of the lock file that are about a package: version and hashes."""
    lock = (PROJECT / "requirements.lock").read_text()
    found = re.search(rf"^{re.escape(package)}==.*(?:\n +--hash=.*)+", lock, re.MULTILINE)
    assert found, f"{package} is not in requirements.lock"
    return found[0]


@pytest.fixture(scope="module")
def address(sandboxes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A service in a thread of its own, with nothing in it yet."""
    state = tmp_path_factory.mktemp("state")
    with start_blocking_portal() as portal:
        future, address = portal.start_task(partial(serve, "127.0.0.1", 0, None, state, [], Isolation.LOCAL, None))
        yield address
        future.cancel()


@pytest.fixture(scope="module")
def failures(source: Path, address: Address) -> Mapping[str, str | None]:
    """Failures of the smoke tests by file and name; None for those that passed."""
    (source / "ours.ini").write_text(SETTINGS)
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "RUNLOOP_"))}
    environment = mine | {"RUNLOOP_BASE_URL": address.url, "RUNLOOP_API_KEY": address.token}
    asked = f"not ({' or '.join(ELSEWHERE)})"
    shards = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pytest",
                "-c",
                "ours.ini",
                "-k",
                f"{chosen} and {asked}",
                dist,
                f"--junitxml={number}.xml",
            ],
            cwd=source,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for number, (chosen, dist) in enumerate(SHARDS)
    ]
    found: dict[str, str | None] = {}
    for number, shard in enumerate(shards):
        try:
            said, _ = shard.communicate(timeout=TESTING)
        finally:
            shard.kill()
        report = source / f"{number}.xml"
        assert report.exists(), said.decode()
        found |= outcomes(ET.parse(report).getroot())  # written a moment ago by a program of ours
    return found


def outcomes(report: ET.Element) -> dict[str, str | None]:
    """By the name that the list above has, and what it is called with; a test that was skipped has shown nothing."""
    found = {}
    for case in report.iter("testcase"):
        file = next(part for part in case.attrib["classname"].split(".") if part.startswith("test_"))
        trouble = next((child for child in case if child.tag in {"failure", "error", "skipped"}), None)
        words = None if trouble is None else f"{trouble.get('message')}\n{trouble.text}"
        found[f"{file}::{case.attrib['name']}"] = words
    return found


def is_listed(test: str) -> bool:
    listed = {name for names in UNSERVED.values() for name in names}
    return not listed.isdisjoint(names_of(test))


def names_of(test: str) -> tuple[str, str]:
    """The names by which a test may be listed: its file's, and its own without what it is called with."""
    file, _, name = test.replace("test_async_", "test_", 1).partition("::")
    return file, f"{file}::{name.partition('[')[0]}"


def test_the_published_clients_smoke_tests_pass_for_all_that_is_served(failures: Mapping[str, str | None]) -> None:
    failed = {test: words for test, words in failures.items() if words is not None and not is_listed(test)}
    assert not failed, "\n\n".join(f"{test}\n{words}" for test, words in failed.items())
    assert len(failures) - sum(map(is_listed, failures)) > 100, "they were run at all"


def test_routes_listed_as_not_served_are_not_served(failures: Mapping[str, str | None]) -> None:
    assert [test for test, words in failures.items() if words is None and is_listed(test)] == []
    known = {name for test in failures for name in names_of(test)}
    assert {name for names in UNSERVED.values() for name in names} - known == set(), "listed, but there is no such test"
