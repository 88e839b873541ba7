"""The service's Python runs in a root that has nothing: no library, no loader, no shell."""

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from orchestrator.common.cache_folder import cache_folder
from orchestrator.service.sandbox.bwrap.shared_files import find_bubblewrap
from orchestrator.service.sandbox.closure import IN_BOX, LIBRARIES, PROGRAM, TOOLS, Closures
from tests.waiting import wait_until

#: All that scorers' scripts import of what is not Python itself.
MODULES = "ssl, sqlite3, ctypes, json, lzma, bz2, zlib, hashlib, uuid, socket, decimal, unittest, xml.etree.ElementTree"


@pytest.fixture(scope="module")
def closure() -> Iterator[Path]:
    closures = Closures(cache_folder())
    yield anyio.run(closures.get)
    closures.close()


@pytest.fixture(scope="module")
def sandbox() -> list[str]:
    """The start of a command line that runs in a sandbox without any file."""
    command = [str(find_bubblewrap().path), "--unshare-all"]
    trial = subprocess.run([*command, "--ro-bind", "/", "/", "true"], capture_output=True, text=True, check=False)
    if trial.returncode:
        pytest.skip(f"no sandboxes here: {trial.stderr}")
    return command


def there(closure: Path, path: str) -> Path:
    return closure / path.removeprefix(f"{IN_BOX}/")


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


def test_its_tools_are_of_this_machine_and_need_nothing_else(sandbox: list[str], closure: Path) -> None:
    assert {"bash", "sh", "cat", "find", "tar", "timeout"} <= {tool.name for tool in there(closure, TOOLS).iterdir()}
    code = f"""import os, subprocess
for tool in os.listdir({TOOLS!r}):
    done = subprocess.run([f"{TOOLS}/{{tool}}", "--version"], stdin=subprocess.DEVNULL, capture_output=True, env={{}})
    if done.returncode in (126, 127):
        print(tool, done.stderr)"""
    assert not run_in_nothing(sandbox, closure, code)


def test_git_works_by_what_it_has_built_in(sandbox: list[str], closure: Path) -> None:
    if not (there(closure, TOOLS) / "git").exists():
        pytest.skip("this machine has no git")
    script = """set -e; mkdir -p /work/sub; cd /work; git init -q --template=; echo a >sub/f; git add .
git -c user.name=x -c user.email=x@y commit -q -m one; echo b >sub/f; git diff >/patch; git checkout -q .
git apply --check /patch; git apply /patch; cat sub/f; git hash-object sub/f; git status --short"""
    code = f"import subprocess; subprocess.run(['{TOOLS}/sh', '-c', {script!r}], env={{'PATH': {TOOLS!r}}}, check=True)"
    said = run_in_nothing(sandbox, closure, code)
    assert said == "b\n61780798228d17af2d34fce4cfbdf35556832472\n M sub/f"


def test_ast_grep_searches_in_any_root(sandbox: list[str], closure: Path) -> None:
    search = [f"{TOOLS}/ast-grep", "run", "--pattern", "f($A)", "--lang", "py", "/x.py"]
    code = f"import subprocess; open('/x.py', 'w').write('f(1)'); print(subprocess.check_output({search}, text=True))"
    assert "f(1)" in run_in_nothing(sandbox, closure, code)


def test_no_file_of_the_root_has_the_loader_load_more(sandbox: list[str], closure: Path) -> None:
    code = """import os, subprocess; os.mkdir('/etc'); open('/etc/ld.so.preload', 'w').write('/evil.so')
open('/evil.so', 'w').write('')"""
    code += f"; done = subprocess.run(['{TOOLS}/true'], capture_output=True); print(done.returncode, done.stderr)"
    assert run_in_nothing(sandbox, closure, code) == "0 b''"


