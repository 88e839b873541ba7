"""The agent that a definition becomes: install in the devbox, run there once, report how it ended.

The problem statement travels as a file, which is also the program's standard input: nothing has to be quoted, and a
statement of any size fits. The files lie outside the working directory, because the files there are the scenario's
before the agent runs, and its answer afterwards.
"""

import hashlib
import json
import posixpath
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from orchestrator.agentkit.agent import ExecResult, Outputs, Result, Task, Where, Workspace
from orchestrator.agentkit.file.definition import OUTPUT, Definition
from orchestrator.agentkit.file.mcp_servers import file_of
from orchestrator.core.errors import AgentSetupFailed
from orchestrator.core.protocol import HOME, AdditionalContext
from orchestrator.core.records import Install

#: A backstop: the stage that waits for an install ends it sooner, with a message of its own.
INSTALL_TIMEOUT_S: Final = 3600.0
#: The folder below any home for an agent's own software.
PREFIX: Final = ".agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandAgent:
    """A definition with the values of its environment variables.

    `environment` holds those that are not secret, `secrets` the others; neither reaches the install step, whose result
    is shared. `model` is used for a task that names none.
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

    def unmet(self, context: AdditionalContext) -> Sequence[str]:
        return list(self.definition.unmet(context))

    async def prepare(self, task: Task, workspace: Workspace) -> None:
        """Run the install script unless the endpoint did. Raises AgentSetupFailed with the end of its output."""
        del task
        install = self.install
        if install is None or install.key in workspace.installed:
            return
        environment = {**install.environment, "SWEEP_AGENT_PREFIX": _prefix(install, workspace)}
        result = await workspace.exec(install.script, timeout=INSTALL_TIMEOUT_S, environment=environment)
        if result.exit_status != 0:
            status = result.exit_status
            how = "ran out of time" if status is None else f"ended with status {status}"
            raise AgentSetupFailed(f"{self.name}: the install step {how}\n{tail(_output(result))}".rstrip())

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Write the problem statement to the devbox, and what the scenario gives beside it, and run the command on it.

        Raises AgentSetupFailed when the agent needs a reference output and the scenario has none.
        """
        del log  # the workspace collects the output of a program in the devbox
        assert self.definition.run is not None, f"{self.name}: its argument was not filled in"
        steps = []
        if self.install is not None:  # a login shell sets a PATH of its own
            prefix = shlex.quote(_prefix(self.install, workspace))
            steps.append(f'export SWEEP_AGENT_PREFIX={prefix} PATH={prefix}/bin:"$PATH"')

        environment = {**self.environment, **self.secrets, **self.facts(task)}
        if self.needs_reference:
            if not task.reference_output:
                solution = f"{f'steps/{task.step}/' if task.step else ''}solution/solve.sh"
                raise AgentSetupFailed(
                    f"{self.name}: scenario {task.scenario_name} ({task.scenario_id}) has no {solution}; "
                    "add one to the scenario, or leave the scenario out"
                )
            environment["SWEEP_REFERENCE_FILE"] = reference = f"{workspace.scratch}/reference.sh"
            await workspace.write(reference, as_bytes(task.reference_output))
        mcp, skills, context = self.definition.mcp, self.definition.skills, task.context
        if mcp is not None and context.mcp_servers:
            environment["SWEEP_MCP_FILE"] = file = f"{workspace.scratch}/mcp.{mcp.format}"
            await workspace.write(file, as_bytes(file_of(mcp, context.mcp_servers)))
            if mcp.file is not None:
                folder, place = in_shell(posixpath.dirname(mcp.file)), in_shell(mcp.file)
                steps.append(f"mkdir -p {folder} && cp {shlex.quote(file)} {place}")
        if skills is not None and context.skills_dir:
            source, folder = shlex.quote(context.skills_dir), in_shell(skills.folder)
            steps.append(f"mkdir -p {folder} && cp -R -- {source}/. {folder}")
        environment["SWEEP_PROBLEM_FILE"] = problem = f"{workspace.scratch}/problem.md"
        await workspace.write(problem, as_bytes(task.prompt))

        script = "\n".join((*steps, self.definition.run))
        result = await workspace.run(script, time_limit=task.time_limit, environment=environment, stdin_file=problem)
        usage, reason = await self.report(task, workspace)
        message = "" if result.exit_status == 0 else tail(_output(result))
        return Result(exit_status=result.exit_status, usage=usage, exit_reason=reason, message=message)

    async def aclose(self) -> None:
        """Do nothing: it holds nothing on this host."""

    def facts(self, task: Task) -> dict[str, str]:
        """The variables of every run, in the devbox or on the host."""
        facts = {**self._constants(), "SWEEP_SCENARIO": task.scenario_name}
        if model := task.model or self.model:
            facts |= dict.fromkeys(filter(None, ("SWEEP_MODEL", self.definition.model.variable)), model)
        return facts

    def _constants(self) -> dict[str, str]:
        version = {} if self.version is None else {"SWEEP_AGENT_VERSION": self.version}
        return {**self.definition.env.constants, **version}

    async def report(self, task: Task, workspace: Workspace) -> tuple[Mapping[str, float], str]:
        """The usage that the agent reports and its exit reason, as far as its file says where they are."""
        if self.definition.usage is None:
            return {}, ""
        from orchestrator.agentkit.file.usage import read_usage  # its JSONPath takes longest to import

        return await read_usage(self.definition.usage, task.log, workspace)


def in_shell(path: str) -> str:
    """A path for the shell; one that begins with `~/` is in the home of the devbox's user."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def tail(output: str, *, lines: int = 20, characters: int = 2000) -> str:
    """The end of a program's output, short enough for a message."""
    return "\n".join(output.rstrip().splitlines()[-lines:])[-characters:]


def as_bytes(text: str) -> bytes:
    """Encode as UTF-8, and bytes that were decoded as surrogates to the bytes that they were."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can express and an endpoint may send
        return text.encode(errors="surrogatepass")


def _prefix(install: Install, workspace: Workspace) -> str:
    """The prefix of an install: as in its record if the endpoint made it, else below the home of the devbox."""
    return install.prefix if install.key in workspace.installed else f"{workspace.home}/{PREFIX}"


def _output(result: ExecResult) -> str:
    return "\n".join(part.rstrip() for part in (result.stdout, result.stderr) if part.strip())
