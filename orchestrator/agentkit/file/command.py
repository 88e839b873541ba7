"""The agent that a definition becomes: install in the devbox, run there once, report how it ended.

The problem statement travels as a file, which is also the program's standard input: quoting is then nobody's problem,
and a statement of any size fits. The files lie outside the working directory, because what an agent finds there is the
scenario's, and what it leaves there is its answer.
"""

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from orchestrator.agentkit.agent import ExecResult, Outputs, Result, Task, Where, Workspace
from orchestrator.agentkit.file.definition import OUTPUT, Definition
from orchestrator.core.errors import AgentSetupFailed
from orchestrator.core.records import Install

#: Seconds; the stage that waits for an install ends it sooner, with its own words.
INSTALL_TIMEOUT: Final = 3600.0
#: The home of a devbox's user, as the protocol has it, and where below any home an agent's own software lies.
HOME: Final = "/home/user"
PREFIX: Final = ".agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandAgent:
    """A definition with the values of its environment variables.

    `environment` holds those that are not secret, `secrets` the others; neither reaches the install step, whose result
    is everybody's. `model` is what is used where the task names none.
    """

    name: str
    definition: Definition
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    model: str | None = None
    hosts: tuple[str, ...] = ()
    endpoint_secrets: Mapping[str, str] = field(default_factory=dict)

    @property
    def where(self) -> Where:
        return self.definition.where

    @property
    def needs_reference(self) -> bool:
        return self.definition.reference_output

    @property
    def version(self) -> str | None:
        return self.definition.version

    @property
    def install(self) -> Install | None:
        if self.definition.install is None:
            return None
        environment, prefix = self._constants(), f"{HOME}/{PREFIX}"
        meaning = json.dumps([self.definition.install, environment, prefix], sort_keys=True)
        return Install(
            key=hashlib.sha256(meaning.encode()).hexdigest(),
            script=self.definition.install,
            prefix=prefix,
            environment=environment,
            hosts=self.hosts,
        )

    @property
    def outputs(self) -> Outputs:
        trajectory, artifacts = self.definition.trajectory, self.definition.gather.files
        if trajectory is None:
            return Outputs(artifacts=artifacts)
        files = () if trajectory.source == OUTPUT else (trajectory.source,)
        return Outputs(artifacts=artifacts, trajectory=files, trajectory_format=trajectory.format)

    @property
    def digest(self) -> str:
        return self.definition.digest

    @property
    def time_limit(self) -> float | None:
        return self.definition.time_limit

    async def prepare(self, workspace: Workspace) -> None:
        """Run the install script where nobody has. Raises AgentSetupFailed with the end of its output."""
        install = self.install
        if install is None or install.key in workspace.installed:
            return
        environment = {**install.environment, "SWEEP_AGENT_PREFIX": _prefix(install, workspace)}
        result = await workspace.exec(install.script, timeout=INSTALL_TIMEOUT, environment=environment)
        if result.exit_status != 0:
            raise AgentSetupFailed(f"{self.name}: the install step {_how(result)}\n{tail(_output(result))}".rstrip())

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Write the problem statement to the devbox and run the command on it.

        Raises AgentSetupFailed when the agent needs a reference output and the scenario has none.
        """
        del log  # the workspace brings home what a program in the devbox prints
        environment = {**self.environment, **self.secrets, **self.facts(task)}
        if self.needs_reference:
            environment["SWEEP_REFERENCE_FILE"] = await self._write_reference(task, workspace)
        problem = f"{workspace.scratch}/problem.md"
        await workspace.write(problem, as_bytes(task.prompt))
        environment["SWEEP_PROBLEM_FILE"] = problem
        result = await workspace.run(
            self._script(workspace), time_limit=task.time_limit, environment=environment, stdin_file=problem
        )
        usage, reason = await self.report(task, workspace)
        message = "" if result.exit_status == 0 else tail(_output(result))
        return Result(exit_status=result.exit_status, usage=usage, exit_reason=reason, message=message)

    async def aclose(self) -> None:
        """Nothing is held on this host."""

    def facts(self, task: Task) -> dict[str, str]:
        """The variables that every run gets, wherever it runs."""
        facts = {**self._constants(), "SWEEP_SCENARIO": task.scenario_name}
        if model := task.model or self.model:
            facts |= dict.fromkeys(filter(None, ("SWEEP_MODEL", self.definition.model.variable)), model)
        return facts

    def _constants(self) -> dict[str, str]:
        version = {} if self.version is None else {"SWEEP_AGENT_VERSION": self.version}
        return {**self.definition.env.constants, **version}

    def _script(self, workspace: Workspace) -> str:
        """The command, which finds first what its install step made: a login shell sets a PATH of its own."""
        assert self.definition.run is not None, f"{self.name}: its argument was not filled in"
        install = self.install
        if install is None:
            return self.definition.run
        prefix = shlex.quote(_prefix(install, workspace))
        return f'export SWEEP_AGENT_PREFIX={prefix} PATH={prefix}/bin:"$PATH"\n{self.definition.run}'

    async def report(self, task: Task, workspace: Workspace) -> tuple[Mapping[str, float], str]:
        """What it says that it used, and why it ended, as far as its file says where."""
        if self.definition.usage is None:
            return {}, ""
        from orchestrator.agentkit.file.usage import (
            read_usage,  # its JSONPath takes longer to import than all else here
        )

        return await read_usage(self.definition.usage, task.log, workspace)

    async def _write_reference(self, task: Task, workspace: Workspace) -> str:
        if not task.reference_output:
            raise AgentSetupFailed(
                f"{self.name}: scenario {task.scenario_name} ({task.scenario_id}) has no solution/solve.sh; "
                "add one to the scenario, or leave the scenario out"
            )
        path = f"{workspace.scratch}/reference.sh"
        await workspace.write(path, as_bytes(task.reference_output))
        return path


def tail(output: str, *, lines: int = 20, characters: int = 2000) -> str:
    """The end of a program's output, short enough for a message."""
    return "\n".join(output.rstrip().splitlines()[-lines:])[-characters:]


def as_bytes(text: str) -> bytes:
    """Byte for byte: what was not UTF-8 at its source and came through decoded as surrogates leaves as it came."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair is no text, but JSON can say it and an endpoint may
        return text.encode(errors="surrogatepass")


def _prefix(install: Install, workspace: Workspace) -> str:
    """Where it is: what the endpoint made lies where its record says, and ours in the home there really is."""
    return install.prefix if install.key in workspace.installed else f"{workspace.home}/{PREFIX}"


def _output(result: ExecResult) -> str:
    return "\n".join(part.rstrip() for part in (result.stdout, result.stderr) if part.strip())


def _how(result: ExecResult) -> str:
    return "ran out of time" if result.exit_status is None else f"ended with status {result.exit_status}"
