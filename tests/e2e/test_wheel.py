"""The built and installed package: the same command, with agents, benchmark and manual inside, and nothing else."""

import configparser
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer

from orchestrator import __version__
from orchestrator.commands import BUNDLED
from orchestrator.commands.docs import PAGES

from .conftest import ROOT

if TYPE_CHECKING:
    from .conftest import Desk

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, by the build backend that is installed."""
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture
def names(wheel: Path) -> Iterator[set[str]]:
    with zipfile.ZipFile(wheel) as archive:
        yield set(archive.namelist())


def test_the_wheel_has_the_package_the_agents_the_benchmark_and_the_manual(names: set[str]) -> None:
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "orchestrator").rglob("*.py")}
    assert sources <= names
    assert {f"orchestrator/agents/{path.name}" for path in (ROOT / "agents").iterdir()} <= names
    bundled = {path.relative_to(ROOT) for path in BUNDLED.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {str(path) for path in bundled if "__pycache__" not in path.parts} <= names
    assert {f"orchestrator/docs/{path.name}" for path in PAGES.iterdir()} <= names
    assert f"sweep_orchestrator-{__version__}.dist-info/licenses/LICENSE" in names


def test_the_wheel_has_nothing_else(names: set[str]) -> None:
    """`agents` is the import name of a package our users have, so it must not be one of ours."""
    tops = {name.split("/")[0] for name in names}
    assert tops == {"orchestrator", f"sweep_orchestrator-{__version__}.dist-info"}
    assert not [name for name in names if name.startswith("orchestrator/tests/") or "__pycache__" in name]
    assert "orchestrator/agents/__init__.py" not in names


def test_the_wheel_has_one_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        points = configparser.ConfigParser()
        points.read_string(archive.read(entry).decode())
        metadata = archive.read(entry.replace("entry_points.txt", "METADATA")).decode()
    assert dict(points["console_scripts"]) == {"sweep": "orchestrator.__main__:main"}
    assert "Requires-Dist: runloop-api-client[aiohttp]<2,>=1.32" in metadata


def test_the_installed_command_runs_the_bundled_benchmark(desk: "Desk", wheel: Path, isolation: str) -> None:
    """In an environment of its own, away from the sources; only the dependencies are borrowed."""
    environment = desk.home.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=120)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", "--quiet"]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (packages,) = environment.glob("lib/python3*/site-packages")
    # Of a folder that a .pth file names, its own .pth files are not read: the editable install stays out.
    (packages / "borrowed.pth").write_text(str(Path(typer.__file__).parents[1]))
    sweep = str(environment / "bin" / "sweep")

    version = desk.spawn([sweep, "--version"]).end()
    assert (version.status, version.out) == (0, f"sweep {__version__}\n")
    where = desk.spawn([str(python), "-c", "import orchestrator; print(orchestrator.__file__)"]).end().out
    assert Path(where.strip()).is_relative_to(packages)
    manual = desk.spawn([sweep, "docs", "getting-started"]).end()
    assert (manual.status, manual.out) == (0, (PAGES / "getting-started.md").read_text())
    run = [sweep, "run", "bugfix-mini", "--agent", "oracle", "--limit", "1"]
    ended = desk.spawn([*run, "--isolation", isolation]).end()
    assert ended.status == 0, str(ended)
    assert [result["score"] for result in desk.results(ended.folder)] == [1.0]
