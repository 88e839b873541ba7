"""The agent that a definition becomes: install in the devbox, run there once, report how it ended.

The problem statement travels as a file, which is also the program's standard input: quoting is then nobody's problem,
and a statement of any size fits. The files lie outside the working directory, because what an agent finds there is the
scenario's, and what it leaves there is its answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from orchestrator.agentkit.contract import ExecResult, Result, Task, Where, Workspace
from orchestrator.agentkit.definition import Definition
from orchestrator.errors import AgentSetupFailed

#: Seconds; the stage that waits for an install ends it sooner, with its own words.
INSTALL_TIMEOUT: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandAgent:
    """A definition with the values of its environment variables.

    `environment` holds those that are not secret and reaches the install step too; `secrets` reaches the run only.
    """

    name: str
    definition: Definition
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def where(self) -> Where:
        return self.definition.where

    @property
    def needs_reference(self) -> bool:
        return self.definition.reference_output

    @property
    def digest(self) -> str:
        return self.definition.digest

    @property
    def time_limit(self) -> float | None:
        """Seconds this agent asks for, where neither the user nor the scenario says how long."""
        return self.definition.time_limit

    async def prepare(self, workspace: Workspace) -> None:
        """Run the install script. Raises AgentSetupFailed with the end of its output."""
        if self.definition.install is None:
            return
        result = await workspace.exec(
            self.definition.install, timeout=INSTALL_TIMEOUT, environment=dict(self.environment)
        )
        if result.exit_status != 0:
            raise AgentSetupFailed(f"{self.name}: the install step {_how(result)}\n{tail(_output(result))}".rstrip())

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Write the problem statement to the devbox and run the command on it.

        Raises AgentSetupFailed when the agent needs a reference output and the scenario has none.
        """
        del log  # the workspace brings home what a program in the devbox prints
        environment = {**self.environment, **self.secrets, **_facts(task)}
        if self.needs_reference:
            environment["SWEEP_REFERENCE_FILE"] = await self._write_reference(task, workspace)
        assert self.definition.run is not None, f"{self.name}: its argument was not filled in"
        problem = f"{workspace.scratch}/problem.md"
        await workspace.write(problem, _bytes(task.prompt))
        environment["SWEEP_PROBLEM_FILE"] = problem
        result = await workspace.run(
            self.definition.run, time_limit=task.time_limit, environment=environment, stdin_file=problem
        )
        if result.exit_status == 0:
            return Result(exit_status=0)
        return Result(exit_status=result.exit_status, message=tail(_output(result)))

    async def aclose(self) -> None:
        """Nothing is held on this host."""

    async def _write_reference(self, task: Task, workspace: Workspace) -> str:
        if not task.reference_output:
            raise AgentSetupFailed(
                f"{self.name}: scenario {task.scenario_name} ({task.scenario_id}) has no reference output to apply; "
                "add one to the scenario, or leave the scenario out"
            )
        path = f"{workspace.scratch}/reference.sh"
        await workspace.write(path, _bytes(task.reference_output))
        return path


def tail(output: str, *, lines: int = 20, characters: int = 2000) -> str:
    """The end of a program's output, short enough for a message."""
    return "\n".join(output.rstrip().splitlines()[-lines:])[-characters:]


def _facts(task: Task) -> dict[str, str]:
    facts = {"SWEEP_SCENARIO": task.scenario_name}
    if task.model is not None:
        facts["SWEEP_MODEL"] = task.model
    return facts


def _bytes(text: str) -> bytes:
    """Byte for byte: what was not UTF-8 at its source and came through decoded as surrogates leaves as it came."""
    return text.encode(errors="surrogateescape")


def _output(result: ExecResult) -> str:
    return "\n".join(part.rstrip() for part in (result.stdout, result.stderr) if part.strip())


def _how(result: ExecResult) -> str:
    return "ran out of time" if result.exit_status is None else f"ended with status {result.exit_status}"