def test_no_file_of_the_root_has_the_c_library_load_more(sandbox: list[str], closure: Path) -> None:
    code = f"""import glob, os, shutil, subprocess
for folder in ('/etc', '/lib', '/usr/lib/{os.uname().machine}-linux-gnu', '/lib64'):
    os.makedirs(folder)
    shutil.copy(glob.glob('{LIBRARIES}/libm.so.*')[0], folder + '/libnss_evil.so.2')
open('/etc/nsswitch.conf', 'w').write('passwd: evil files\\n')
open('/etc/passwd', 'w').write('x:x:7:7::/there:/x')
script = 'echo ~x; while read -r line; do case $line in *evil*) echo $line ;; esac; done </proc/$$/maps'
print(subprocess.check_output(['{TOOLS}/bash', '-c', script], text=True))"""
    assert run_in_nothing(sandbox, closure, code) == "/there"


def test_nothing_of_the_root_is_loaded(sandbox: list[str], closure: Path) -> None:
    code = "import ssl, sqlite3; print({line.split()[5] for line in open('/proc/self/maps') if '/' in line})"
    assert all(path.startswith(f"{IN_BOX}/") for path in eval(run_in_nothing(sandbox, closure, code)))


def test_it_is_made_once_for_all_processes_of_a_user(closure: Path) -> None:
    made = closure.stat().st_ctime_ns
    others = [Closures(cache_folder()), Closures(cache_folder())]
    assert [anyio.run(other.get) for other in others] == [closure, closure]
    assert closure.stat().st_ctime_ns == made
    for other in others:
        other.close()


def test_nobody_else_can_write_it_or_come_near_it(closure: Path) -> None:
    entries = [path for path in (closure, *closure.rglob("*")) if not path.is_symlink()]
    assert [path for path in entries if path.stat().st_mode & 0o022] == []
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in closure.parents[:2]] == [0o700, 0o700]


#: Prints the place of the closure below a cache folder.
GET = """
import sys, anyio
from pathlib import Path
from orchestrator.service.sandbox.closure import Closures
print(anyio.run(Closures(Path(sys.argv[1])).get))
"""


def got(cache: Path, *, instead: tuple[Path, Path] | None = None) -> Path:
    """What a process gets that ends at once, on a machine with one file `instead` of another."""
    mount = "" if instead is None else f"mount --bind {instead[0]} {instead[1]};"
    words = ["unshare", "--mount", "sh", "-c", f'{mount} exec "$@"', "sh", sys.executable, "-c", GET, str(cache)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return Path(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.root
def test_when_python_or_a_library_is_changed_another_one_is_made_and_unused_ones_go(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = got(cache)
    assert got(cache) == first
    libraries = json.loads((first.parent / "closure.json").read_bytes())["libraries"]
    originals = [Path(sysconfig.get_path("stdlib"), "this.py"), Path(min(libraries))]
    copies = [Path(shutil.copy(original, tmp_path)) for original in originals]

    second = got(cache, instead=(copies[0], originals[0]))
    in_use = Closures(cache)
    assert anyio.run(in_use.get) == first
    for old in (first, second):
        os.utime(old.parent / "closure.json", (0, 0))
    third = got(cache, instead=(copies[1], originals[1]))
    in_use.close()
    assert len({first, second, third}) == 3
    assert {place.name for place in first.parents[1].iterdir()} == {first.parent.name, third.parent.name}
    assert in_use.prune() > 100_000_000
    assert list(first.parents[1].iterdir()) == []


def has(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


@pytest.mark.slow
def test_one_that_was_half_made_when_its_maker_was_killed_is_never_used(sandbox: list[str], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for step in ("lib/*/abc.py", "so/libc.so.6", "lib/*/__pycache__/abc.*"):
        maker = subprocess.Popen([sys.executable, "-c", GET, str(cache)], stdout=subprocess.DEVNULL)
        wait_until(partial(has, cache, f"closures/*/making/files/{step}"), f"{step} was not made", seconds=60)
        maker.kill()
        maker.wait()
    closures = Closures(cache)
    made = anyio.run(closures.get)
    closures.close()
    assert run_in_nothing(sandbox, made, f"import {MODULES}; print(1)") == "1"
    assert sorted(place.name for place in made.parent.iterdir()) == ["closure.json", "files", "lock"]
