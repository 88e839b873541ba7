"""Secrets of agents: planted, printed, written and leaked by an agent that does not care, and then looked for
everywhere: in each byte that a sweep and its service wrote, and in each process of the machine meanwhile.
"""

import base64
import fcntl
import json
import os
import shlex
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import pytest

from tests.processes import read

from .conftest import write_scenario

if TYPE_CHECKING:
    from .conftest import Desk, Running

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def alone() -> "Iterator[None]":
    """One test after the other: each looks at every process of the machine, and would see another one's sweep."""
    with (Path(tempfile.gettempdir()) / "sweep-test-secrets.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


SECRETS: Final = {
    "QUOTED": """it's "quoted", costs $HOME `id` \\n & more""",
    "FOREIGN": "schlüssel-漢字-🙂-geheim",
    "LONG": "".join(f"{number * 7919 % 99991:05d}x" for number in range(34))[:200],
    "KEYFILE": "-----BEGIN KEY-----\nAAAAbbbbCCCCdddd1234\nEEEEffffGGGG+/==\n-----END KEY-----",
}
#: Prints and writes what it was given, in every way that a program does.
LEAK: Final = r"""
import base64, json, os, sys, urllib.parse
secrets = {name: os.environ[name] for name in ("QUOTED", "FOREIGN", "LONG", "KEYFILE")}
def leak(out):
    for name, value in secrets.items():
        print(name, "is", value, file=out)
        for letter in value:
            out.write(letter)
            out.flush()
        print(file=out)
        print(json.dumps({name: value, "both": [value, json.dumps(value)]}), file=out)
        print(json.dumps({name: value}, ensure_ascii=False), repr(value), ascii(value), file=out)
        print(urllib.parse.quote(value), urllib.parse.quote_plus(value), file=out)
        print(base64.b64encode(b"user:" + value.encode()).decode(), file=out)
"""
WRITE: Final = r"""
home = os.path.expanduser("~")
traces = sys.argv[1]
os.makedirs(traces + "/deep", exist_ok=True)
for place in ("leak.txt", home + "/report.md", traces + "/deep/trace.jsonl", home + "/" + secrets["LONG"][:60]):
    with open(place, "w") as file:
        leak(file)
with open(traces + "/" + secrets["FOREIGN"], "w") as file:
    leak(file)
"""
FAIL: Final = """
leak(sys.stderr)
sys.exit("failed with " + " and ".join(secrets.values()))
"""
AGENT: Final = """
description = "Tells everybody."
run = '''
cat >~/leak.py <<'END'
PROGRAM
END
set -x
: "$QUOTED" "$FOREIGN" "$LONG" "$KEYFILE"
export -p
set +x
python3 -u ~/leak.py "${HOME%/home/user}/logs/agent"
'''
[env]
required = ["QUOTED", "FOREIGN", "LONG", "KEYFILE"]
secret = ["QUOTED", "FOREIGN", "LONG", "KEYFILE"]
[gather]
files = ["~/report.md", "~/[0-9]*"]
"""


def guises(value: str) -> set[bytes]:
    """Forms in which a value may stand in a file; its lines too, one of several lines is useless without the others."""
    lines = [line for line in value.split("\n") if len(line) > 20]
    whole = {
        value,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        quote(value),
        repr(value)[1:-1],
    }
    whole |= {shlex.quote(value)[1:-1], base64.b64encode(b"user:" + value.encode()).decode()[8:-8]}
    return {each.encode() for each in whole | set(lines)}


GUISES: Final = {guise for value in SECRETS.values() for guise in guises(value)}


def found_in(data: bytes) -> list[bytes]:
    return [guise for guise in GUISES if guise in data]


def leaks(folder: Path) -> list[tuple[str, bytes]]:
    """Every file below a folder with a secret in it, or in its name."""
    leaks = []
    for path in folder.rglob("*"):
        data = os.fsencode(path.relative_to(folder)) + b"\n" + (read(path) if path.is_file() else b"")
        leaks += [(str(path.relative_to(folder)), guise) for guise in found_in(data)]
    return leaks


class Witness:
    """Looks at every process of the machine again and again; an agent's own has a mark in its environment."""

    def __init__(self, *exempt: int) -> None:
        self.leaks: set[tuple[int, str, bytes]] = set()
        self.rounds = 0
        self._exempt = {os.getpid(), *exempt}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @contextmanager
    def watching(self) -> "Iterator[Witness]":
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            for process in Path("/proc").iterdir():
                if process.name.isdigit():
                    self._look_at(process)
            self.rounds += 1

    def _look_at(self, process: Path) -> None:
        environ = read(process / "environ")
        may_know = b"SWEEP_ATTEMPT=" in environ or int(process.name) in self._exempt
        files = ["cmdline", "comm"] + ([] if may_know else ["environ"])
        for name in files:
            self.leaks |= {(int(process.name), name, guise) for guise in found_in(read(process / name))}


def leaky(desk: "Desk", program: str) -> None:
    (desk.folder / "agents").mkdir(exist_ok=True)
    (desk.folder / "agents/leaky.toml").write_text(AGENT.replace("PROGRAM", program))
    if not (desk.folder / "mine").exists():
        write_scenario(desk.folder / "mine" / "one", solution="true\n")


def run(desk: "Desk", *words: str, environment: Mapping[str, str]) -> "Running":
    started = desk.start("run", "./mine", *words, environment=environment)
    witness = Witness(started.process.pid)
    with witness.watching():
        started.process.wait(120)
    assert witness.rounds > 3
    assert not witness.leaks
    assert not found_in((started.out + started.err).encode()), "what is on the screen is written, too"
    return started


def test_nothing_that_is_written_has_a_secret_in_it(desk: "Desk") -> None:
    """Log, patch, artifacts, traces, their names, results, journal, sweep.log, and the service's state."""
    leaky(desk, LEAK + WRITE + "leak(sys.stdout)\n" + FAIL)
    run(desk, "--agent", "leaky", "--name", "scored", environment=SECRETS)
    (result,) = desk.results("runs/scored")
    assert (result["outcome"], result["flags"]) == ("scored", ["agent_crashed", "secrets_masked"])
    files = result["files"]
    assert {"agent_log", "patch", "artifacts", "traces", "devbox_log"} <= files.keys()
    for name in ("agent_log", "patch", "devbox_log"):
        assert "****" in desk.log("runs/scored", result, name), name
    folder = desk.folder / "runs/scored"
    assert (folder / files["artifacts"]).parent.joinpath("artifacts/report.md").stat().st_size > 500
    assert leaks(desk.folder / "runs") == []


def test_an_agent_that_fails_with_a_secret_in_its_last_words_fails_without(desk: "Desk") -> None:
    leaky(desk, LEAK + FAIL)
    words = ("--agent", "leaky", "--name", "failed", "--on-agent-failure", "fail", "--json")
    started = run(desk, *words, environment=SECRETS)
    (result,) = desk.results("runs/failed")
    assert result["failure"]["class"] == "AgentCrashed"
    assert "failed with ****" in result["failure"]["message"]
    assert started.process.returncode == 1
    assert leaks(desk.folder / "runs") == []


def test_a_program_on_this_machine_leaks_as_little(desk: "Desk") -> None:
    """Variables from a file are secret, and are in the agent's environment only."""
    leaky(desk, "")
    (desk.folder / "mine.py").write_text(
        "import os, sys\n"
        "def agent(prompt, workspace):\n"
        "    value = os.environ['LONG']\n"
        "    for at in range(0, len(value), 7):\n"
        "        print(value[at:at + 7], end='', flush=True)\n"
        "    workspace.write('leak.txt', value.encode())\n"
        "    print(workspace.exec('cat leak.txt').stdout)\n"
        "    raise LookupError(value)\n"
    )
    (desk.folder / "keys.env").write_text(f"LONG={SECRETS['LONG']}\n")
    words = ("--agent", "./mine.py:agent", "--name", "host", "--env-file", "keys.env")
    started = desk.start("run", "./mine", *words)
    started.end()
    (result,) = desk.results("runs/host")
    assert result["flags"] == ["agent_crashed", "secrets_masked"]
    log = desk.log("runs/host", result)
    assert "*" * 200 in log
    assert "LookupError: ****" in log
    assert not found_in((started.out + started.err).encode())
    assert leaks(desk.folder / "runs") == []
