"""Times scoring by where scorers run, over working directories of three sizes, in one run of alternating sweeps."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

SWEEP = [sys.executable, "-m", "orchestrator"]
MODES = ("live", "shared", "separate")
SIZES = {
    "one file": "echo done >done",
    "30,000 small files": "python3 -c 'for n in range(30000): open(str(n), \"w\").write(str(n))'",
    "300 MiB in one file": "head -c 300M /dev/urandom >big",
}
FILES = {
    "task.toml": "[environment]\nallow_internet = false\nstorage_mb = 2048\n",
    "instruction.md": "Fill the working directory.\n",
    "environment/README": "nothing\n",
    "tests/test.sh": "echo 1 >/logs/verifier/reward.txt\n",
}


def write_benchmark(folder: Path) -> None:
    for name, text in FILES.items():
        path = folder / "scenario" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def results(folder: Path, mode: str, agent: str) -> list[dict[str, Any]]:
    """One trial; the lines of its results."""
    words = ["run", "./bench", "--agent", f"command:{agent}", "--scoring", mode, "--name", mode, "-n", "1", "--json"]
    subprocess.run([*SWEEP, *words], cwd=folder, stdout=subprocess.DEVNULL, check=False, timeout=600)
    return [json.loads(line) for line in (folder / "runs" / mode / "results.jsonl").read_text().splitlines()]


def main() -> None:
    rounds = int(sys.argv[1])
    for size, agent in SIZES.items():
        seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
        gathering: list[float] = []
        for _ in range(rounds):
            for mode in MODES:
                with tempfile.TemporaryDirectory(prefix="sweep-bench-", ignore_cleanup_errors=True) as place:
                    write_benchmark(Path(place) / "bench")
                    (result,) = results(Path(place), mode, agent)
                seconds[mode].append(result["stages"]["score"]["seconds"])
                gathering.append(result["stages"]["gather"]["seconds"])
        said = ", ".join(f"{mode} {median(each):.2f} s" for mode, each in seconds.items())
        extra = median(seconds["separate"]) - median(seconds["live"])
        print(f"{size}: score {said}; a fresh box costs {extra:+.2f} s; gather {median(gathering):.2f} s", flush=True)


if __name__ == "__main__":
    main()
