"""`sweep`, killed by SIGKILL at a chosen point of its work: `python tests/crash/dying.py POINT[,POINT…] run …`.

The points are found from outside, at two seams, so that the product has no hooks for its own death: the sync of a
journal (whatever lines it makes durable) and the methods of the gateway. They are called

    stage.entered/solve:before   power goes before the line is on disk: it is lost     (:torn  half of it is there)
    stage.entered/solve:after    the line is on disk, and nobody has heard of it
    execute(run)@solve:before    the call is not made                 (:after  it has had its effect, unheard of)
    sync:manifest.json:before    another file, in the same way

(in a second step `stage.entered/solve.2`), and each may name a trial: `score@score scn_1/oracle/1:after`. The first one
that is reached kills: the sweep itself, or with DYING_VICTIM=service|both the service whose lock file matches the
pattern DYING_SERVICE. Every point passed is noted in the file DYING_NOTES.

`dying.py --fork` imports the product once and then runs a command for each line of JSON on its standard input, in a
process forked for it: a command then costs what it does, and not its imports.
"""

import functools
import importlib
import inspect
import json
import os
import pkgutil
import re
import select
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any, Final

import anyio
import runloop_api_client.resources  # noqa: F401 - the client imports it late
import structlog

import orchestrator
from orchestrator import cli
from orchestrator.endpoint.gateway import Gateway
from orchestrator.endpoint.protocols import Endpoint
from orchestrator.engine import workspace

JOURNAL: Final = "journal.jsonl"
#: Run by other interpreters, by path: no part of what is imported here.
ELSEWHERE: Final = ("orchestrator.agentkit.builtin.", "orchestrator.agentkit.python.worker.")
#: Calls of which there are several kinds in one stage: each is a point of its own.
IN_DEVBOX: Final = frozenset({"execute", "read_file", "write_file"})


