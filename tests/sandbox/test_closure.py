"""The service's Python runs in a root that has nothing: no library, no loader, no shell."""

import subprocess
from pathlib import Path

import pytest

from orchestrator.service.sandbox.bwrap.shared_files import find_bubblewrap
from orchestrator.service.sandbox.closure import IN_BOX, PROGRAM, make_closure

#: All that scorers' scripts import of what is not Python itself.
MODULES = "ssl, sqlite3, ctypes, json, lzma, bz2, zlib, hashlib, uuid, socket, decimal, unittest, xml.etree.ElementTree"


@pytest.fixture(scope="module")
def closure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_closure(tmp_path_factory.mktemp("cache") / "closures")


@pytest.fixture(scope="module")
def sandbox() -> list[str]:
    """The start of a command line that runs in a sandbox without any file."""
    command = [str(find_bubblewrap().path), "--unshare-all"]
    trial = subprocess.run([*command, "--ro-bind", "/", "/", "true"], capture_output=True, text=True, check=False)
    if trial.returncode:
        pytest.skip(f"no sandboxes here: {trial.stderr}")
    return command


def run_in_nothing(sandbox: list[str], closure: Path, code: str) -> str:
    folders = ["--ro-bind", str(closure), IN_BOX, "--proc", "/proc", "--dev", "/dev"]
    command = [*sandbox, *folders, PROGRAM, "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_runs_with_all_its_modules(sandbox: list[str], closure: Path) -> None:
    assert run_in_nothing(sandbox, closure, f"import {MODULES}; print(1)") == "1"


def test_its_programs_start_each_other(sandbox: list[str], closure: Path) -> None:
    code = "import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', 'print(2)'], text=True))"
    assert run_in_nothing(sandbox, closure, code) == "2"


def test_nothing_of_the_root_is_loaded(sandbox: list[str], closure: Path) -> None:
    code = "import ssl, sqlite3; print({line.split()[5] for line in open('/proc/self/maps') if '/' in line})"
    assert all(path.startswith(f"{IN_BOX}/") for path in eval(run_in_nothing(sandbox, closure, code)))


def test_it_is_made_once_and_nothing_else_is_left_beside_it(closure: Path) -> None:
    made = closure.stat().st_ctime_ns
    assert make_closure(closure.parent) == closure
    assert closure.stat().st_ctime_ns == made
    assert list(closure.parent.iterdir()) == [closure]


def test_what_a_killed_service_left_half_made_is_made_anew(closure: Path, tmp_path: Path) -> None:
    (tmp_path / "closures/fresh/bin").mkdir(parents=True)
    made = make_closure(tmp_path / "closures")
    assert made.name == closure.name
    assert list(made.parent.iterdir()) == [made]
