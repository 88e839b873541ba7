"""Times whole commands: a start, a benchmark, a start over ten thousand scenarios; and what idle devboxes cost."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from runloop_api_client import Runloop

SWEEP = [sys.executable, "-m", "orchestrator"]
SCENARIOS = 10_000
KEY = "a-key-for-measuring"
IDLE, SECONDS = 100, 10.0


def sweep(*words: str, cwd: Path) -> None:
    subprocess.run([*SWEEP, *words], cwd=cwd, check=True, stdout=subprocess.DEVNULL, timeout=600)


def timed(name: str, runs: int, action: Callable[[Path], None]) -> None:
    seconds = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="sweep-bench-") as folder:
            began = time.perf_counter()
            action(Path(folder))
            seconds.append(time.perf_counter() - began)
    print(f"{name}: {median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})", flush=True)


def many_scenarios(folder: Path) -> Path:
    """Ten thousand copies of the smallest scenario there can be."""
    files = {
        "task.toml": "environment.allow_internet = false\n",
        "instruction.md": "Do it.\n",
        "tests/test.sh": "mkdir -p /logs/verifier && echo 0 >/logs/verifier/reward.txt\n",
    }
    for number in range(SCENARIOS):
        scenario = folder / "many" / f"scenario-{number:05}"
        (scenario / "tests").mkdir(parents=True)
        for name, text in files.items():
            (scenario / name).write_text(text)
    return folder / "many"


def idle_devboxes(folder: Path) -> None:
    """CPU seconds that the service spends while devboxes wait for nothing."""
    os.environ["RUNLOOP_API_KEY"] = KEY
    state = folder / "state"
    serve = [*SWEEP, "serve", "--state", str(state), "--port", "0", "--token", KEY, "--quiet"]
    service = subprocess.Popen(serve)
    try:
        while not (state / "address.json").exists():
            time.sleep(0.05)
        client = Runloop(base_url=json.loads((state / "address.json").read_text())["url"])
        boxes = [client.devboxes.create() for _ in range(IDLE)]
        for box in boxes:
            client.devboxes.await_running(box.id)
        before = cpu(service.pid)
        time.sleep(SECONDS)
        print(f"{IDLE} idle devboxes: {(cpu(service.pid) - before) / SECONDS:.2%} of a core", flush=True)
    finally:
        service.terminate()
        service.wait(60)


def cpu(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    runs = int(sys.argv[1])
    timed("sweep --version", runs, lambda folder: sweep("--version", cwd=folder))
    timed(
        "one scenario, nop", runs, lambda folder: sweep("run", "bugfix-mini", "-a", "nop", "--limit", "1", cwd=folder)
    )
    timed("bugfix-mini, oracle", runs, lambda folder: sweep("run", "bugfix-mini", "-a", "oracle", cwd=folder))
    with tempfile.TemporaryDirectory(prefix="sweep-bench-") as folder:
        many = many_scenarios(Path(folder))
        words = ("run", str(many), "-a", "nop", "--limit", "1")
        timed(f"one of {SCENARIOS:,} scenarios, nop", 1, lambda cwd: sweep(*words, cwd=cwd))
        idle_devboxes(Path(folder))


if __name__ == "__main__":
    main()
