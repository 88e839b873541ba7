"""Weather for a sweep and its service, by seed: deaths, slow disks, strangers that answer, processes that stand still,
readers that stop, folders that go away. Each kind is a method of `Weather` that lets it come, and says what ends it.
"""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from tests.processes import carrying
from tests.waiting import wait_until

from . import slow_disk
from .proxy import WRONG, Proxy
from .screen import Screen
from .witness import read_results

PLAIN: Final = ("-m", "orchestrator")
ON_SLOW_DISK: Final = (str(Path(slow_disk.__file__)),)
BENCHMARK: Final = "tiny"
#: Each arm's part in its scores; its agent writes its name, once, where it works.
ARMS: Final = {"worker": 1, "Host": 2}
SAID: Final = "begun\nended\n"
_AGENT: Final = """
install = 'mkdir -p $SWEEP_AGENT_PREFIX; sleep INSTALL; touch $SWEEP_AGENT_PREFIX/installed'
run = '''
echo begun
[ -e $SWEEP_AGENT_PREFIX/installed ] && echo worker >>worked
sleep 0.$((RANDOM % 10))
echo whole >>steps
echo ended
'''
"""
_HOST_AGENT: Final = """
class Host:
    def __init__(self, prompt, workspace):
        self.workspace = workspace

    def run(self):
        print("begun", flush=True)
        assert self.workspace.exec("echo Host >>worked; sleep 0.3; echo whole >>steps").exit_status == 0
        print("ended", flush=True)
"""
_TEST: Final = """
cat /app/worked /app/steps
case "$(cat /app/worked /app/steps | tr '\\n' ' ')" in
    "worker whole ") arm=1 ;;
    "Host whole ") arm=2 ;;
    *) echo 0 >/logs/verifier/reward.txt; exit ;;
esac
awk "BEGIN { print ($(cat /app/number) * 10 + $arm) / 100000 }" >/logs/verifier/reward.txt
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
#: Seconds for each stage but `solve`: a process may stand still for longer.
LIMITS: Final = {"start": 15, "boot": 20, "prepare": 20, "gather": 15, "score": 20, "release": 15}
#: Who is killed, how often of a hundred times.
VICTIMS: Final = {"sweep": 65, "service": 25, "both": 10}
#: Who reads a sweep's output: the last is a program behind a pipe.
READERS: Final = ("terminal", "pipe", "json")
#: Seconds that a sync takes more.
SYNCS: Final = (0.005, 0.06, 0.3, 5.0)
#: Of the requests that pass while strangers answer.
STRANGE: Final = 0.05
#: Seconds for something that a signal or a start brings about.
SOON: Final = 20.0

#: What ends a weather that lasts: in so many seconds, by a call. None for what is over at once.
Lasting = tuple[float, Callable[[], None]] | None


def score_of(scenario: str, arm: str) -> float:
    """The score of the arm's work, done once and to its end: another number for each scenario."""
    return (int(scenario.rpartition("-")[2]) * 10 + ARMS[arm]) / 100_000


