"""Evidence that agents leave, in whole sweeps of the real command: it costs little, and runs and hides nothing."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import Desk, new_desk, write_scenario

pytestmark = pytest.mark.slow

KEY: Final = "sk-test-4f9aQ7zLmX2p"
#: A repository with a program in its settings, and its like; what has no end; and pieces of somebody's own making.
LEAVES: Final = r"""
cd /logs/agent; mkdir -p .git/objects .git/refs .vscode a/.GIT
echo 'ref: refs/heads/main' >.git/HEAD
printf '[core]\n\trepositoryformatversion = 0\n\tfsmonitor = "touch @DESK@/PWNED; false"\n' >.git/config
cp .git/config a/.GIT/config; echo 'touch @DESK@/PWNED' >.envrc; echo '{}' >.vscode/tasks.json
mkfifo pipe; ln -s /dev/zero zero; truncate -s 400M hole; chmod 6777 .envrc
printf %s "$MY_KEY" | python3 -c 'import sys; sys.stdout.buffer.write(sys.stdin.read().encode("utf-16"))' >wide
echo "key = $MY_KEY" >/app/leak.txt; echo "$MODEL_HOST" >/app/host.txt; mkdir -p ~/out; echo "$MY_KEY" >~/out/report
"""
#: Answers in the place of our script, where that goes through a shell of the agent's.
FORGES: Final = r"""
cat >~/.bash_profile <<'P'
case "$BASH_EXECUTION_STRING" in *gather.sh*)
    mkdir -p ~/.sweep/gather; ln -s /dev/zero ~/.sweep/gather/traces.near.aaa
    for i in 1 2 3; do echo piece traces.near.aaa; done; echo piece ../../../dev/zero; exit 0;; esac
P
"""
AGENT: Final = """
run = '''
LEAVES
'''
[env]
required = ["MY_KEY", "MODEL_HOST"]
secret = ["MY_KEY", "MODEL_HOST"]
[gather]
files = ["~/out/*"]
"""


@pytest.fixture
def desk(sandboxes: None, tmp_path: Path) -> Iterator[Desk]:
    desk = new_desk(tmp_path, "local")
    write_scenario(desk.folder / "bench" / "one")
    yield desk
    desk.clear()


def test_files_of_an_agent_run_nothing_and_hide_nothing(desk: Desk) -> None:
    (desk.folder / "agents").mkdir()
    (desk.folder / "agents/leaves.toml").write_text(AGENT.replace("LEAVES", LEAVES.replace("@DESK@", str(desk.folder))))
    words = ("run", "bench", "--agent", "leaves", "--name", "it")
    ended = desk.start(*words, environment={"MY_KEY": KEY, "MODEL_HOST": "ollama"}).end()
    assert "Not masked in patches and artifacts, because the values are common words: MODEL_HOST." in ended.out
    (result,) = desk.results("runs/it")
    assert {"secrets_masked", "gather_truncated"} <= set(result["flags"]), str(ended)
    attempt = (desk.folder / "runs/it" / result["files"]["agent_log"]).parent
    traces = {str(path.relative_to(attempt)) for path in (attempt / "traces").rglob("*") if path.is_file()}
    assert {"traces/dot-git/not-HEAD", "traces/dot-envrc", "traces/dot-vscode/tasks.json"} <= traces
    assert "traces/a/dot-GIT/config" in traces
    for path in attempt.rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.stat().st_mode & 0o7111 == 0
    said = (attempt / "RENAMED.txt").read_text().splitlines()
    assert {"traces: .git is dot-git", "traces: .envrc is dot-envrc", "traces: a/.GIT is a/dot-GIT"} <= set(said)
    masked = (attempt / "MASKED.txt").read_text().splitlines()
    assert {"patch.diff: MY_KEY, 1 times masked", "artifacts/out/report: MY_KEY, 1 times masked"} <= set(masked)
    assert "+ollama" in (attempt / "patch.diff").read_text()
    assert "hole" in (attempt / "LEFT-OUT.txt").read_text()
    for place in (attempt / "traces", attempt / "traces/dot-git", attempt / "traces/a"):
        environment = {"PATH": os.environ["PATH"], "HOME": str(desk.home), "GIT_CEILING_DIRECTORIES": str(desk.folder)}
        looked = subprocess.run(["git", "status"], cwd=place, env=environment, check=False, capture_output=True)
        assert looked.returncode == 128
    assert not (desk.folder / "PWNED").exists()
    listed = desk.sweep("logs", "it", "one", "--file", "traces").out
    assert "dot-git/config" in listed


def test_a_piece_without_an_end_is_cut_and_said(desk: Desk) -> None:
    """In little memory: measured over the whole life of the sweep's process."""
    (desk.folder / "agents").mkdir()
    (desk.folder / "agents/forges.toml").write_text(f"run = '''\n{FORGES}\n'''\n")
    measured = []
    for agent in ("nop", "forges"):
        running = desk.start("run", "bench", "--agent", agent, "--name", agent)
        _, _, used = os.wait4(running.process.pid, 0)
        measured.append(used.ru_maxrss >> 10)
    (result,) = desk.results("runs/forges")
    assert result["outcome"] == "scored"
    attempt = (desk.folder / "runs/forges" / result["files"]["agent_log"]).parent
    if "left_out" in result["files"]:  # else our script was not to be answered for
        assert "torn" in (attempt / "LEFT-OUT.txt").read_text()
    assert measured[1] - measured[0] <= 64
