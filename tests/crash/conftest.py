"""A service, a benchmark and a place where sweeps are run and killed; see `dying.py` for how and `witness.py` for what
is looked at afterwards.
"""

import json
import os
import random
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.processes import carrying
from tests.waiting import wait_until

from .judge import Judge
from .weather import World
from .witness import WORK, Result, lasting, read_results, remains, sweep_id, trial_of, write_benchmark, write_stepped

DYING: Final = Path(__file__).with_name("dying.py")
#: Seconds for one run of a sweep that takes one.
PATIENCE: Final = 120.0
#: Seconds for what a sweep leaves behind to be gone.
LAST_RITES: Final = 15.0
TOKEN: Final = "a-key-for-our-tests"
BENCHMARK: Final = "tiny"
STEPPED: Final = "stepped"
#: A variable that the agent needs and has of the service, or of the sweep that starts one for itself.
KEY: Final = {"MODEL_KEY": "a-key-for-a-model"}
#: Installs something, then says one word, does its work with its key, and a moment later says another.
AGENT: Final = f"""
install = "mkdir -p $SWEEP_AGENT_PREFIX; echo installed >$SWEEP_AGENT_PREFIX/installed"
run = '''
cat $HOME/.agent/installed
[ "$MODEL_KEY" = {KEY["MODEL_KEY"]} ] && {WORK}
echo report >$HOME/report
sleep 0.1
echo done
'''
env = {{ required = ["MODEL_KEY"], secret = ["MODEL_KEY"] }}
network = {{ hosts = ["model.invalid"] }}
gather = {{ files = ["~/report"] }}
"""
SAID: Final = "installed\ndone\n"
#: Can never be installed.
BROKEN_AGENT: Final = 'install = "exit 1"\nrun = "true"\n'
#: Works in its devbox from this host.
HOST_AGENT: Final = f"""
class Host:
    def __init__(self, prompt, workspace):
        self.workspace = workspace

    def run(self):
        assert self.workspace.exec({WORK!r}).exit_status == 0
"""


def chosen(points: Sequence[str], count: int) -> list[str]:
    """A sample of so many, or all of them where CRASH_EVERY is set."""
    if os.environ.get("CRASH_EVERY"):
        return list(points)
    return random.Random(count).sample(points, count)


def name_of(point: str) -> str:
    """A point without the trial it is for."""
    name, _, when = point.rpartition(":")
    return f"{name.partition(' ')[0]}:{when}"


