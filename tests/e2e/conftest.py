"""The real command, typed in an empty folder with an empty home; whatever it starts is gone when the test is."""

import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import pytest

from tests.processes import carrying
from tests.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]
#: Seconds for one command: machines are slow when they are busy, and waiting for what comes at once costs nothing.
PATIENCE: Final = 120.0
#: Seconds for what ends in bounded time to end.
LAST_RITES: Final = 15.0
#: An environment variable that everything a desk starts inherits, down to the embedded service and host agents.
MARK: Final = "E2E_DESK"
KEY: Final = "a-key-for-our-tests"
STATEMENT: Final = "Make a file called done.\n"
#: A task that does not say has the internet, as Harbor has it.
CLOSED: Final = "[environment]\nallow_internet = false\n"
#: Quotes of all kinds, variables, substitutions, blanks, what ends a here-document, and no newline at the end.
NASTY: Final = """It's "quoted" and 'quoted', costs $HOME, ${x:-1} and $(id) `id`;
100 %s \\n\\ ~ * ? [a] {b,c} !! # & | < >

\t  tabs, trailing blanks  \r
---
EOF
äöü ß 漢字 🙂 \"""end\"""\\"""


def json_lines(data: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in data.splitlines()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended, and its output."""

    command: str
    status: int
    out: str
    err: str

    @property
    def json(self) -> list[dict[str, Any]]:
        """Standard output, which must be JSON lines only."""
        return json_lines(self.out.encode())

    @property
    def folder(self) -> str:
        """The run folder that the end of a plain run names, relative to where the command was typed."""
        line = next(line for line in self.out.splitlines() if line.startswith("Results:"))
        return str(Path(line.removeprefix("Results:").strip()).parent)

    def __str__(self) -> str:
        return f"$ {self.command}\n{self.out}\n--- stderr\n{self.err}\n--- status {self.status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A command under way, in a process group of its own, as a terminal starts it."""

    process: "subprocess.Popen[bytes]"
    command: str
    files: Path

    @property
    def out(self) -> str:
        return self.files.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        return self.files.with_suffix(".err").read_text()

    def wait_for(self, words: str) -> None:
        """Until it has said this on either stream."""
        wait_until(lambda: words in self.out + self.err or self.process.poll() is not None, self, seconds=PATIENCE)
        assert words in self.out + self.err, str(self)

    def interrupt(self) -> None:
        """Send the whole process group a signal, as Ctrl-C does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def end(self, seconds: float = PATIENCE) -> Ended:
        """Wait for its end; it must come by itself, and without a traceback."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"still there after {seconds:g} s: {self}")
        ended = Ended(command=self.command, status=status, out=self.out, err=self.err)
        assert "Traceback" not in ended.out + ended.err, str(ended)
        return ended

    def __str__(self) -> str:
        return f"$ {self.command}\n{self.out}\n--- stderr\n{self.err}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service that several tests share, and questions to it."""

    url: str
    http: httpx.Client

    @property
    def environment(self) -> dict[str, str]:
        return {"RUNLOOP_BASE_URL": self.url, "RUNLOOP_API_KEY": KEY}

    def devboxes(self) -> list[dict[str, Any]]:
        return self._list("devboxes", "devboxes")

    def benchmark_runs(self) -> list[dict[str, Any]]:
        return self._list("benchmark_runs", "runs")

    def alive(self) -> list[str]:
        """Devboxes and scenario runs that are not over."""
        over = {"shutdown", "failure", "completed", "canceled", "failed", "timeout"}
        devboxes = [devbox["id"] for devbox in self.devboxes() if devbox["status"] not in over]
        runs = [run["id"] for run in self._list("scenarios/runs", "runs") if run["state"] not in over]
        return devboxes + runs

    def _list(self, path: str, key: str) -> list[dict[str, Any]]:
        answer = self.http.get(f"/v1/{path}", params={"limit": 5000})
        answer.raise_for_status()
        items: list[dict[str, Any]] = answer.json()[key]
        return items


@dataclass(slots=True, kw_only=True)
class Desk:
    """An empty folder and an empty home, where somebody types `sweep`."""

    folder: Path
    home: Path
    isolation: str
    service: Service | None = None
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    _started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Nothing of the tester's but PATH, and no registry that is elsewhere."""
        own = {"HOME": str(self.home), "LANG": "C.UTF-8", "SWEEP_REGISTRIES": str(self.home.parent / "registry.json")}
        return {"PATH": os.environ["PATH"], **own, MARK: self.mark, **more}

    def start(self, *words: str, environment: Mapping[str, str] | None = None, out: int | None = None) -> Running:
        """Type `sweep` and these words; `out` is a file descriptor to have its standard output."""
        more = dict(environment or {})
        if self.service is not None:
            more = self.service.environment | more
        elif self.isolation != "local" and words[0] in {"run", "check", "serve", "scenario", "benchmarks"}:
            words = (*words, "--isolation", self.isolation)
        return self.spawn([sys.executable, "-m", "orchestrator", *words], more, out)

    def spawn(
        self, command: list[str], environment: Mapping[str, str] | None = None, out: int | None = None
    ) -> Running:
        """Start any command here, in an environment with nothing of the tester's."""
        files = self.home.parent / f"command-{len(self._started)}"
        with files.with_suffix(".out").open("wb") as output, files.with_suffix(".err").open("wb") as errors:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output if out is None else out,
                stderr=errors,
                start_new_session=True,
            )
        self._started.append(process)
        return Running(process=process, command=shlex.join(command), files=files)

    def sweep(self, *words: str, status: int = 0, environment: Mapping[str, str] | None = None) -> Ended:
        """Type `sweep` and these words; it must end with this status."""
        ended = self.start(*words, environment=environment).end()
        assert ended.status == status, str(ended)
        return ended

    def refused(self, *words: str, environment: Mapping[str, str] | None = None) -> str:
        """Type something wrong: exit status 2, nothing on standard output, one line on standard error, returned."""
        ended = self.sweep(*words, status=2, environment=environment)
        lines = ended.err.splitlines()
        assert not ended.out, str(ended)
        assert len(lines) == 1, str(ended)
        assert lines[0].startswith("sweep: "), str(ended)
        return lines[0]

    def results(self, folder: str) -> list[dict[str, Any]]:
        return json_lines((self.folder / folder / "results.jsonl").read_bytes())

    def manifest(self, folder: str) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads((self.folder / folder / "manifest.json").read_bytes())
        return found

    def journal(self, folder: str, kind: str = "") -> list[dict[str, Any]]:
        """The events of a journal so far, or those of a kind."""
        path = self.folder / folder / "journal.jsonl"
        whole, _, _ = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
        events = json_lines(whole)
        return [event for event in events if event["event"].startswith(kind)]

    def log(self, folder: str, result: Mapping[str, Any], name: str = "agent_log") -> str:
        """A file that a result names."""
        return (self.folder / folder / str(result["files"][name])).read_text()

    def processes(self) -> dict[int, str]:
        """Processes that this desk has started, directly or not, and that have not ended."""
        return carrying(self.mark)

    def clear(self) -> None:
        """End what is left: commands at once, then the service, so that it can end its devboxes, the rest by force."""
        for process in self._started:
            process.kill()
            process.wait(LAST_RITES)
        for address in self.folder.glob("*/.service/*/address.json"):
            pid = orjson.loads(address.read_bytes())["pid"]
            if pid in self.processes():
                os.kill(pid, signal.SIGTERM)
        with suppress(AssertionError):
            wait_until(lambda: not self.processes(), "some are left", seconds=LAST_RITES)
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


