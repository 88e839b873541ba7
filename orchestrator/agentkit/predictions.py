"""Somebody's patches as an agent: `--agent predictions:FILE` scores them, and no model is asked.

The file has a JSON object a line (or an array of them), as SWE-bench's predictions are: `instance_id` is the scenario's
name, `model_patch` the patch, which may be empty. A scenario that the file does not name stays as it is.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

import orjson

from orchestrator.agentkit.agent import Result, Task, Workspace
from orchestrator.agentkit.file.command import tail
from orchestrator.agentkit.finished_work import FinishedWork
from orchestrator.common.json_lines import objects
from orchestrator.core.errors import UsageError

NAME: Final = "predictions"
_SCENARIO, _PATCH = "instance_id", "model_patch"
#: Once in all steps of a scenario. First as git applies it, then as loosely as SWE-bench's own evaluation does; an
#: image may have only one of the two.
_APPLY: Final = """\
patch=$SWEEP_PATCH_FILE
if git apply --check --reverse "$patch" 2>/dev/null; then echo 'it is applied already'; exit; fi
git apply --verbose --whitespace=nowarn "$patch" || patch --batch --forward --fuzz=5 -p1 -i "$patch"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionsAgent(FinishedWork):
    """Applies the patch that a file has for the scenario, in its working directory."""

    name: str
    patches: Mapping[str, str] = field(repr=False)
    version: ClassVar[str | None] = None
    model: ClassVar[str | None] = None

    @property
    def digest(self) -> str:
        return hashlib.sha256(orjson.dumps(self.patches, option=orjson.OPT_SORT_KEYS)).hexdigest()

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Apply the patch; a patch that does not apply is an agent that crashed."""
        del log  # the workspace collects the output of a program in the devbox
        patch = self.patches.get(task.scenario_name, "")
        script, environment = "echo 'no patch'", {}
        if patch.strip():
            file = f"{workspace.scratch}/prediction.patch"
            await workspace.write(file, (patch if patch.endswith("\n") else f"{patch}\n").encode())
            script, environment = _APPLY, {"SWEEP_PATCH_FILE": file}
        result = await workspace.run(script, time_limit=task.time_limit, environment=environment)
        message = "" if result.exit_status == 0 else tail(f"{result.stdout}\n{result.stderr}")
        return Result(exit_status=result.exit_status, message=message)


def read_predictions(name: str, file: Path) -> PredictionsAgent:
    """Make the agent of a file. Raises UsageError naming file, line and key."""
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--agent {name}: {file} cannot be read: {why}.") from None
    patches: dict[str, str] = {}
    for line, found in objects(text, file):
        scenario, patch = found.get(_SCENARIO), found.get(_PATCH)
        if not isinstance(scenario, str):
            raise UsageError(f"{file}: line {line}: an object with {_SCENARIO} and {_PATCH} was expected.")
        if not isinstance(patch, str | None):
            raise UsageError(f"{file}: line {line}: {_PATCH}: a text was expected.")
        if scenario in patches:
            raise UsageError(f"{file}: line {line}: {scenario} has two patches.")
        patches[scenario] = patch or ""
    if not patches:
        raise UsageError(f"{file} has no predictions.")
    return PredictionsAgent(name=name, patches=patches)