class Forks:
    """Runs commands one at a time, each in a fork of a process that has imported everything."""

    def __init__(self) -> None:
        command = [sys.executable, str(DYING), "--fork"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, words: Sequence[str], *, cwd: Path, env: dict[str, str], out: Path, points: Sequence[str]) -> int:
        """Start `sweep` with these words; returns the pid."""
        assert self._process.stdin is not None
        request = {"words": list(words), "cwd": str(cwd), "env": env, "out": str(out), "points": list(points)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer(PATIENCE)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit status of what was started, -9 if it was killed. Raises TimeoutError."""
        return self._answer(seconds)

    def _answer(self, seconds: float) -> int:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise TimeoutError
        return int(self._process.stdout.readline())

    def close(self) -> None:
        with self._process:  # closes its pipes, which ends it
            pass


@dataclass(slots=True, kw_only=True)
class Service:
    """`sweep serve` at a port of its own, in a fork; started again at the same place after it was killed."""

    state: Path
    benchmark: Path
    isolation: str
    is_foreign: bool = False
    forks: Forks = field(default_factory=Forks)
    pid: int = 0
    port: int = 0

    def start(self) -> None:
        words = ["serve", "--state", str(self.state), "--benchmarks", str(self.benchmark), "--token", TOKEN]
        words += ["--benchmarks", str(self.benchmark.with_name(STEPPED))]
        words += ["--port", str(self.port), "--isolation", self.isolation, "--quiet", *["--foreign"] * self.is_foreign]
        words += ["--secret", *KEY]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.state.parent), "LANG": "C.UTF-8", **KEY}
        out = self.state.with_suffix(".out")
        self.pid = self.forks.start(words, cwd=self.state.parent, env=environment, out=out, points=())
        address = self.state / "address.json"
        wait_until(
            lambda: address.exists() and json.loads(address.read_bytes())["pid"] == self.pid,
            out.read_text,
            seconds=PATIENCE,
        )
        self.port = int(self.url.rpartition(":")[2])

    @property
    def url(self) -> str:
        url: str = json.loads((self.state / "address.json").read_bytes())["url"]
        return url

    def again(self) -> None:
        """Wait until it has been killed, and start it again."""
        assert self.forks.wait() == -signal.SIGKILL
        self.start()

    def end(self) -> None:
        if self.pid:  # 0, which never came up, would be our own group
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
                self.forks.wait()
        self.forks.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A sweep: the words of its command, and what goes before: other words, and the point at which those are killed."""

    words: tuple[str, ...]
    before: tuple[str, ...] = ()
    killed_at: str = ""
    is_embedded: bool = False
    #: Whether the endpoint has no memory for keys: a command may be started twice, an agent by it only once.
    is_foreign: bool = False
    benchmark: str = BENCHMARK
    #: The times that an agent is run in the devbox of a trial: one for each step.
    steps: int = 1
    #: The stages in which a death costs the attempt.
    costly: tuple[str, ...] = ("prepare",)

    @property
    def words_of_agents(self) -> str:
        """Words in the command line of an agent in the devbox."""
        return "/.sweep/exec-" if "solve" in self.costly else "/.sweep/agent/run"

    def costs_attempt(self, point: str) -> bool:
        return any(stage in point for stage in self.costly)


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """A story in which no process dies: the points passed, and the facts that every other telling must share."""

    points: list[str]
    status: int
    results: list[Result]


@dataclass(slots=True, kw_only=True)
class Sweep:
    """One sweep in a folder of its own, run as often as it takes. Without a `service` it starts its own."""

    story: Story
    folder: Path
    cwd: Path
    benchmark: Path
    forks: Forks
    service: Service | None
    isolation: str
    log: list[str] = field(default_factory=list)

    @property
    def run_folder(self) -> Path:
        return self.folder / "runs" / "mine"

    @property
    def state(self) -> Path:
        if self.service is not None:
            return self.service.state
        (state,) = (self.folder / "runs" / ".service").iterdir()
        return state

    def start(self, points: Sequence[str] = (), victim: str = "sweep", words: Sequence[str] = ()) -> int:
        """Run the command, to be killed at the first of these points; returns its pid."""
        runs = self.folder / "runs"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "DYING_NOTES": str(self.folder / "notes"),
            "DYING_VICTIM": victim,
            "DYING_SERVICE": str((self.service.state if self.service else runs / ".service" / "*") / "lock"),
        }
        if self.service is not None:
            environment |= {"RUNLOOP_BASE_URL": self.service.url, "RUNLOOP_API_KEY": TOKEN}
            where = [self.story.benchmark]
        else:
            environment |= KEY
            where = [str(self.benchmark), "--isolation", self.isolation]
        command = ["run", *where, *(words or self.story.words), "--runs", str(runs), "--name", "mine"]
        (self.folder / "notes").unlink(missing_ok=True)
        out = self.folder / "out"
        out.write_bytes(b"")
        return self.forks.start(command, cwd=self.cwd, env=environment, out=out, points=points)

    def wait(self, pid: int) -> int:
        """The exit status; one that hangs is killed and fails the test."""
        try:
            status = self.forks.wait()
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            self.forks.wait()
            pytest.fail(f"still there after {PATIENCE:g} s: {self}")
        self.log.append(f"status {status} after {self.passed()[-1:]}")
        return status

    def run(self, points: Sequence[str] = (), victim: str = "sweep", words: Sequence[str] = ()) -> int:
        return self.wait(self.start(points, victim, words))

    def begin(self) -> None:
        """Run the command that goes before the story's own."""
        if self.story.before:
            self.run([self.story.killed_at], words=self.story.before)

    def passed(self) -> list[str]:
        """The points that the last process passed, without trials; it was killed at the first that was to kill it."""
        notes = self.folder / "notes"
        return [name_of(point) for point in notes.read_text().splitlines()] if notes.exists() else []

    def problems(self, known: Undisturbed, status: int, spoilt: int = 0) -> list[str]:
        """Faults found after the sweep has ended with `status`.

        An agent has run in one devbox for each trial, and in no more than `spoilt` others, once in each.
        """
        return list(self._problems(known, status, spoilt))

    def _problems(self, known: Undisturbed, status: int, spoilt: int) -> Iterator[str]:
        if status != known.status:
            yield f"exit status {status} instead of {known.status}"
        results = read_results(self.run_folder)
        trials = [trial_of(result) for result in results]
        if len(trials) != len(set(trials)):
            yield f"results doubled: {sorted(trials)}"
        if (kept := lasting(self.run_folder)) != known.results:
            yield f"results differ: {kept} instead of {known.results}"
        said = [self._said(result) for result in results]
        if any(words not in {SAID, ""} for words in said):
            yield f"agents' logs differ: {said}"
        left = remains(self.state, sweep_id(self.run_folder), self.story.words_of_agents)
        if left.alive:
            yield f"left on the service: {left.alive}"
        if any(times > self.story.steps for times in left.agents.values()) and not self.story.is_foreign:
            yield f"agents run twice in one devbox: {left.agents}"
        worked = sum(result["outcome"] == "scored" for result in results)
        if not worked <= len(left.agents) <= worked + spoilt:
            yield f"agents have run in {len(left.agents)} devboxes for {worked} trials"
        try:
            wait_until(lambda: not self.processes(), lambda: f"processes left: {self.processes()}", seconds=LAST_RITES)
        except AssertionError as error:
            yield str(error)

    def _said(self, result: Result) -> str:
        """Text of the agent's log; an agent that could not be installed has none."""
        log = self.run_folder / result["files"].get("agent_log", "none")
        return log.read_text() if log.exists() and result["outcome"] == "scored" else ""

    def processes(self) -> list[str]:
        """The command lines of what this sweep has started, and of what its service's devboxes have."""
        return [*carrying(str(self.folder)).values(), *carrying(str(self.state / "devboxes")).values()]

    def __str__(self) -> str:
        out = (self.folder / "out").read_text()
        journal = (self.run_folder / "journal.jsonl").read_text() if self.run_folder.exists() else ""
        return "\n".join([str(self.story), *self.log, "--- last output", out, "--- journal", journal])


