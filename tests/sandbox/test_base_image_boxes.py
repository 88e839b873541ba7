"""Boxes of images that have less than tests of boxes take for granted: other C libraries, no shell, no file at all."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.closure import PROGRAM, TOOLS
from orchestrator.service.sandbox.commands import Finished, run
from orchestrator.service.sandbox.provider import BoxNetwork, Command
from orchestrator.service.sandbox.user_namespace import IdMap
from tests.images.base_images import RECIPES
from tests.sandbox.conftest import PATIENCE, AnyProvider, Bench, opened, prepared
from tests.sandbox.images import base_root

pytestmark = [pytest.mark.anyio, pytest.mark.root]


@pytest.fixture(params=[*RECIPES, "empty"])
async def bare(request: pytest.FixtureRequest, local_provider: AnyProvider, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench whose boxes have one of the base images and nothing on it."""
    async for bench in opened(local_provider, tmp_path, base_root(request.param)):
        yield bench


async def ran(bench: Bench, *argv: str) -> Finished:
    return await run(await bench.boot(), Command(argv=argv), timeout=PATIENCE)


async def test_our_python_runs_in_every_image_and_starts_itself(bare: Bench) -> None:
    code = "import ctypes, sqlite3, ssl, subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'exit(3)']))"
    assert (await ran(bare, PROGRAM, "-c", code)).status == 3


async def test_a_program_that_no_image_has_is_127_and_named(bare: Bench) -> None:
    done = await ran(bare, "no-such-program")
    assert (done.status, done.output) == (127, "no-such-program: command not found\n")


async def test_a_users_script_runs_in_every_image(bare: Bench) -> None:
    done = await bare.run(await bare.boot(), "echo 5 | tail -n 1 && id -u && echo a >/new && cat /new && exit 4")
    assert (done.status, done.output) == (4, "5\n0\na\n")


@pytest.mark.parametrize("bare", RECIPES, indirect=True)
async def test_an_images_own_shell_runs_its_own_programs(bare: Bench) -> None:
    done = await ran(bare, "sh", "-c", "seq 5 | tail -n 1; readlink -f /proc/$$/exe | grep -c sweep; exit 4")
    assert (done.status, done.output) == (4, "5\n0\n")


@pytest.mark.parametrize("bare", ["busybox", "musl"], indirect=True)
async def test_the_shell_is_our_bash_where_there_is_none(bare: Bench) -> None:
    assert (await bare.boot()).shell == (f"{TOOLS}/bash", "-c")


@pytest.mark.parametrize("bare", ["musl"], indirect=True)
async def test_a_program_of_musl_finds_users_and_hosts(bare: Bench) -> None:
    """It reads /etc/passwd, /etc/hosts and /etc/resolv.conf by itself, and never our C library's files."""
    assert (await ran(bare, "lookup", "localhost")).output == "root 127.0.0.1\n"
    assert (await bare.run(await bare.boot(network=BoxNetwork.HOST), "lookup localhost")).output == "root 127.0.0.1\n"
    if not IdMap.own().is_whole:
        return
    box = await bare.boot(user="www-data")
    assert (await bare.run(box, "lookup 127.0.0.1")).output == "www-data 127.0.0.1\n"


@pytest.mark.parametrize("bare", ["debian"], indirect=True)
async def test_dpkg_of_debian_installs_packages_in_a_box(bare: Bench) -> None:
    """It changes owners, syncs what it writes, and runs scripts as root."""
    script = """
        mkdir -p /build/DEBIAN /build/srv && echo hello >/build/srv/file && chown 33:33 /build/srv/file
        printf 'Package: ours\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n' >/build/DEBIAN/control
        printf '#!/bin/sh\nuseradd --system --create-home ours\n' >/build/DEBIAN/postinst
        chmod 755 /build/DEBIAN/postinst && dpkg-deb --build /build /ours.deb && apt-get install -qq /ours.deb || exit 1
    """
    box = await bare.boot()
    done = await bare.run(box, script, timeout=60)
    assert done.status == 0, done
    owners = "www-data\nours\n" if IdMap.own().is_whole else "root\nroot\n"
    assert (await bare.run(box, "stat -c '%U' /srv/file /home/ours; dpkg --audit")).output == owners


async def test_an_image_without_certificates_has_the_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Agents need them to speak to their hosts. The user's own choice counts."""
    (tmp_path / "chosen.pem").write_text("chosen\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "chosen.pem"))
    async for provider in prepared(Isolation.LOCAL, tmp_path):
        async for bench in opened(provider, tmp_path, base_root("busybox")):
            assert (await ran(bench, "cat", "/etc/ssl/certs/ca-certificates.crt")).output == "chosen\n"
