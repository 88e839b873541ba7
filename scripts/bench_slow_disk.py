"""Times one sweep with 8 devboxes on disks whose syncs take 4 and 100 ms, in turn; then one whose syncs take 5 s.

Agents work for 5 s, which is little for an agent, so that what waits for the disk shows.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

DRIVER = Path(__file__).parents[1] / "tests" / "crash" / "slow_disk.py"
WORDS = ("run", "bugfix-mini", "--agent", "command:sleep 5", "--devboxes", "8", "--limit")


def sweep(seconds: float, limit: int) -> float:
    """How long a sweep over so many scenarios takes whose syncs take so many seconds more."""
    with tempfile.TemporaryDirectory(prefix="sweep-bench-") as folder:
        told = Path(folder) / "seconds"
        told.write_text(f"{seconds:g}")
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, str(DRIVER), *WORDS, str(limit)],
            cwd=folder,
            env={**os.environ, "SYNC_SECONDS_FILE": str(told)},
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=1200,
        )
        return time.perf_counter() - began


def main() -> None:
    took: dict[float, list[float]] = {0.004: [], 0.1: []}
    for _ in range(int(sys.argv[1])):
        for seconds, times in took.items():
            times.append(sweep(seconds, 24))
    quick, slow = (median(times) for times in took.values())
    print(f"24 trials, syncs of 4 ms: {quick:.1f} s; of 100 ms: {slow:.1f} s; throughput {quick / slow:.0%} of it")
    print(f"8 trials, syncs of 5 s: {sweep(5.0, 8):.1f} s")


if __name__ == "__main__":
    main()
