"""Runs the evaluation of an instance of SWE-bench on what an agent left, and has swebench judge what it printed.

This file travels: an import writes it with the instance behind it into each scenario, whose scorer it is. It runs in
the box that is scored, in a Python of its own that has swebench and nothing of ours.

What the evaluation prints is a file of /logs/verifier as swebench's own runs have it, and so is its report. A run that
did not end in time is judged by nobody, there as here: it solved nothing. Where swebench sees that the environment
failed, and not the patch, there is no score.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

LOGS: Final = Path("/logs/verifier")
#: Seconds that swebench gives an evaluation unless it is told otherwise.
LIMIT_S: Final = 1800.0
_LOG: Final = "test_output.txt"


def main(instance: dict[str, Any]) -> None:
    """Print 1.0 if the instance is resolved, else 0.0; end with another status than 0 where that cannot be told.

    `instance` has its `eval_script`, and what swebench judges by under the names of its test specifications.
    """
    if not disarm(Path(".git")):
        printed, is_ended = "The agent left no repository.\n", False
    else:
        printed, is_ended = evaluate(instance.pop("eval_script"))
    (LOGS / _LOG).write_text(printed)
    sys.stderr.write(printed)
    print(float(is_ended and is_resolved(instance)))  # noqa: T201 - it is what a scorer says


def is_resolved(instance: dict[str, Any]) -> bool:
    """Ask swebench about what was printed. Raises SystemExit with the reason where it says that the environment failed.

    Its report stays as it writes it.
    """
    from swebench.harness.grading import get_eval_report

    name = instance["instance_id"]
    report = get_eval_report(
        test_spec=SimpleNamespace(**instance),
        prediction={"instance_id": name, "model_name_or_path": "sweep", "model_patch": ""},
        test_log_path=str(LOGS / _LOG),
        include_tests_status=True,
    )
    (LOGS / "report.json").write_text(json.dumps(report, indent=4))
    if report[name].get("infra_failure"):
        sys.exit(f"The environment failed: {report[name]['infra_failure_reason']}")
    return bool(report[name]["resolved"])


def disarm(repository: Path) -> bool:
    """Take away what git would run of an agent's repository: a patch, which is judged elsewhere, has no such thing.

    Return False where the agent left none: no tests can be put in place.
    """
    if repository.is_symlink() or not repository.is_dir():
        return False
    for name in ("config", "hooks", "info", "commondir"):
        path = repository / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
    (repository / "config").write_text("[core]\n\trepositoryformatversion = 0\n")
    return True


def evaluate(script: str) -> tuple[str, bool]:
    """Run a script of bash in the working directory; return what it printed, and whether it ended in time."""
    # The first folder there is of this Python's own programs, which are not those of the image.
    path = os.environ["PATH"].partition(os.pathsep)[2]
    environment = {**os.environ, "PATH": path, "GIT_NO_REPLACE_OBJECTS": "1"}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        program = Path(folder, "eval.sh")
        program.write_text(script)
        running = subprocess.Popen(
            ["/bin/bash", str(program)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            running.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            running.kill()
            output.write(f"\nTimeout error: {LIMIT_S:.0f} seconds exceeded.\n".encode())
        output.seek(0)
        return output.read().decode(errors="replace"), running.returncode is not None