@dataclass(slots=True)
class World:
    """A folder with a benchmark and two agents, a service in it behind a proxy, and one sweep after the other.

    A sweep is on the service that was started here or, where `is_embedded`, on one that it starts for itself.
    """

    folder: Path
    seed: int
    scenarios: int
    devboxes: int
    has_faults: bool = True
    #: Seconds that the installation of an agent takes.
    install: float = 2.0
    dice: random.Random = field(init=False)
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    port: int = 0
    is_embedded: bool = False
    name: str = ""
    service: "subprocess.Popen[bytes] | None" = None
    sweep: "subprocess.Popen[bytes] | None" = None
    screen: Screen | None = None
    preloaded: dict[str, str] = field(default_factory=dict)
    strange: float = 0.0
    proxy: Proxy = field(init=False)
    #: Who answers in the endpoint's place: its choice is by itself, because it is made in another thread.
    stranger: random.Random = field(init=False)
    closing: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.dice, self.stranger = random.Random(self.seed), random.Random(self.seed)
        for number in range(1, self.scenarios + 1):
            _write_scenario(self.benchmark / f"scenario-{number:03}", number)
        (self.folder / "worker.toml").write_text(_AGENT.replace("INSTALL", f"{self.install:g}"))
        (self.folder / "host.py").write_text(_HOST_AGENT)
        faults = FAULTS if self.has_faults else {}
        rules = "".join(f'\n[[rules]]\nfault = "{fault}"\n{numbers}\n' for fault, numbers in faults.items())
        (self.folder / "chaos.toml").write_text(f"seed = {self.seed}\n{rules}")
        slow_disk.tell(self.journal_syncs, 0)
        slow_disk.tell(self.store_syncs, 0)
        self.preloaded = slow_disk.preload(self.folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.proxy = Proxy(self.port, self._answer)
        self.closing.enter_context(self.proxy.open())

    @property
    def benchmark(self) -> Path:
        return self.folder / "shelf" / BENCHMARK

    @property
    def away(self) -> Path:
        """The path of the benchmark while it is away."""
        return self.folder / "elsewhere"

    def put_benchmark_back(self) -> None:
        if self.away.exists():
            self.away.rename(self.benchmark)

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def run_folder(self) -> Path:
        return self.runs / self.name

    @property
    def journal_syncs(self) -> Path:
        return self.folder / "journal-syncs"

    @property
    def store_syncs(self) -> Path:
        return self.folder / "store-syncs"

    @property
    def state(self) -> Path:
        """The state folder of the service that the sweep uses; it may be missing."""
        if not self.is_embedded:
            return self.folder / "state"
        services = self.runs / ".service"
        return next(services.iterdir(), services / "none") if services.exists() else services / "none"

    @property
    def trials(self) -> int:
        return len(ARMS) * self.scenarios

    def _answer(self, _request: str) -> bytes | None:
        if self.stranger.random() >= self.strange:
            return None
        return self.stranger.choice(list(WRONG.values()))

    def spawn(
        self, *words: str, out: int | None = None, environment: dict[str, str], program: tuple[str, ...] = PLAIN
    ) -> "subprocess.Popen[bytes]":
        """Start `sweep` with these words, out of reach of a Ctrl-C that is meant for us."""
        common = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}
        common["PYTHONPATH"] = str(Path(__file__).parents[2])
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *program, *words], cwd=self.folder, env=common | environment,
                stdin=subprocess.DEVNULL, stdout=log if out is None else out, stderr=log, start_new_session=True,
            )  # fmt: skip

    def serve(self) -> None:
        """Start the service that sweeps use which are not embedded."""
        self.put_benchmark_back()
        words = ["--state", str(self.folder / "state"), "--benchmarks", str(self.benchmark), "--token", self.token]
        words += ["--port", str(self.port), "--chaos", str(self.folder / "chaos.toml"), "--quiet"]
        environment = {slow_disk.VARIABLE: str(self.store_syncs), **self.preloaded}
        self.service = self.spawn("serve", *words, environment=environment)

    def start(self, *words: str, reader: str | None = None) -> None:
        """Start the sweep `name`, or go on with it, with a reader of some kind."""
        self.put_benchmark_back()
        agents = ["--agent", str(self.folder / "worker.toml"), "--agent", f"{self.folder / 'host.py'}:Host"]
        options = ["--devboxes", str(self.devboxes), "--attempts", "20", "--same-failures", "1000", "--name", self.name]
        for stage, seconds in LIMITS.items():
            options += [f"--timeout-{stage}", str(seconds)]
        environment = {slow_disk.VARIABLE: str(self.journal_syncs), "TERM": "xterm", "COLUMNS": "100"}
        if self.is_embedded:
            what = str(self.benchmark)
        else:
            what = BENCHMARK
            environment |= {"RUNLOOP_BASE_URL": self.proxy.url, "RUNLOOP_API_KEY": self.token}
        reader = reader or self.dice.choice(READERS)
        self.screen = Screen(self.folder / "screen.log", is_terminal=reader == "terminal")
        words = ("run", what, *agents, *options, *words, *["--json"] * (reader == "json"))
        self.sweep = self.spawn(*words, out=self.screen.entry, environment=environment, program=ON_SLOW_DISK)

    def end_sweep(self) -> None:
        """Kill the sweep, or be done with one that has ended."""
        if self.sweep is not None:
            self.sweep.kill()
            self.sweep.wait()
        if self.screen is not None:
            self.screen.close()
        self.sweep = self.screen = None

    def service_pid(self) -> int | None:
        """The process that serves the sweep now, if one does."""
        if not self.is_embedded:
            return self.service.pid if self.service is not None and self.service.poll() is None else None
        with suppress(OSError, ValueError, KeyError):
            pid = int(orjson.loads((self.state / "address.json").read_bytes())["pid"])
            if b"orchestrator" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def end_service(self) -> None:
        """Kill the service that the sweep uses. None can be started without its benchmark."""
        self.put_benchmark_back()
        pid = self.service_pid()
        if pid is not None:
            send(pid, signal.SIGKILL)
            with suppress(AssertionError):
                wait_until(lambda: not _lives(pid), "it outlives SIGKILL", seconds=SOON)
        if self.service is not None and not self.is_embedded:
            self.service.wait()

    def lose_state(self) -> None:
        """Take away all that the service knows, whether it lives or not."""
        shutil.rmtree(self.state, ignore_errors=True)

    def serve_again(self) -> None:
        """Start the service again that somebody would start by hand; the other is the sweep's own affair."""
        if not self.is_embedded:
            self.serve()

    @property
    def journal(self) -> bytes:
        path = self.run_folder / "journal.jsonl"
        return path.read_bytes() if path.exists() else b""

    @property
    def done(self) -> int:
        """Number of trials that have a result."""
        path = self.run_folder / "results.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def expected_status(self) -> int | None:
        """The exit status that the sweep must end with; None, which no status is, while trials are pending."""
        if self.done < self.trials:
            return None
        results = read_results(self.run_folder)
        sound = {result["arm"] for result in results if not result["flags"]}
        return int(any(result["outcome"] != "scored" or result["arm"] not in sound for result in results))

    @property
    def said(self) -> str:
        """Standard error of the sweeps."""
        log = self.folder / "run.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def is_under_way(self) -> bool:
        """Tell if there is a sweep that has its service, and has opened its journal."""
        return self.service_pid() is not None and self.has_opened()

    def has_opened(self) -> bool:
        """Tell if the sweep, which may have ended, has opened its journal."""
        return self.sweep is not None and b'"pid":%d}' % self.sweep.pid in self.journal

    def processes(self) -> list[str]:
        """The command lines of all that was started here, directly or not, but of the service."""
        found = carrying(str(self.folder))
        return [words for pid, words in found.items() if self.service is None or pid != self.service.pid]

    def close(self) -> list[str]:
        """Leave nothing of ours running; what did not end as it should."""
        self.end_sweep()
        notes = []
        if self.service is not None and self.service.poll() is None:
            self.service.terminate()
            try:
                self.service.wait(SOON)
            except subprocess.TimeoutExpired:
                notes.append("the service does not end")
        for pid in carrying(str(self.folder)):
            send(pid, signal.SIGKILL)
        self.closing.close()
        return notes


