"""Requirements of a scorer that try to run code where they are installed: on the service's machine, outside any box."""

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from orchestrator.service.environments.pythons import PythonEnvironments, check_requirements
from orchestrator.service.sandbox.provider import BoxStartFailed

pytestmark = pytest.mark.anyio
PROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "evil"
version = "1.0"
"""


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A source distribution whose build leaves the file `ran` beside it."""
    backend = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit('built')\n"
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
        "pyproject.toml": PROJECT,
        "backend.py": backend,
    }
    with tarfile.open(tmp_path / "evil-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"evil-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return tmp_path / "evil-1.0.tar.gz"


@pytest.fixture
def carrier(evil: Path) -> Path:
    """A harmless wheel that depends on it by address."""
    info = "carrier-1.0.dist-info"
    needed = f"Requires-Dist: evil @ {evil.as_uri()}\n"
    files = {
        "carrier.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n{needed}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(evil.with_name("carrier-1.0-py3-none-any.whl"), "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return evil.with_name("carrier-1.0-py3-none-any.whl")


@pytest.mark.parametrize(
    "line",
    [
        "--only-binary :none:",
        "--only-binary=:none:",
        "-f /somewhere --only-binary :none:",
        "--no-index --no-binary evil",
        "--pre -r /etc/passwd",
        "file:///x/evil-1.0.tar.gz#.whl",
        "file:///x/evil-1.0.tar.gz?.whl",
        "evil @ https://x.example/evil-1.0.tar.gz?x=.whl",
        "evil @ git+https://x.example/evil-1.0-py3-none-any.whl",
        "git+https://x.example/evil-1.0-py3-none-any.whl",
        "https://[x/evil.whl",
        '--find-links "',
    ],
)
def test_an_archive_that_only_looks_like_a_wheel_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"^line 1: "):
        check_requirements(line)


def test_a_folder_with_the_name_of_a_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil-1.0-py3-none-any.whl").mkdir()
    for line in (f"{tmp_path}/evil-1.0-py3-none-any.whl", f"evil @ file://{tmp_path}/evil-1.0-py3-none-any.whl"):
        with pytest.raises(ValueError, match=r"^line 1: "):
            check_requirements(line)


@pytest.mark.parametrize(
    "line", ["--only-binary :all:", "--only-binary=:all: --pre", "https://x.example/a%20b.whl?x=y#z"]
)
def test_a_wheel_is_not_refused(line: str) -> None:
    check_requirements(line)


async def test_a_wheel_that_depends_on_a_source_distribution_does_not_have_it_built(
    carrier: Path, tmp_path: Path
) -> None:
    requirements = f"--no-index\n{carrier}\n"
    with pytest.raises(BoxStartFailed, match="only wheels are installed"):
        await PythonEnvironments(tmp_path / "cache").binds(requirements=requirements, constraint=None)
    assert not (tmp_path / "ran").exists()


def test_the_trap_is_sharp(evil: Path, tmp_path: Path) -> None:
    """Run without our guard, the build does leave its mark: the test above would notice."""
    with tarfile.open(evil) as archive:
        backend = archive.extractfile("evil-1.0/backend.py")
        assert backend is not None
        done = subprocess.run([sys.executable, "-c", backend.read()], capture_output=True, check=False)
    assert b"built" in done.stderr
    assert (tmp_path / "ran").exists()
