"""The service's Python runs in a root that has nothing: no library, no loader, no shell."""

import subprocess
from pathlib import Path

import pytest

from orchestrator.service.environments.closure import IN_BOX, Closures, program_in_box
from orchestrator.service.sandbox.bwrap.binary import find_bubblewrap

pytestmark = pytest.mark.anyio
#: All that scorers' scripts import of what is not Python itself.
MODULES = "ssl, sqlite3, ctypes, json, lzma, bz2, zlib, hashlib, uuid, socket, decimal, unittest, xml.etree.ElementTree"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def closure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    cache.chmod(0o700)
    return await Closures(cache).get()


def run_in_nothing(closure: Path, code: str) -> str:
    folders = ["--ro-bind", str(closure), IN_BOX, "--proc", "/proc", "--dev", "/dev"]
    command = [str(find_bubblewrap().path), "--unshare-all", *folders, program_in_box(), "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def test_it_runs_with_all_its_modules(sandboxes: None, closure: Path) -> None:
    assert run_in_nothing(closure, f"import {MODULES}; print(1)") == "1"


async def test_its_programs_start_each_other(sandboxes: None, closure: Path) -> None:
    code = "import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', 'print(2)'], text=True))"
    assert run_in_nothing(closure, code) == "2"


async def test_nothing_of_the_root_is_loaded(sandboxes: None, closure: Path) -> None:
    code = "import ssl, sqlite3; print({line.split()[5] for line in open('/proc/self/maps') if '/' in line})"
    assert all(path.startswith(f"{IN_BOX}/") for path in eval(run_in_nothing(closure, code)))


async def test_it_is_made_once(closure: Path) -> None:
    made = (closure.parent / "closure.json").stat().st_ctime_ns
    assert await Closures(closure.parents[2]).get() == closure
    assert (closure.parent / "files").is_dir()
    assert made > 0
