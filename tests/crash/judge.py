"""The required outcome of a sweep in any weather: counted from its results and their evidence, from the
service's database and from the machine's processes.
"""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from orchestrator.core.errors import SweepError
from orchestrator.core.retry_policy import RULES, Action
from orchestrator.service.errors import ServiceError
from tests.waiting import wait_until

from .weather import ARMS, SAID, SOON, World, score_of
from .witness import Result, read_results, remains, sweep_id, trial_of

#: What must be zero in the end.
FATAL: Final = (
    "results lost",
    "results doubled",
    "devboxes leaked",
    "runs left running",
    "agents run twice in one devbox",
    "wrong scores",
    "infrastructure scored",
    "trials failed by nobody's fault",
    "trials given up",
    "wrong logs",
    "wrong patches",
    "processes left",
    "sweeps hung",
    "unexpected ends",
)
#: What an agent's devbox consists of, in the command lines of this machine.
_DEVBOX: Final = ("bwrap", "boxagent")


@dataclass(slots=True)
class Judge:
    """Counts what is wrong with sweeps that have ended, and what they left."""

    counts: Counter[str]
    notes: list[str] = field(default_factory=list)

    @property
    def is_content(self) -> bool:
        return not any(self.counts[what] for what in FATAL)

    def look_at(self, world: World) -> None:
        """Judge the world's sweep, which has ended."""
        results = read_results(world.run_folder) if world.done else []
        trials = Counter(trial_of(result) for result in results)
        self.counts["trials"] += world.trials
        self.counts["attempts"] += sum(len(result["attempts"]) for result in results)
        self.counts["results doubled"] += sum(count - 1 for count in trials.values())
        self.counts["results lost"] += world.trials - len(trials)
        for result in results:
            self._look_at_result(world.run_folder, result)
        if world.journal:
            self._look_at_service(world)
        with suppress(AssertionError):
            wait_until(lambda: not world.processes(), "some are left", seconds=SOON)
        for words in world.processes():
            self._find("devboxes leaked" if any(word in words for word in _DEVBOX) else "processes left", words)

    def _find(self, what: str, *words: object) -> None:
        self.counts[what] += 1
        self.notes.append(f"{what}: {' '.join(map(str, words))}")

    def _look_at_service(self, world: World) -> None:
        if not (world.state / "service.sqlite").exists():
            return
        sweep = sweep_id(world.run_folder)
        with suppress(AssertionError):
            wait_until(lambda: not remains(world.state, sweep, "").alive, "some are left", seconds=SOON)
        for each in remains(world.state, sweep, "").alive:
            self._find("devboxes leaked" if each.startswith("dbx") else "runs left running", each)

    def _look_at_result(self, folder: Path, result: Result) -> None:
        name = f"{folder.name}: {'/'.join(map(str, trial_of(result)))}"
        if result["outcome"] != "scored":
            failure = result["failure"]
            is_retried = failure["class"] in _RETRIED
            self._find("trials given up" if is_retried else "trials failed by nobody's fault", name, failure)
            return
        files = {label: folder / path for label, path in result["files"].items()}
        said, done = _text(files.get("agent_log")), _text(files.get("scorer_tests")).split()
        if any(done.count(arm) > 1 for arm in ARMS):
            self._find("agents run twice in one devbox", name, done)
        elif abs(result["score"] - score_of(result["scenario_name"], result["arm"])) > 1e-9:
            what = "wrong scores" if said == SAID else "infrastructure scored"
            self._find(what, name, result["score"], result["flags"], f"said {said[-500:]!r}, done {done}")
        self._look_at_evidence(folder, result, name, said, _text(files.get("patch")))

    def _look_at_evidence(self, folder: Path, result: Result, name: str, said: str, patch: str) -> None:
        if said != SAID:
            is_known = "log_incomplete" in result["flags"] or executions(folder, result) > 1
            self._find("logs of vanished executions" if is_known else "wrong logs", name, f"{said[-500:]!r}")
        lines = patch.splitlines()
        if [lines.count(f"+{word}") for word in (result["arm"], "whole")] != [1, 1]:
            is_said = not {"gather_incomplete", "no_patch"}.isdisjoint(result["flags"])
            what = "patches said to be missing" if is_said else "wrong patches"
            self._find(what, name, result["flags"], f"{patch!r}")


def _classes(cls: type[SweepError] = SweepError) -> set[type[SweepError]]:
    return {cls}.union(*(_classes(each) for each in cls.__subclasses__() if each is not ServiceError))


def _is_retried(cls: type[SweepError]) -> bool:
    rule = next(RULES[base] for base in cls.__mro__ if base in RULES)
    return rule.action in {Action.NEW_ATTEMPT, Action.SCORE_AGAIN}


#: Failures that end a trial only when it was tried as often as it may be.
_RETRIED: Final = {cls.__name__ for cls in _classes() if _is_retried(cls)}


def _text(path: Path | None) -> str:
    return path.read_text(errors="replace") if path is not None and path.exists() else ""


def executions(folder: Path, result: Result) -> int:
    """Number of times the agent of a result's last attempt was started, or waited for anew, by the journal."""
    started = {
        "event": "execution.started",
        "trial": f"{result['scenario']}/{result['arm']}/{result['trial']}",
        "attempt": result["attempts"][-1]["attempt"],
    }
    events = map(orjson.loads, (folder / "journal.jsonl").read_bytes().splitlines())
    return sum(event.items() >= started.items() for event in events if event["event"] == "execution.started")
