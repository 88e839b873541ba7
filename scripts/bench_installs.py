"""Times two sweeps of 24 trials with a real agent from npm: the first installs it, the second finds it there.

The agent only prints its version, so nothing else is in the time than what every trial costs anyway: with agents that
work for minutes the share is smaller.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

TRIALS, DEVBOXES = 24, 8
AGENT = """\
description = "Claude Code, asked for its version."
version = "2.0.14"
install = "npm install --global --prefix $SWEEP_AGENT_PREFIX @anthropic-ai/claude-code@$SWEEP_AGENT_VERSION"
run = "$HOME/.agent/bin/claude --version"
"""


def sweep(agent: str, runs: Path, cache: Path) -> float:
    """Seconds that a sweep takes; its output is ours if it fails."""
    command = [sys.executable, "-m", "orchestrator", "run", "bugfix-mini", "--agent", agent, "--runs", str(runs)]
    command += ["--limit", str(TRIALS), "--devboxes", str(DEVBOXES)]
    began = time.perf_counter()
    ended = subprocess.run(
        command,
        env={**os.environ, "SWEEP_CACHE": str(cache)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    if ended.returncode != 0:
        sys.exit(ended.stdout + ended.stderr)
    return time.perf_counter() - began


def crashed(runs: Path) -> int:
    """How many trials' agents did not end well."""
    lines = [line for file in runs.glob("*/results.jsonl") for line in file.read_bytes().splitlines()]
    assert len(lines) == TRIALS, f"{len(lines)} results"
    return sum(1 for line in lines if orjson.loads(line)["flags"])


def installing(cache: Path, since: float) -> float:
    """Seconds in which installs were made."""
    facts = [orjson.loads(file.read_bytes()) for file in cache.glob("installs/*/install.json")]
    return float(sum(each["seconds"] for each in facts if each["made_at"] >= since))


def main(agent: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="sweep-bench-") as place:
        folder = Path(place)
        (folder / "claude-version.toml").write_text(AGENT)
        for which in ("first", "second"):
            began = time.time()
            total = sweep(agent or str(folder / "claude-version.toml"), folder / which, folder / "cache")
            seconds = installing(folder / "cache", began)
            ill = crashed(folder / which)
            print(
                f"{which} sweep: {TRIALS} trials in {total:.1f} s, {seconds:.1f} s of them installing "
                f"({seconds / total:.0%}); {ill} agents ended badly",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
