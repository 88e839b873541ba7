"""Writes the folder of a sweep that never ran, for pictures and benchmarks.

`python -m scripts.demo_sweep FOLDER scenarios=64` writes one; the words after the folder are parameters of `write`.

The same parameters make the same sweep. Its journal is one that a sweep could have written, and is folded as any other.
"""

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import orjson

from orchestrator import __version__
from orchestrator.core import events
from orchestrator.core.config import ArmConfig, SweepConfig
from orchestrator.core.events import Event, TrialFinished, to_line
from orchestrator.core.ledger import Ledger
from orchestrator.core.records import ScenarioSummary, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.rundir.files import JOURNAL, RESULTS, attempt_folder
from orchestrator.rundir.manifest import Manifest, write_manifest
from orchestrator.rundir.results_file import result_line

BEGAN: Final = datetime(2026, 11, 29, 22, 0, tzinfo=UTC).timestamp()
SUBJECTS: Final = (
    "csv",
    "json",
    "sqlite",
    "http",
    "cache",
    "retry",
    "shell",
    "unicode",
    "timezone",
    "log",
    "ini",
    "lru",
)
MATTERS: Final = (
    "quoting",
    "ledger",
    "range",
    "order",
    "rotation",
    "stampede",
    "migration",
    "eviction",
    "slug",
    "money",
)
PATCH: Final = """\
diff --git a/billing/month.py b/billing/month.py
index 5c26c76..922adf9 100644
--- a/billing/month.py
+++ b/billing/month.py
@@ -12,7 +12,8 @@ def month_end(day: date) -> date:
-    return day.replace(day=30)
+    following = day.replace(day=28) + timedelta(days=4)
+    return following - timedelta(days=following.day)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoArm:
    """An arm with its skill from 0 to 1, US dollars and seconds of a trial."""

    name: str
    skill: float
    cost: float
    seconds: float


ARMS: Final = (
    DemoArm(name="large", skill=0.66, cost=0.42, seconds=310),
    DemoArm(name="medium", skill=0.58, cost=0.11, seconds=190),
    DemoArm(name="small", skill=0.43, cost=0.02, seconds=95),
    DemoArm(name="yesterday", skill=0.55, cost=0.13, seconds=240),
)


def write(folder: Path, *, scenarios: int, arms: int = 4, trials: int = 1, done: float = 1.0, seed: int = 1) -> None:
    """Write a sweep of which a part is `done`; what is under way is left unfinished, as in a journal of a kill."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    chosen = ARMS[:arms]
    names = [
        f"{SUBJECTS[at % 12]}-{MATTERS[at // 12 % 10]}{f'-{at // 120 + 1}' if at >= 120 else ''}"
        for at in range(scenarios)
    ]
    summaries = [ScenarioSummary(id=f"scn_{at:020x}", name=name) for at, name in enumerate(names)]
    config = SweepConfig(
        benchmark="nightly",
        arms=[ArmConfig(agent=arm.name, name=arm.name) for arm in chosen],
        trials=trials,
        devboxes=16,
    )
    folder.mkdir(parents=True)
    manifest = Manifest(
        schema=1,
        sweep=str(UUID(int=seed)),
        name=folder.name,
        created=datetime.fromtimestamp(BEGAN, UTC).isoformat(timespec="seconds"),
        version=__version__,
        identity={"benchmark": "nightly", "arms": {}},
        trials=scenarios * arms * trials,
        config=config.model_dump(mode="json"),
        scenarios={each.id: each for each in summaries},
        selected=[each.id for each in summaries],
    )
    write_manifest(folder, manifest)
    found = sorted(_all(dice, manifest, chosen, round(done * manifest.trials)), key=lambda event: event.at)
    ledger = Ledger()
    with (folder / JOURNAL).open("wb") as journal, (folder / RESULTS).open("wb") as results:
        for event in found:
            ledger.apply(event)
            journal.write(to_line(event))
            if isinstance(event, TrialFinished):
                results.write(result_line(event))
                _keep_files(folder, event)


def _all(dice: random.Random, manifest: Manifest, arms: tuple[DemoArm, ...], done: int) -> Iterator[Event]:
    yield events.SweepOpened(sweep=manifest.sweep, schema=events.SCHEMA, version=__version__, pid=1, at=BEGAN)
    hardness = {id_: dice.gauss(0, 0.35) for id_ in manifest.scenarios}
    lanes = [BEGAN + dice.random() for _ in range(manifest.config["devboxes"])]
    last = BEGAN
    for number, key in enumerate(manifest.plan):
        lane = min(range(len(lanes)), key=lanes.__getitem__)
        arm = next(each for each in arms if each.name == key.arm)
        began = lanes[lane]
        if number < done:
            *_, final = trial = list(_trial(dice, key, manifest, arm, hardness[key.scenario], began))
            yield from trial
            lanes[lane] = final.at + 0.1
            last = max(last, final.at)
        elif number < done + len(lanes):
            yield from list(_trial(dice, key, manifest, arm, hardness[key.scenario], began))[: dice.randint(2, 6)]
    if done >= manifest.trials:
        yield events.SweepEnded(reason="finished", at=last + 1)