def new_desk(place: Path, isolation: str, service: Service | None = None) -> Desk:
    folder, home = place / "work", place / "home"
    folder.mkdir(parents=True)
    home.mkdir()
    (place / "registry.json").write_text("[]")
    return Desk(folder=folder, home=home, isolation=isolation, service=service)


@pytest.fixture
def desk(tmp_path: Path, isolation: str) -> Iterator[Desk]:
    """A desk without an endpoint: the command starts its own service."""
    desk = new_desk(tmp_path, isolation)
    yield desk
    desk.clear()


@pytest.fixture
def served(tmp_path: Path, isolation: str, service: Service) -> Iterator[Desk]:
    """A desk with an endpoint: the service that tests share, with its shelf of benchmarks."""
    before = set(service.alive())
    desk = new_desk(tmp_path, isolation, service)
    yield desk
    desk.clear()
    wait_until(
        lambda: before.issuperset(service.alive()),
        lambda: f"left on the endpoint: {service.alive()}",
        seconds=LAST_RITES,
    )


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, isolation: str) -> Iterator[Service]:
    """One service for all tests of a worker that need no service of their own."""
    desk = new_desk(tmp_path_factory.mktemp("service"), isolation)
    write_shelf(desk.folder / "shelf")
    serving = desk.start("serve", "--port", "0", "--token", KEY, "--state", "state", "--benchmarks", "shelf")
    try:
        serving.wait_for("RUNLOOP_API_KEY=")
        url = serving.out.split("RUNLOOP_BASE_URL=")[1].split()[0]
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as http:
            yield Service(url=url, http=http)
        serving.process.terminate()
        serving.end(LAST_RITES)
    finally:
        if serving.process.poll() is None:
            serving.kill()
        desk.clear()


def write_shelf(folder: Path) -> None:
    """The shared service's benchmarks: `six` small scenarios, a `nasty` statement, a scorer that is `broken`."""
    for name in ("ant", "bee", "cat", "dog", "eel", "fox"):
        write_scenario(folder / "six" / name)
    statement = "/tests/statement"
    by_file_and_stdin = reward(f"cmp {statement} by-file && cmp {statement} by-stdin")
    nasty = write_scenario(folder / "nasty" / "words", statement=NASTY, test=by_file_and_stdin)
    (nasty / "tests" / "statement").write_bytes(NASTY.encode())
    write_scenario(folder / "broken" / "too-much", test="echo 1.7 >/logs/verifier/reward.txt\n")


def write_scenario(
    folder: Path,
    *,
    statement: str = STATEMENT,
    solution: str = "touch /app/done\n",
    test: str = "",
    task: str = CLOSED,
) -> Path:
    """A task as Harbor has them, with nothing of ours in it: solved by making a file called done."""
    for name in ("environment", "solution", "tests"):
        (folder / name).mkdir(parents=True)
    (folder / "task.toml").write_text(f'version = "1.0"\n\n[agent]\ntimeout_sec = 60.0\n\n{task}')
    (folder / "instruction.md").write_bytes(statement.encode())
    (folder / "environment" / "README").write_text("A folder in which something is missing.\n")
    (folder / "solution" / "solve.sh").write_text(solution)
    (folder / "tests" / "test.sh").write_text(test or reward("test -e /app/done"))
    return folder


def reward(condition: str) -> str:
    """A test.sh that gives 1 where the condition holds in the working directory, else 0."""
    return f"if {condition}; then echo 1; else echo 0; fi >/logs/verifier/reward.txt\n"