@dataclass(slots=True)
class Ground:
    """The ground for sweeps: agents, a benchmark, and processes to fork from."""

    folder: Path
    isolation: str
    forks: Forks
    service: Service
    _foreign: Service | None = None
    _count: int = 0
    _known: dict[Story, Undisturbed] = field(default_factory=dict)

    @property
    def agent(self) -> tuple[str, ...]:
        return "--agent", str(self.folder / "worker.toml")

    @property
    def broken_agent(self) -> tuple[str, ...]:
        return "--agent", str(self.folder / "broken.toml"), "--attempts", "1"

    @property
    def host_agent(self) -> tuple[str, ...]:
        return "--agent", f"{self.folder / 'host.py'}:Host"

    def sweep(self, story: Story) -> Sweep:
        """A sweep that has not begun, on the shared service or on one that it starts for itself."""
        self._count += 1
        folder = self.folder / f"sweep-{self._count}"
        folder.mkdir()
        return Sweep(
            story=story,
            folder=folder,
            cwd=self.folder / "cwd",
            benchmark=self.folder / story.benchmark,
            forks=self.forks,
            service=None if story.is_embedded else self.foreign if story.is_foreign else self.service,
            isolation=self.isolation,
        )

    @property
    def foreign(self) -> Service:
        """A service that behaves like an endpoint which is not ours; started when it is needed."""
        if self._foreign is None:
            state, benchmark = self.folder / "foreign", self.folder / BENCHMARK
            self._foreign = Service(state=state, benchmark=benchmark, isolation=self.isolation, is_foreign=True)
            self._foreign.start()
        return self._foreign

    def close(self) -> None:
        self.forks.close()
        for service in filter(None, (self.service, self._foreign)):
            service.end()
        for pid in carrying(str(self.folder)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def undisturbed(self, story: Story) -> Undisturbed:
        """Tell a story in which nobody dies but who must; once."""
        if story not in self._known:
            sweep = self.sweep(story)
            sweep.begin()
            status = sweep.run()
            known = Undisturbed(points=sweep.passed(), status=status, results=lasting(sweep.run_folder))
            assert sweep.problems(known, status) == [], str(sweep)
            self._known[story] = known
        return self._known[story]


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory, isolation: str, sandboxes: None) -> Iterator[Ground]:
    """Scorers count at a place of the devbox's own: so it has to be a sandbox."""
    folder = tmp_path_factory.mktemp("ground")
    (folder / "cwd").mkdir()
    (folder / "worker.toml").write_text(AGENT)
    (folder / "broken.toml").write_text(BROKEN_AGENT)
    (folder / "host.py").write_text(HOST_AGENT)
    write_benchmark(folder / BENCHMARK, ("ant", "bee"))
    write_stepped(folder / STEPPED)
    ground = Ground(
        folder, isolation, Forks(), Service(state=folder / "state", benchmark=folder / BENCHMARK, isolation=isolation)
    )
    try:
        ground.service.start()
        yield ground
    finally:
        ground.close()


@pytest.fixture
def night(tmp_path: Path, sandboxes: None) -> Iterator["Night"]:
    """A small world whose service does as it should: what goes wrong is the weather."""
    world = World(tmp_path, seed=1, scenarios=2, devboxes=4, has_faults=False, install=0.2)
    night = Night(world)
    try:
        world.serve()
        yield night
    finally:
        notes = world.close()
    assert notes == []


@dataclass(slots=True)
class Night:
    """One sweep in a world, with what must be so when it has ended."""

    world: World

    def start(self, *words: str, is_embedded: bool = False, reader: str = "json") -> None:
        self.world.name, self.world.is_embedded = "mine", is_embedded
        self.world.start(*words, reader=reader)

    def comes_to(self, stage: str) -> None:
        """Wait until a trial has entered this stage."""
        line = b'"stage":"%b"' % stage.encode()
        self.wait(lambda: line in self.world.journal, stage)

    def wait(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for something that the sweep does; one that ends before fails the test."""

        def is_over() -> bool:
            return holds() or self.world.sweep is None or self.world.sweep.poll() is not None

        wait_until(is_over, lambda: f"no {what} in {PATIENCE:g} s: {self}", seconds=PATIENCE)
        assert holds(), f"ended before {what}: {self}"

    def ends_well(self) -> None:
        """Wait for the end: every trial is scored, and right, with its evidence, and nothing is left."""
        assert self.world.sweep is not None
        try:
            status = self.world.sweep.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still there after {PATIENCE:g} s: {self}")
        self.world.end_sweep()
        judge = Judge(Counter())
        judge.look_at(self.world)
        assert judge.is_content, f"{judge.notes}\n{self}"
        assert status == 0, str(self)

    def __str__(self) -> str:
        return f"--- said\n{self.world.said}--- journal\n{self.world.journal.decode()}"
