"""`sweep benchmarks new`: a benchmark of one scenario, with a word on everything that a scenario may say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from orchestrator.core.errors import UsageError
from orchestrator.view.console import say

_TASK: Final = """\
# What a scenario says about itself, in Harbor's format. Every key may be left out.
version = "1.0"

[metadata]
difficulty = "easy"
tags = ["example"]

[environment]
allow_internet = false      # else the agent has the internet
cpus = 1
memory_mb = 2048
storage_mb = 10240
# docker_image = "python:3.12-slim"     # an image; or write environment/Dockerfile
# workdir = "/app"                      # where the agent begins; without an image /app
# env = { LEVEL = "3", TOKEN = "${TOKEN}", MODE = "${MODE:-fast}" }     # ${NAME}: from who runs the sweep

# [environment.healthcheck]             # the devbox is ready when this succeeds
# command = "test -e /app/README.md"

[agent]
timeout_sec = 600.0

[verifier]
timeout_sec = 120.0
# environment_mode = "separate"         # tests see a fresh devbox, with these from the agent's:
# artifacts = ["/app/greeting.txt"]     # (a key of the whole file: write it above the first table)
"""
_FILES: Final[Mapping[str, str]] = {
    "task.toml": _TASK,
    "instruction.md": "Write the line `hello` to the file /app/greeting.txt.\n",
    "environment/README.md": "The agent finds these files in its working directory.\n",
    "solution/solve.sh": """\
#!/bin/bash
# The reference solution: `--agent oracle` runs it, and must score 1.
echo hello >/app/greeting.txt
""",
    "tests/test.sh": """\
#!/bin/bash
# Runs in the working directory when the agent has ended, and writes the reward, from 0 to 1.
if [ "$(cat /app/greeting.txt 2>/dev/null)" = hello ]; then
    echo 1
else
    echo 0
fi >/logs/verifier/reward.txt
""",
}
_SCENARIO: Final = "first-scenario"


def new(folder: Path) -> None:
    """Write a benchmark with one scenario to a new or empty folder. Raises UsageError."""
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty: name a new folder.")
        for name, text in _FILES.items():
            file = folder / _SCENARIO / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if text.startswith("#!") else 0o644)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}.") from None
    say(f"Wrote {folder / _SCENARIO}. `sweep check {folder}` proves it; copy the folder for the next scenario.")