def _write_scenario(folder: Path, number: int) -> None:
    files = {
        "task.toml": 'version = "1.0"\n\n[agent]\ntimeout_sec = 60.0\n[environment]\nallow_internet = false\n',
        "instruction.md": "Work.\n",
        "environment/number": f"{number}\n",
        "solution/solve.sh": "echo worker >>worked; echo whole >>steps\n",
        "tests/test.sh": _TEST,
    }
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def send(pid: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, what)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass(slots=True)
class Weather:
    """Lets weather of some kinds come over a world, and go."""

    world: World
    counts: Counter[str]
    #: When what has come goes, in seconds of the monotonic clock, and what ends it; by kind.
    lasting: dict[str, tuple[float, Callable[[], None]]] = field(default_factory=dict)

    @property
    def dice(self) -> random.Random:
        return self.world.dice

    def come(self, kinds: Sequence[str]) -> None:
        """Let one of these kinds come, of which none comes twice at once.

        Some end the sweep: whoever drives the world sees that, and starts it again.
        """
        if not (absent := [kind for kind in kinds if kind not in self.lasting]):
            return
        (kind,) = self.dice.choices(absent, [SHARES[kind] for kind in absent])
        self.counts[kind] += 1
        came = KINDS[kind](self)
        if came is not None:
            self.lasting[kind] = (time.monotonic() + came[0], came[1])

    def pass_by(self, now: float) -> None:
        """Let go what has lasted long enough."""
        for kind in [kind for kind, (until, _) in self.lasting.items() if until <= now]:
            _, end = self.lasting.pop(kind)
            end()

    def clear(self) -> None:
        self.pass_by(float("inf"))

    def _tell(self, what: str) -> None:
        self.counts[what] += 1

    def deaths(self) -> Lasting:
        """Kill somebody, and start the service again if it was it."""
        (victim,) = self.dice.choices(list(VICTIMS), list(VICTIMS.values()))
        self._tell(f"deaths of {victim}")
        if victim != "service":
            self.world.end_sweep()
        if victim != "sweep":
            self.world.end_service()
            time.sleep(self.dice.uniform(0, 0.5))
            self.world.serve_again()
        return None

    def slow_disk(self) -> Lasting:
        """Let syncs of the journal, of the service's database or of both take longer."""
        seconds = self.dice.choice(SYNCS)
        where = [self.world.journal_syncs, self.world.store_syncs]
        disks = self.dice.choice([where[:1], where[1:], where])
        for disk in disks:
            slow_disk.tell(disk, seconds)
        self._tell(f"syncs of {seconds:g} s")

        def end() -> None:
            for disk in disks:
                slow_disk.tell(disk, 0)

        return (20.0 if seconds >= 1 else self.dice.uniform(4, 12)), end

    def wrong_answers(self) -> Lasting:
        """Let strangers answer some requests, or all of them."""
        is_portal = self.dice.random() < 0.25
        self._tell("captive portals" if is_portal else "strangers")
        self.world.strange = 1.0 if is_portal else STRANGE

        def end() -> None:
            self.world.strange = 0.0

        return (self.dice.uniform(2, 8) if is_portal else self.dice.uniform(5, 15)), end

    def standstills(self) -> Lasting:
        """Stop the sweep or the service, often for longer than a stage may take."""
        victim = self.dice.choice(["sweep", "service"])
        pid = self.world.service_pid() if victim == "service" else self.world.sweep and self.world.sweep.pid
        self._tell(f"standstills of {victim}")
        if not pid:
            return None
        send(pid, signal.SIGSTOP)
        return self.dice.uniform(3, 25), lambda: send(pid, signal.SIGCONT)

    def deaf_readers(self) -> Lasting:
        """Let the reader of the sweep's output stop for a while, or go away."""
        screen = self.world.screen
        if screen is None or screen.is_gone:
            return None
        if self.dice.random() < 0.3:
            self._tell("readers gone")
            screen.go_away()
            return None
        self._tell("readers that stop")
        screen.stop()
        return self.dice.uniform(3, 15), screen.go_on

    def lost_folders(self) -> Lasting:
        """Move the benchmark away for a while, or take the service's memory away."""
        how = self.dice.choice(["benchmark away", "state gone at rest", "state gone after a death", "state gone"])
        self._tell(how)
        if how == "benchmark away":
            return self._lose_benchmark()
        if how == "state gone at rest":
            self.world.end_sweep()
        if how != "state gone":
            self.world.end_service()
        self.world.lose_state()
        if how != "state gone":
            self.world.serve_again()
            return None
        return self.dice.uniform(2, 8), self._replace_service

    def _lose_benchmark(self) -> Lasting:
        if not self.world.is_under_way():  # whoever starts needs it
            return None
        self.world.benchmark.rename(self.world.away)
        return self.dice.uniform(2, 8), self.world.put_benchmark_back

    def _replace_service(self) -> None:
        """Restart a service without its folder, as a person would, if it has not ended by itself."""
        if not self.world.is_embedded:
            self.world.end_service()
            self.world.serve()


#: Each kind of weather, by name.
KINDS: Final[dict[str, Callable[[Weather], Lasting]]] = {
    "deaths": Weather.deaths,
    "slow-disk": Weather.slow_disk,
    "wrong-answers": Weather.wrong_answers,
    "standstills": Weather.standstills,
    "deaf-readers": Weather.deaf_readers,
    "lost-folders": Weather.lost_folders,
}
#: What needs somebody between a sweep and its service, which embedded ones have not.
BETWEEN: Final = frozenset({"wrong-answers"})
#: What a person who starts a sweep is told of at once, and tries again.
MET_AT_START: Final = frozenset({"wrong-answers", "standstills"})
#: How often each comes, of a hundred times.
SHARES: Final = {
    "deaths": 45, "slow-disk": 15, "wrong-answers": 13, "standstills": 10, "deaf-readers": 9, "lost-folders": 8
}  # fmt: skip