def _trial(
    dice: random.Random, key: TrialKey, manifest: Manifest, arm: DemoArm, hardness: float, began: float
) -> Iterator[Event]:
    number = dice.getrandbits(60)
    of: dict[str, Any] = {"trial": str(key), "attempt": 1}
    luck = arm.skill - hardness + dice.gauss(0, 0.22)
    score = 1.0 if luck > 0.5 else round(dice.choice((0.25, 0.5, 0.75)), 2) if luck > 0.42 else 0.0
    is_late, is_lost = dice.random() < 0.03, dice.random() < 0.02
    solve = arm.seconds * dice.lognormvariate(0, 0.5) * (4 if is_late else 1)
    spent = {"start": 0.4, "boot": dice.uniform(2, 9), "prepare": dice.uniform(1, 15), "solve": solve}
    spent |= {"gather": dice.uniform(0.5, 3), "score": dice.uniform(8, 60)}
    cost = round(arm.cost * dice.lognormvariate(0, 0.4), 4)
    usage = {"input_tokens": int(cost * 4e5), "output_tokens": int(cost * 2e4), "cost_usd": cost}
    at = began
    for stage in Stage:
        if stage is Stage.RELEASE:
            yield events.TrialFinished(
                **of, at=at, result=_result(key, manifest, spent, usage, began, at, None if is_lost else score, is_late)
            )
        yield events.StageEntered(**of, stage=stage, at=at)
        if stage is Stage.START:
            yield events.RunStarted(**of, run=f"scr_{number:020x}", devbox=f"dbx_{number:020x}", at=at)
        if stage is Stage.SOLVE:
            yield events.ExecutionStarted(**of, execution=f"exec_{number:020x}", at=at)
        at += spent.get(str(stage), 0.2)
        facts = {"exit_status": 0, "usage": usage} if stage is Stage.SOLVE else {}
        yield events.StageFinished(**of, stage=stage, seconds=spent.get(str(stage), 0.2), facts=facts, at=at)


def _result(
    key: TrialKey,
    manifest: Manifest,
    spent: dict[str, float],
    usage: dict[str, float],
    began: float,
    ended: float,
    score: float | None,
    is_late: bool,  # noqa: FBT001 - a fact beside the others
) -> dict[str, Any]:
    name = manifest.scenarios[key.scenario].name
    place = attempt_folder(Path(), key, name, 1)
    failure = {"class": "DevboxLost", "message": f"devbox dbx_1 of {name} is gone", "stage": "solve"}
    moments = {"started": began, "finished": ended}
    return {
        "schema": 1,
        "sweep": manifest.sweep,
        "benchmark": manifest.plan.benchmark,
        "scenario": key.scenario,
        "scenario_name": name,
        "arm": key.arm,
        "agent": key.arm,
        "version": None,
        "model": None,
        "trial": key.number,
        **{word: datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds") for word, at in moments.items()},
        "outcome": "failed" if score is None else "scored",
        "score": score,
        "scorers": [] if score is None else [{"name": "tests", "score": score, "state": "complete"}],
        "rewards": {},
        "scoring": "shared",
        "processes_left": {},
        "flags": ["agent_timed_out"] if is_late else [],
        "failure": failure if score is None else None,
        "attempts": [{"attempt": 1, "failure": failure if score is None else None}],
        "stages": {stage: {"seconds": round(seconds, 3), "waited": 0.0} for stage, seconds in spent.items()},
        "exit_status": None if is_late else 0,
        "exit_reason": None,
        "usage": usage,
        "network": {"reached": None, "refused": None},
        "ids": {"benchmark_run": "bmr_1", "scenario_run": "scr_1", "devbox": "dbx_1"},
        "files": {"agent_log": f"{place}/agent.log", "patch": f"{place}/patch.diff"},
        "steps": [],
        "rescored": None,
    }


def _keep_files(folder: Path, event: TrialFinished) -> None:
    place = folder / Path(event.result["files"]["patch"]).parent
    place.mkdir(parents=True)
    (place / "patch.diff").write_text(PATCH)
    name = event.result["scenario_name"]
    lines = [f"step {at}: reading {name}/part_{at}.py, then running its tests\n" for at in range(60)]
    (place / "agent.log").write_text("".join(lines))


if __name__ == "__main__":
    given = (each.split("=") for each in sys.argv[2:])
    write(Path(sys.argv[1]), **{name: orjson.loads(value) for name, value in given})
