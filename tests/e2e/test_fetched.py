"""Benchmarks from elsewhere, at the command line: a git server on loopback, a registry file, an archive."""

import fcntl
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.service.definitions.sets.conftest import Origin
from tests.waiting import wait_until

from .conftest import reward, write_scenario

if TYPE_CHECKING:
    from tests.e2e.conftest import Desk


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the repositories below a folder by git's own protocol; yields the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["git", "daemon", "--listen=127.0.0.1", f"--port={port}", f"--base-path={folder}", "--export-all"]
    with subprocess.Popen([*words, "--reuseaddr", "--log-destination=none"]) as daemon:
        try:
            wait_until(lambda: not connects(port), "it does not listen")
            yield f"git://127.0.0.1:{port}"
        finally:
            daemon.terminate()


def connects(port: int) -> int:
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port))


def repository(folder: Path) -> Origin:
    made = Origin(folder)
    folder.mkdir()
    made.git("init", "--quiet", "--initial-branch=main")
    made.git("config", "uploadpack.allowFilter", "true")
    return made


def test_a_sweep_goes_on_with_the_commit_that_it_began_with(desk: "Desk", tmp_path: Path) -> None:
    origin = repository(tmp_path / "mine")
    for name in ("one", "two"):
        write_scenario(origin.folder / "tasks" / name)
    first = origin.commit()
    with served(tmp_path) as address:
        words = ("run", f"git+{address}/mine", "--agent", "oracle", "--name", "it")
        desk.sweep(*words, "--limit", "1")
        (tests := origin.folder / "tasks/two/tests/test.sh").write_text(reward("false"))
        origin.commit()
        desk.sweep("resume", "it", "--limit", "2")
        desk.sweep(*words, "--limit", "2")
    assert [result["score"] for result in desk.results("runs/it")] == [1, 1], tests
    manifest = json.loads((desk.folder / "runs/it/manifest.json").read_text())
    assert manifest["origin"]["parts"] == [{"url": f"{address}/mine", "commit": first, "folders": {"": "tasks"}}]
    assert manifest["identity"]["benchmark"] == "mine"
    desk.sweep("resume", "it", "--trials", "2")  # without the server: it is here


def test_names_of_a_registry_are_searched_and_run(desk: "Desk", tmp_path: Path) -> None:
    origin = repository(tmp_path / "mine")
    write_scenario(origin.folder / "one")
    commit = origin.commit()
    task = {"name": "first", "git_url": origin.url, "git_commit_id": commit, "path": "one"}
    listed = {"name": "night", "version": "2.0", "description": "Things to mend", "tasks": [task]}
    (desk.folder / "registry.json").write_text(json.dumps([listed]))
    given = ("--registry", "registry.json")
    assert desk.sweep("benchmarks", "search", "mend", *given).out.splitlines()[1].split()[:2] == ["night@2.0", "1"]
    assert desk.sweep("benchmarks", "search", "nothing", *given, status=1).out.startswith("Nothing matches 'nothing'")
    assert "night@2.0" in desk.refused("benchmarks", "show", "night@3", *given).replace("but 2.0", "night@2.0")
    desk.sweep("run", "night@2.0", "--agent", "oracle", "--name", "it", *given)
    (result,) = desk.results("runs/it")
    assert (result["benchmark"], result["scenario_name"], result["score"]) == ("night@2.0", "first", 1)
    assert "did you mean night" in desk.refused("run", "nigth", "--agent", "nop", *given)


def test_fetched_benchmarks_are_listed_and_removed(desk: "Desk", tmp_path: Path) -> None:
    """With what they were made from; one that a process uses stays, and a repository that nothing is from goes too."""
    for name in ("mine", "yours"):
        origin = repository(tmp_path / name)
        origin.add_tasks(3)
        origin.commit()
    commit = origin.git("rev-parse", "HEAD")
    desk.sweep("benchmarks", "get", f"git+file://{tmp_path}/mine", f"git+file://{tmp_path}/yours")
    listed = {each["name"]: each for each in desk.sweep("benchmarks", "list", "--json").json}
    assert listed["bugfix-mini"].keys() == listed["yours"].keys()
    yours = listed["yours"]
    assert (yours["scenarios"], yours["commits"], yours["from"]) == (3, [commit], [f"file://{tmp_path}/yours"])
    assert yours["size_bytes"] > 3 * len("Make done number 1.\n")
    (line,) = (each for each in desk.sweep("benchmarks", "list").out.splitlines() if "yours" in each)
    assert line.split()[:4] == [yours["id"], "yours", "3", commit[:12]]

    assert "no fetched benchmark 'ours' here. Fetched: mine, yours" in desk.refused("benchmarks", "rm", "mine", "ours")
    (entry,) = desk.home.glob(f".cache/sweep/benchmarks/{yours['id']}*")
    with (entry / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as each process does that has fetched it
        said = desk.sweep("benchmarks", "rm", "mine", yours["id"], status=1).out
    assert "in use by a running process; it stays" in said.splitlines()[1]
    assert [each["name"] for each in desk.sweep("benchmarks", "list", "--json").json] == ["bugfix-mini", "yours"]
    assert len([*desk.home.glob(".cache/sweep/repositories/*")]) == 1
    desk.sweep("benchmarks", "rm", "yours")
    assert not [*desk.home.glob(".cache/sweep/benchmarks/*"), *desk.home.glob(".cache/sweep/repositories/*")]


def test_a_fetch_that_is_killed_again_and_again_ends_whole(desk: "Desk", tmp_path: Path) -> None:
    origin = repository(tmp_path / "mine")
    origin.add_tasks(400)
    origin.commit()
    with served(tmp_path) as address:
        for tenths in range(4, 16, 2):
            running = desk.start("benchmarks", "get", f"git+{address}/mine")
            time.sleep(tenths / 10)
            running.kill()
        desk.sweep("benchmarks", "get", f"git+{address}/mine")
    (folder,) = desk.home.glob(".cache/sweep/benchmarks/*/copy/mine")
    tasks = {path.parent.name: path.read_text() for path in folder.glob("*/instruction.md")}
    assert tasks == {f"task-{number}": f"Make done number {number}.\n" for number in range(400)}
    assert not [path for path in folder.parents[1].iterdir() if path.name not in {"copy", "benchmark.json", "lock"}]


def test_mistakes_in_addresses_name_the_fix(desk: "Desk", tmp_path: Path) -> None:
    origin = repository(tmp_path / "mine")
    write_scenario(origin.folder / "tasks/one")
    origin.commit()
    assert "did you mean main" in desk.refused("run", f"git+{origin.url}@mian", "--agent", "nop")
    assert "did you mean tasks" in desk.refused("run", f"git+{origin.url}#taks", "--agent", "nop")
    ended = desk.sweep("run", f"git+{origin.url}-gone", "--agent", "nop", status=1)
    assert "does not appear to be a git repository" in ended.err
    assert "holds no scenario" in desk.refused("run", f"git+{origin.url}#tasks/one/tests", "--agent", "nop")
