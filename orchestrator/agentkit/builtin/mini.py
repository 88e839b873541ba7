"""The agent `mini`: mini-swe-agent's own loop, prompts and models, with its commands run in the devbox.

It works on this machine, so the model's key stays here and the devbox needs no network. The user's interpreter runs
this file by path, as any agent of the user's: it may import mini-swe-agent and its dependencies, and nothing of ours.
It is in a folder of its own, because this folder is on the import path, where the names of our modules could hide
others.

Settings are those of mini-swe-agent's configuration files, over its `mini.yaml`: `agent`, `environment`, `model`.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any, Final

# By default it prints a greeting, downloads prices, and refuses models without a price.
for _name, _value in {
    "MSWEA_SILENT_STARTUP": "1",
    "MSWEA_COST_TRACKING": "ignore_errors",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}.items():
    os.environ.setdefault(_name, _value)
try:
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.config import builtin_config_dir, get_config_from_spec
    from minisweagent.exceptions import FormatError, Submitted
    from minisweagent.models import get_model
    from minisweagent.utils.serialize import recursive_merge
except ModuleNotFoundError as error:
    sys.exit(
        f"the package mini-swe-agent is not complete for {sys.executable} (no module {error.name}): "
        f"{sys.executable} -m pip install 'mini-swe-agent>=2.4,<3', which is what the extra sweep[mini] brings"
    )

#: Between two copies of the trajectory to the devbox, from which it is collected.
COPY_INTERVAL_S: Final = 15.0
#: The first line of a command's output that says that the work is done.
_DONE: Final = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


class Mini:
    """Solves a task; notes its usage at each reply of the model, and saves its trajectory while it grows."""

    def __init__(self, prompt: str, workspace: Any, log: Any, model: str | None, settings: dict[str, Any]) -> None:
        config = recursive_merge(get_config_from_spec(builtin_config_dir / "mini.yaml"), settings)
        if not (model or config["model"].get("model_name") or os.environ.get("MSWEA_MODEL_NAME")):
            sys.exit("mini needs a model: --model PROVIDER/NAME, as litellm calls it")
        self._prompt = prompt
        self._workspace = workspace
        self._file = Path(f"/proc/self/fd/{os.memfd_create('trajectory')}")  # no file is left when we are killed
        environment = _Devbox(workspace, log, config.get("environment", {}), self._copy)
        replies = _Model(get_model(model, config["model"]), log)
        self._agent = DefaultAgent(replies, environment, **{**config["agent"], "output_path": self._file})
        self._copied_at = time.monotonic()

    def run(self) -> dict[str, Any]:
        try:
            end = self._agent.run(self._prompt)
        finally:
            self._copy(is_last=True)
        return {"exit_reason": str(end.get("exit_status", ""))}

    def _copy(self, *, is_last: bool = False) -> None:
        """Copy the present trajectory to the devbox, from which it is collected."""
        if is_last or time.monotonic() >= self._copied_at + COPY_INTERVAL_S:
            self._workspace.write(f"{self._workspace.scratch}-mini/mini.traj.json", self._file.read_bytes())
            self._copied_at = time.monotonic()


class _Devbox:
    """mini-swe-agent's environment, with the devbox's shell behind it."""

    def __init__(self, workspace: Any, log: Any, config: dict[str, Any], copy: Any) -> None:
        self.config = config
        self._workspace = workspace
        self._log = log
        self._copy = copy
        said = workspace.exec("uname -s; uname -r; uname -v; uname -m").stdout.splitlines()
        self._system = dict(zip(("system", "release", "version", "machine"), said, strict=True))

    def execute(self, action: dict[str, Any], cwd: str = "", *, timeout: float | None = None) -> dict[str, Any]:
        """Run a command; raises Submitted when it says that the work is done."""
        self._copy()
        command = str(action.get("command", ""))
        limit = timeout or self.config.get("timeout", 30)
        self._log(f"$ {command}")
        done = self._workspace.exec(
            f"exec 2>&1\n{command}",
            timeout=limit,
            environment=self.config.get("env", {}),
            cwd=cwd or self.config.get("cwd") or None,
        )
        is_late = done.exit_status is None
        output = {
            "output": done.stdout,
            "returncode": -1 if is_late else done.exit_status,
            "exception_info": f"The command was ended after {limit} seconds." if is_late else "",
        }
        self._log(done.stdout.rstrip(), f"[{output['returncode']}]")
        first, _, rest = done.stdout.lstrip().partition("\n")
        if first.strip() == _DONE and done.exit_status == 0:
            extra = {"exit_status": "Submitted", "submission": rest}
            raise Submitted({"role": "exit", "content": rest, "extra": extra})
        return output

    def get_template_vars(self, **more: Any) -> dict[str, Any]:
        merged: dict[str, Any] = recursive_merge(self.config, self._system, more)
        return merged

    def serialize(self) -> dict[str, Any]:
        return {"info": {"config": {"environment": self.config, "environment_type": "sweep.devbox"}}}


class _Model:
    """A model of mini-swe-agent; its replies are logged and their usage is counted."""

    def __init__(self, model: Any, log: Any) -> None:
        self._model = model
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def query(self, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = self._model.query(messages, **more)
        except FormatError as error:
            self._count(error.messages[0].get("extra", {}))
            raise
        self._log(reply.get("content") or "")
        self._count(reply.get("extra", {}))
        return reply

    def _count(self, extra: dict[str, Any]) -> None:
        response = extra.get("response")
        usage = (response.get("usage") if isinstance(response, dict) else None) or {}
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        self._log.usage(
            input_tokens=usage.get("prompt_tokens") or usage.get("input_tokens") or 0,
            output_tokens=usage.get("completion_tokens") or usage.get("output_tokens") or 0,
            cached_tokens=details.get("cached_tokens") or 0,
            cost_usd=extra.get("cost") or 0,
            turns=1,
        )