class Fate:
    """The points that kill a process. `stages` is where each trial is, for the names of calls."""

    def __init__(self, points: Iterable[str], *, victim: str, service: str, notes: str) -> None:
        self._points = set(points)
        self._victim = victim
        self._service = service
        self._notes = os.open(notes or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.stages: dict[str, str] = {}

    def meet(self, name: str, trial: str, when: str, last_act: Callable[[], None] = lambda: None) -> None:
        """Pass a point, or die there."""
        point = f"{name} {trial}:{when}" if trial else f"{name}:{when}"
        os.write(self._notes, f"{point}\n".encode())
        if self._points.isdisjoint({point, f"{name}:{when}"}):
            return
        self._points.clear()
        if self._victim != "sweep":
            for lock in glob(self._service):  # noqa: PTH207 - a pattern that may be absolute
                os.kill(int(Path(lock).read_bytes()), signal.SIGKILL)
        if self._victim != "service":
            last_act()
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()


class Syncs:
    """Stands in for `os.fsync`: knows which lines of a journal a sync makes durable."""

    def __init__(self, fate: Fate, real: Callable[[Any], None]) -> None:
        self._fate = fate
        self._real = real
        self._synced: dict[Path, int] = {}
        self._steps: dict[str, int] = {}

    def __call__(self, file: Any) -> None:
        path = Path(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}").readlink()
        if path.name != JOURNAL:
            name = "folder" if path.is_dir() else re.sub(r"^\.|\.\d+$", "", path.name)
            self._fate.meet(f"sync:{name}", "", "before")
            self._real(file)
            self._fate.meet(f"sync:{name}", "", "after")
            return
        lines = list(self._fresh_lines(path))
        for name, trial, begin, end in lines:
            self._fate.meet(name, trial, "before", functools.partial(os.truncate, path, begin))
            self._fate.meet(name, trial, "torn", functools.partial(os.truncate, path, (begin + end) // 2))
        self._real(file)
        for name, trial, _, end in lines:
            self._fate.meet(name, trial, "after", functools.partial(os.truncate, path, end))

    def _fresh_lines(self, path: Path) -> Iterator[tuple[str, str, int, int]]:
        """Name, trial, begin and end of each whole line that was written since the last sync."""
        data = path.read_bytes()
        begin = self._synced.get(path, -1)
        if begin < 0:  # a process's first word is that it has opened the journal
            opened = data.rfind(b'{"event":"sweep.opened"')
            begin = opened if b'"pid":%d}' % os.getpid() in data[opened:] else len(data)
        for line in data[begin:].splitlines(keepends=True):
            event = json.loads(line)
            trial, stage = event.get("trial", ""), event.get("stage")
            if event["event"] == "step.ended":
                self._steps[trial] = self._steps.get(trial, 1) + 1
            if stage and trial in self._steps:
                stage = f"{stage}.{self._steps[trial]}"
            if event["event"] == "stage.entered":
                self._fate.stages[trial] = stage
            yield f"{event['event']}/{stage}" if stage else event["event"], trial, begin, begin + len(line)
            begin += len(line)
        self._synced[path] = begin


def haunt(fate: Fate) -> None:
    """Make this process meet its fate at every sync of a journal and every call of the gateway."""
    workspace.NOTE_EVERY_S = 0.0  # type: ignore[misc] # so that short agents have this event, too
    os.fsync = Syncs(fate, os.fsync)  # type: ignore[assignment]
    os.fdatasync = Syncs(fate, os.fdatasync)  # type: ignore[assignment]
    for name, method in inspect.getmembers(Endpoint, inspect.isfunction):
        real = getattr(Gateway, name)
        if inspect.isasyncgenfunction(real):
            setattr(Gateway, name, _stream(fate, name, real))
        elif inspect.iscoroutinefunction(method):
            setattr(Gateway, name, _call(fate, name, real))


def _call(fate: Fate, method: str, real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(real)
    async def call(*args: Any, **named: Any) -> Any:
        name, trial = _place(fate, method, args)
        fate.meet(name, trial, "before")
        answer = await real(*args, **named)
        fate.meet(name, trial, "after")
        return answer

    return call


def _stream(
    fate: Fate, method: str, real: Callable[..., AsyncGenerator[Any, None]]
) -> Callable[..., AsyncGenerator[Any, None]]:
    @functools.wraps(real)
    async def stream(*args: Any, **named: Any) -> AsyncGenerator[Any, None]:
        name, trial = _place(fate, method, args)
        fate.meet(name, trial, "before")
        async for piece in real(*args, **named):
            fate.meet(name, trial, "after")
            yield piece

    return stream


def _place(fate: Fate, method: str, args: Sequence[Any]) -> tuple[str, str]:
    """The name of a call and the trial it is for, which the engine binds for its log."""
    if method in IN_DEVBOX:
        method = f"{method}({_file(args[2])})"
    trial = structlog.contextvars.get_contextvars().get("trial", "")
    stage = fate.stages.get(trial)
    return f"{method}@{stage}" if stage else method, trial


def _file(text: str) -> str:
    """The name of the first file of ours in a command, or of the file that a path is."""
    found = re.search(r"/\.sweep/[^\s';]+", text)
    return (found[0] if found else text).rpartition("/")[2]


def perform(words: Sequence[str], points: Iterable[str]) -> None:
    """Be `sweep` with these words, until a point is met."""
    victim, service, notes = (os.environ.get(f"DYING_{what}", "") for what in ("VICTIM", "SERVICE", "NOTES"))
    haunt(Fate(points, victim=victim or "sweep", service=service, notes=notes))
    sys.argv = ["sweep", *words]
    cli.main()


def serve_forks() -> None:
    """For each `{words, points, cwd, env, out}`: fork, say the pid, wait, say the exit status (-9: killed)."""
    for module in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
        if not module.name.endswith("__main__") and not module.name.startswith(ELSEWHERE):
            importlib.import_module(module.name)
    anyio.run(anyio.sleep, 0)  # imports the loop
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(request)
        print(pid, flush=True)  # noqa: T201 - the answer
        _outlive(pid)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)  # noqa: T201 - the answer


def _outlive(pid: int) -> None:
    """Wait until a fork has ended, and end it when nobody waits for our answer any more."""
    fork = os.pidfd_open(pid)
    ends = select.poll()
    ends.register(fork, select.POLLIN)
    ends.register(sys.stdin, 0)  # hears of the other end being closed, and of nothing else
    if fork not in dict(ends.poll()):
        os.kill(pid, signal.SIGKILL)
    os.close(fork)


def _become(request: dict[str, Any]) -> None:
    """Turn a fork into the command of a request; does not return."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    nothing, out = os.open(os.devnull, os.O_RDONLY), os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for theirs, ours in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(theirs, ours)
    sys.stdin = open(0)  # noqa: SIM115 - the old one has what was read ahead
    perform(request["words"], request["points"])
    sys.exit()


if __name__ == "__main__":
    if sys.argv[1:] == ["--fork"]:
        serve_forks()
    else:
        perform(sys.argv[2:], sys.argv[1].split(","))
