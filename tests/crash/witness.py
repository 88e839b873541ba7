"""Remains of a sweep in the world. Asked of the service's database, of the devboxes and of the machine; of what
the orchestrator says of itself, only the results are believed, and those are compared.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

#: What an agent does in its devbox, where it must be done once only: the scorer finds no other number of lines.
WORK: Final = "echo worked >>/app/worked"
_TEST: Final = (
    'cat /app/worked\nif [ "$(cat /app/worked)" = worked ]; then echo 1; else echo 0; fi >/logs/verifier/reward.txt\n'
)
_SETTINGS: Final = "[agent]\ntimeout_sec = 60.0\n[environment]\nallow_internet = false\n"
_OVER: Final = {"shutdown", "failure", "completed", "canceled", "failed", "timeout"}
#: Of a result, what no death may change; the rest says how it came about.
_LASTING: Final = ("scenario_name", "arm", "trial", "outcome", "score", "scorers", "flags", "failure", "usage")
_LASTING_OF_STEPS: Final = ("name", "score", "scorers", "rewards", "flags", "exit_status", "usage")
#: What of a result's files is the same, whoever brings it home and however often.
_BROUGHT: Final = ("patch", "artifacts", "traces", "trajectory", "trajectory_atif", "left_out")

Result = dict[str, Any]


def write_benchmark(folder: Path, names: Iterator[str] | tuple[str, ...]) -> None:
    """Scenarios that are solved by WORK, done exactly once in the devbox."""
    for name in names:
        files = {
            "task.toml": f'version = "1.0"\n\n{_SETTINGS}',
            "instruction.md": "Work.\n",
            "environment/README": "Nothing has been done here.\n",
            "solution/solve.sh": f"{WORK}\n",
            "tests/test.sh": _TEST,
        }
        for path, text in files.items():
            file = folder / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


def write_stepped(folder: Path) -> None:
    """A scenario of two steps, each of which is solved by WORK, done exactly once in it."""
    files = {
        "task.toml": (
            f'version = "1.4"\n\n{_SETTINGS}\n'
            '[[steps]]\nname = "first"\nmin_reward = 1.0\n\n[[steps]]\nname = "second"\n'
        ),
        "environment/README": "Nothing has been done here.\n",
    }
    for number, step in enumerate(("first", "second"), 1):
        files |= {
            f"steps/{step}/instruction.md": f"Work on the {step}.\n",
            f"steps/{step}/workdir/setup.sh": f"echo {step} >>begun\n",
            f"steps/{step}/tests/test.sh": (
                "cat worked begun; "
                f'[ "$(grep -c worked worked) $(grep -c . begun)" = "{number} {number}" ]\n'
                "echo $((! $?)) >/logs/verifier/reward.txt\n"
            ),
        }
    for path, text in files.items():
        file = folder / "two" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def read_results(folder: Path) -> list[Result]:
    """The results of a sweep. Raises AssertionError for a file whose last line is not whole."""
    data = (folder / "results.jsonl").read_bytes()
    assert data.endswith(b"\n") or not data, f"results.jsonl ends with half a line: {data[-100:]!r}"
    return [json.loads(line) for line in data.splitlines()]


def lasting(folder: Path) -> list[Result]:
    """Of the results of a sweep what two runs of it must have in common, in one order."""
    kept = [
        {
            **{key: result[key] for key in _LASTING},
            "brought": brought(folder, result),
            "steps": [
                {**{key: step[key] for key in _LASTING_OF_STEPS}, "brought": brought(folder, step)}
                for step in result["steps"]
            ],
        }
        for result in read_results(folder)
    ]
    return sorted(kept, key=lambda each: (each["scenario_name"], each["arm"], each["trial"]))


def brought(folder: Path, result: Result) -> dict[str, str]:
    """The text of each file that came home with a result, by its path below the attempt's folder."""
    texts = {}
    for path in (folder / result["files"][label] for label in _BROUGHT if label in result["files"]):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            texts[str(file.relative_to(path.parent))] = file.read_text()
    return texts


def trial_of(result: Result) -> tuple[str, str, int]:
    return result["scenario_name"], result["arm"], result["trial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """A service's records of one sweep: `alive` is everything that has not ended; `agents` counts by devbox."""

    alive: list[str]
    agents: Counter[str]


def remains(state: Path, sweep: str, agent: str) -> Remains:
    """Read a service's database, whether the service lives or not. `agent` is in the command of every agent."""
    with closing(sqlite3.connect(f"file:{state / 'service.sqlite'}?mode=ro", uri=True, timeout=30)) as db:
        runs = [doc for doc in _documents(db, "scenario_runs") if _is_of(doc, sweep)]
        benchmark_runs = [doc for doc in _documents(db, "benchmark_runs") if _is_of(doc, sweep)]
        # Devboxes of foreign endpoints do not say whose they are.
        ours = {run["devbox_id"] for run in runs}
        devboxes = [doc for doc in _documents(db, "devboxes") if _is_of(doc, sweep) or doc["id"] in ours]
        ours |= {devbox["id"] for devbox in devboxes}
        agents = Counter(
            doc["devbox_id"]
            for doc in _documents(db, "executions")
            if doc["devbox_id"] in ours and agent in doc["_command"]
        )
    states = [(doc["id"], doc.get("state", doc.get("status"))) for doc in (*runs, *devboxes, *benchmark_runs)]
    alive = [f"{identity} is {state}" for identity, state in states if state not in _OVER]
    return Remains(alive=alive, agents=agents)


def _is_of(doc: dict[str, Any], sweep: str) -> bool:
    return bool(doc.get("metadata", {}).get("sweep") == sweep)


def _documents(db: sqlite3.Connection, table: str) -> Iterator[dict[str, Any]]:
    return (json.loads(doc) for (doc,) in db.execute(f"SELECT doc FROM {table}"))


def sweep_id(folder: Path) -> str:
    identity: str = json.loads((folder / "manifest.json").read_bytes())["sweep"]
    return identity
