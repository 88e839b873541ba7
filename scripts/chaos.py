"""Random deaths under fault injection: what is lost, doubled or left when sweeps and their service are killed at any
moment, again and again, while the service misbehaves. Each sweep is resumed until it is finished; the same seed has the
same pauses and victims, though never quite the same moments.
"""

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.crash.witness import Result, carrying, read_results, remains, sweep_id, trial_of, write_benchmark

SWEEP: Final = [sys.executable, "-m", "orchestrator"]
AGENT: Final = """
install = 'mkdir -p $SWEEP_AGENT_PREFIX; sleep 2; touch $SWEEP_AGENT_PREFIX/installed'
run = 'echo begun; [ -e $SWEEP_AGENT_PREFIX/installed ] && echo worked >>worked; sleep 0.$((RANDOM % 10)); echo ended'
"""
SAID: Final = "begun\nended\n"
HOST_AGENT: Final = """
class Host:
    def __init__(self, prompt, workspace):
        self.workspace = workspace

    def run(self):
        print("begun", flush=True)
        self.workspace.exec("echo worked >>worked")
        print("ended", flush=True)
"""
FAULTS: Final = {
    "429": "probability = 0.02\nretry_after = 0.5",
    "500": "probability = 0.01",
    "503": "probability = 0.01",
    "late": "probability = 0.01\nseconds = 1",
    "drop": "probability = 0.02",
    "drop-mid-body": "probability = 0.01",
    "vanish": "probability = 0.002",
    "list-repeats": "probability = 0.1",
    "list-skips": "probability = 0.1",
    "slow-boot": "probability = 0.05\nseconds = 2",
    "boot-fails": "probability = 0.02",
    "dies-solving": "probability = 0.02\nseconds = 0.3",
    "dies-scoring": "probability = 0.02",
    "scorer-error": "probability = 0.03\nscorings = 1",
}
#: Who is killed, how often of a hundred times.
VICTIMS: Final = {"sweep": 65, "service": 25, "both": 10}
#: Seconds from the start of a sweep in which it resumes, and until which a kill comes at the latest.
RESUMING, LONGEST = 1.5, 7.0
#: Seconds without a new result, and without a kill, after which a sweep counts as hung.
HUNG: Final = 300.0
#: Seconds for what a sweep leaves behind to be gone.
LAST_RITES: Final = 20.0
REPORT_EVERY: Final = 10.0
#: Unexpected ends of sweeps, after which one is not started again.
PATIENCE: Final = 10
#: What must be zero in the end.
FATAL: Final = (
    "results lost",
    "results doubled",
    "devboxes leaked",
    "runs left running",
    "agents run twice in one devbox",
    "wrong scores",
    "wrong logs",
    "wrong patches",
    "processes left",
    "sweeps hung",
    "unexpected ends",
)


