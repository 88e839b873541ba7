"""Tests that install packages when they run, from the index that this machine's settings name."""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Final

import pytest

from tests.images.base_images import base_image
from tests.images.packing import PackedImage

from .conftest import write_scenario

if TYPE_CHECKING:
    from .conftest import Desk

pytestmark = [pytest.mark.slow, pytest.mark.root]
#: pip as Python brings it along, for an image that has neither.
PIP: Final = "python3 $(echo /.sweep/lib/python3.*/ensurepip/_bundled/pip-*.whl)/pip"
TEST: Final = f"""PATH=$PATH:/.sweep/bin
{PIP} install --quiet --no-cache-dir --target /tmp/new planted || exit 1
PYTHONPATH=/tmp/new python3 -c 'import planted' && echo 1 >/logs/verifier/reward.txt
env | grep -q -e word -e TOKEN && echo 0 >/logs/verifier/reward.txt
"""


def wheel() -> bytes:
    """A package with one module."""
    files = {
        "planted.py": b"",
        "planted-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: planted\nVersion: 1\n",
        "planted-1.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    ]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("planted-1.dist-info/RECORD", "".join(rows))
    return packed.getvalue()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """An index on this machine."""
    place = tmp_path / "index/simple/planted"
    place.mkdir(parents=True)
    (place / "planted-1-py3-none-any.whl").write_bytes(wheel())

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "index"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/simple"
        server.shutdown()


@pytest.mark.parametrize("scoring", ["shared", "separate"])
def test_a_test_installs_from_this_machines_index_and_leaves_no_setting(desk: "Desk", index: str, scoring: str) -> None:
    PackedImage.of(base_image("busybox")).save(desk.folder / "busybox.tar", "busybox:latest")
    desk.sweep("images", "load", "busybox.tar")
    task = write_scenario(desk.folder / "mine/one", test=TEST, task="[environment]\nallow_internet = true\n")
    (task / "environment/Dockerfile").write_text("FROM busybox\nWORKDIR /app\n")
    given = {
        "PIP_INDEX_URL": index,
        "PIP_EXTRA_INDEX_URL": "http://me:word@127.0.0.1:9/simple",
        "UV_PUBLISH_TOKEN": "x",
    }
    agent = 'command:touch done; echo "$PIP_INDEX_URL"; ls -a / /run /root; true'
    options = ("--network", "host", "--scoring", scoring)
    ended = desk.sweep("run", "./mine", "--agent", agent, *options, environment=given)
    (result,) = desk.results(ended.folder)
    assert result["score"] == 1.0, result
    log = desk.log(ended.folder, result)
    assert index in log
    assert "settings" not in log
    assert "word" not in log
    assert not list(desk.folder.glob("runs/*/trials/*/*/*/*/changes.txt"))