@dataclass(slots=True)
class Chaos:
    """One run of this script, in a folder of its own."""

    folder: Path
    seed: int
    scenarios: int
    devboxes: int
    deadline: float
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    port: int = 0
    service: "subprocess.Popen[bytes] | None" = None
    sweep: "subprocess.Popen[bytes] | None" = None
    reported_at: float = 0.0
    dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)  # noqa: S311 - it is to be repeatable
        write_benchmark(
            self.folder / "shelf" / "tiny", tuple(f"scenario-{number:03}" for number in range(self.scenarios))
        )
        (self.folder / "worker.toml").write_text(AGENT)
        (self.folder / "host.py").write_text(HOST_AGENT)
        rules = "".join(f'\n[[rules]]\nfault = "{fault}"\n{numbers}\n' for fault, numbers in FAULTS.items())
        (self.folder / "chaos.toml").write_text(f"seed = {self.seed}\n{rules}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def spawn(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start `sweep` with these words, out of reach of a Ctrl-C that is meant for us."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}
        environment |= {"RUNLOOP_BASE_URL": f"http://127.0.0.1:{self.port}", "RUNLOOP_API_KEY": self.token}
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [*SWEEP, *words], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def serve(self) -> None:
        words = ["--state", str(self.state), "--benchmarks", str(self.folder / "shelf" / "tiny"), "--token", self.token]
        words += ["--port", str(self.port), "--chaos", str(self.folder / "chaos.toml"), "--quiet"]
        self.service = self.spawn("serve", *words)

    def start(self, name: str) -> None:
        agents = ["--agent", str(self.folder / "worker.toml"), "--agent", f"{self.folder / 'host.py'}:Host"]
        options = ["--devboxes", str(self.devboxes), "--attempts", "20", "--same-failures", "1000", "--name", name]
        self.sweep = self.spawn("run", "tiny", *agents, *options)

    def run(self) -> None:
        """Sweep after sweep, until the time is up and the last one is finished."""
        self.serve()
        number = 0
        while time.monotonic() < self.deadline:
            number += 1
            self.run_one(f"sweep-{number}")

    def run_one(self, name: str) -> None:
        """Run a sweep to its end through every kill that comes until then."""
        folder = self.folder / "runs" / name
        self.counts["sweeps"] += 1
        self.start(name)
        started, kill_at = time.monotonic(), self.next_kill()
        done, done_at = 0, time.monotonic()
        while self.sweep is not None:
            time.sleep(0.05)
            now = time.monotonic()
            status = self.sweep.poll()
            lines = count_lines(folder / "results.jsonl")
            if lines != done:
                done, done_at = lines, now
            self.report(name, done)
            if status in {0, 1} and done == 2 * self.scenarios:
                self.sweep = None
            elif status is not None:
                self.counts["unexpected ends"] += 1
                self.notes.append(f"{name} ended with {status} after {done} results; see run.log")
                self.sweep = None
                if self.counts["unexpected ends"] < PATIENCE:
                    self.start(name)
            elif kill_at < now < self.deadline:
                if self.kill(is_resuming=now - started < RESUMING) != "service":
                    self.counts["resumes"] += 1
                    self.start(name)
                started, kill_at, done_at = time.monotonic(), self.next_kill(), time.monotonic()
            elif now - done_at > HUNG:
                self.counts["sweeps hung"] += 1
                self.notes.append(f"{name} has no new result since {HUNG:g} s: {done} of {2 * self.scenarios}")
                end(self.sweep)
                self.sweep = None
        self.judge(folder)

    def next_kill(self) -> float:
        """When to kill next: in a third of the cases while the sweep resumes."""
        longest = RESUMING if self.dice.random() < 1 / 3 else LONGEST
        return time.monotonic() + self.dice.uniform(0, longest)

    def kill(self, *, is_resuming: bool) -> str:
        """Kill somebody, and start the service again if it was it; says who it was."""
        (victim,) = self.dice.choices(list(VICTIMS), list(VICTIMS.values()))
        self.counts["kills"] += 1
        self.counts[f"kills of {victim}"] += 1
        if victim != "service":
            self.counts["kills in a resume"] += is_resuming
            end(self.sweep)
            self.sweep = None
        if victim != "sweep":
            end(self.service)
            time.sleep(self.dice.uniform(0, 0.5))
            self.serve()
        return victim

    def judge(self, folder: Path) -> None:
        """Count what is wrong with a sweep that has ended, and what it left."""
        results = read_results(folder)
        trials = Counter(trial_of(result) for result in results)
        self.counts["trials"] += 2 * self.scenarios
        self.counts["attempts"] += sum(len(result["attempts"]) for result in results)
        self.counts["results doubled"] += sum(count - 1 for count in trials.values())
        self.counts["results lost"] += 2 * self.scenarios - len(trials)
        for result in results:
            self.judge_result(folder, result)
        wait_until(lambda: not remains(self.state, sweep_id(folder), "").alive)
        left = remains(self.state, sweep_id(folder), "").alive
        self.counts["devboxes leaked"] += sum(each.startswith("dbx") for each in left)
        self.counts["runs left running"] += sum(not each.startswith("dbx") for each in left)
        wait_until(lambda: not self.processes())
        self.counts["processes left"] += len(self.processes())
        self.notes += left + self.processes()

    def judge_result(self, folder: Path, result: Result) -> None:
        if result["outcome"] != "scored":
            self.counts["trials given up"] += 1
            self.notes.append(f"given up: {trial_of(result)}: {result['failure']}")
            return
        files = {name: folder / path for name, path in result["files"].items()}
        worked = files["scorer_tests"].read_text() if "scorer_tests" in files else "no log of the scorer"
        self.counts["agents run twice in one devbox"] += "worked worked" in " ".join(worked.split())
        self.counts["wrong scores"] += result["score"] != 1.0
        if result["score"] != 1.0:
            self.notes.append(f"{folder.name}: {trial_of(result)} scored {result['score']} for {worked!r}")
        log = files["agent_log"]
        if not log.exists() or log.read_text() != SAID:
            is_known = "log_incomplete" in result["flags"] or executions(folder, result) > 1
            self.counts["logs of vanished executions" if is_known else "wrong logs"] += 1
            self.notes.append(f"another log than expected: {log}")
        patch = files["patch"].read_text() if "patch" in files else ""
        if patch.splitlines().count("+worked") != 1:
            is_said = not {"gather_incomplete", "no_patch"}.isdisjoint(result["flags"])
            self.counts["patches said to be missing" if is_said else "wrong patches"] += 1
            self.notes.append(f"no patch as expected: {trial_of(result)}, {result['flags']}: {patch!r}")

    def processes(self) -> list[str]:
        """The command lines of all we have started, directly or not, but of the service."""
        found = carrying(str(self.folder))
        return [words for pid, words in found.items() if self.service is None or pid != self.service.pid]

    def report(self, name: str, done: int) -> None:
        if time.monotonic() - self.reported_at < REPORT_EVERY:
            return
        self.reported_at = time.monotonic()
        kills = ", ".join(f"{victim} {self.counts[f'kills of {victim}']}" for victim in VICTIMS)
        left = max(0, int(self.deadline - self.reported_at))
        print(
            f"{left:4} s left · {name} {done}/{2 * self.scenarios} · {self.counts['kills']} kills ({kills})", flush=True
        )

    def close(self) -> None:
        """Leave nothing of ours running."""
        end(self.sweep)
        if self.service is not None and self.service.poll() is None:
            self.service.terminate()
            try:
                self.service.wait(LAST_RITES)
            except subprocess.TimeoutExpired:
                self.notes.append("the service does not end")
        for pid in carrying(str(self.folder)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def summary(self) -> bool:
        """Say what happened; whether all is well."""
        for note in self.notes:
            print(f"  {note}")
        told = ("sweeps", "trials", "attempts", "kills", "kills of sweep", "kills of service", "kills of both",
                "kills in a resume", "resumes", "trials given up", "logs of vanished executions",
                "patches said to be missing")  # fmt: skip
        print(f"seed {self.seed}: " + ", ".join(f"{what} {self.counts[what]}" for what in told))
        print(", ".join(f"{what} {self.counts[what]}" for what in FATAL), flush=True)
        return not any(self.counts[what] for what in FATAL)


def executions(folder: Path, result: Result) -> int:
    """How often the agent of a result's last attempt was started, or waited for anew, by the journal."""
    started = {
        "event": "execution.started",
        "trial": f"{result['scenario']}/{result['arm']}/{result['trial']}",
        "attempt": result["attempts"][-1]["attempt"],
    }
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_bytes().splitlines()]
    return sum(event.items() >= started.items() for event in events if event["event"] == "execution.started")


def end(process: "subprocess.Popen[bytes] | None") -> None:
    if process is not None:
        process.kill()
        process.wait()


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LAST_RITES
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="after which nobody is killed any more")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10_000))
    parser.add_argument("--scenarios", type=int, default=100, help="each with two agents")
    parser.add_argument("--devboxes", type=int, default=8)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sweep-chaos-"))
    deadline = time.monotonic() + 60 * given.minutes
    print(f"seed {given.seed}, in {folder}", flush=True)
    chaos, is_stopped = Chaos(folder, given.seed, given.scenarios, given.devboxes, deadline), False
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)
    try:
        chaos.run()
    except KeyboardInterrupt:
        is_stopped = True
    finally:
        chaos.close()
    is_well = chaos.summary()
    if is_well:
        shutil.rmtree(folder)
    return 130 if is_stopped else 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
