"""An agent that was written for Harbor, over our devbox: its `setup` prepares, its `run` works.

The user's interpreter runs this file by path, as any agent of the user's: it may import Harbor, and nothing of ours.
The agent's name, model and settings are in the environment, because a name that is wrong is refused when this is
loaded, before anything was spent. Settings are what Harbor calls an agent's kwargs.

Harbor's agents read API keys from the environment and give them to their commands. Their logs are files of two places,
a folder here and /logs/agent in the devbox; when the agent has ended both are made one, from which Harbor's own readers
take usage and trajectory, and which is collected from the devbox like all else.
"""

import asyncio
import difflib
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

if tuple(sys.version_info) < (3, 12):
    sys.exit(f"Harbor needs Python 3.12 or newer, and {sys.executable} is older: name another with --python PATH")
try:
    from harbor.agents.factory import AgentFactory
    from harbor.environments.base import BaseEnvironment, ExecResult
    from harbor.environments.capabilities import EnvironmentCapabilities
    from harbor.models.agent.context import AgentContext
    from harbor.models.agent.name import AgentName
    from harbor.models.task.config import EnvironmentConfig, MCPServerConfig
    from harbor.models.trial.config import AgentConfig
    from harbor.models.trial.paths import TrialPaths
except ModuleNotFoundError as error:
    sys.exit(
        f"Harbor is not complete for {sys.executable} (no module {error.name}): "
        f"{sys.executable} -m pip install 'harbor>=0.26,<0.27'"
    )

#: The folder of an agent's logs in a devbox.
LOGS: Final = "/logs/agent"
#: Seconds of the time beyond an agent's limit in which its logs are read.
READING_S: Final = 45.0
#: The longest life of a devbox, in seconds.
_MAX_TIMEOUT_S: Final = 48 * 3600.0


def _config() -> Any:
    """Read which agent is meant; end with a message if there is none."""
    name, settings = os.environ["SWEEP_HARBOR_AGENT"], json.loads(os.environ["SWEEP_HARBOR_SETTINGS"])
    where, colon, entry = name.rpartition(":")
    if where.endswith(".py"):
        sys.path.insert(0, str(Path(where).parent.absolute()))
        name = f"{Path(where).stem}:{entry}"
    elif colon:
        sys.path.insert(0, str(Path.cwd()))
    elif name not in (names := sorted(AgentFactory.registered_names())):
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
        sys.exit(f"Harbor has no agent {name!r}; {hint}")
    is_builtin = not colon and name in AgentName.values()
    model = os.environ.get("SWEEP_HARBOR_MODEL") or None
    return AgentConfig(
        name=name if is_builtin else None,
        import_path=None if is_builtin else name,
        model_name=model,
        kwargs=settings,
    )


def _facts() -> dict[str, Any]:
    """Say what the agent takes and reaches, after Harbor's own checks of its settings, model and keys."""
    kind = AgentFactory.get_agent_class_from_config(CONFIG)
    AgentFactory.run_preflight(CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        agent = AgentFactory.create_agent_from_config(CONFIG, logs_dir=Path(folder))
    able = kind.capabilities
    takes = {"mcp_servers": able.mcp_servers, "skills_dir": able.skills, "trajectory": able.load_atif_trajectory}
    connection = agent.model_connection
    return {
        "takes": [name for name, is_able in takes.items() if is_able],
        "headers": able.mcp_http_headers,
        "has_trajectory": able.atif,
        "version": agent.version() or "",
        "secrets": list(filter(None, [connection.api_key_source_name])),
        "reaches": list(filter(None, [connection.inference_base_url])) if hasattr(agent, "exec_as_agent") else [],
    }


try:
    CONFIG: Final = _config()
    FACTS: Final = _facts()
except (ValueError, ImportError, AttributeError, TypeError) as error:
    sys.exit(str(error))


class Bridge:
    """One attempt of an agent of Harbor's."""

    FACTS = FACTS

    def __init__(
        self,
        prompt: str,
        workspace: Any,
        scenario: Any,
        log: Any,
        time_limit: float,
        mcp_servers: list[dict[str, Any]],
        skills_dir: str,
        trajectory: str,
    ) -> None:
        self._prompt = prompt
        self._log = log
        self._time_limit = time_limit
        folder = Path(os.environ["SWEEP_HARBOR_FOLDER"])
        folder.mkdir(mode=0o700)
        paths = TrialPaths(trial_dir=folder)
        self._logs = paths.agent_dir
        self._logs.mkdir()
        given: dict[str, Any] = {"skills_dir": skills_dir} if skills_dir else {}
        if mcp_servers:
            wanted = ("name", "transport", "url", "command", "args", "headers")
            given["mcp_servers"] = [
                MCPServerConfig.model_validate({key: each[key] for key in wanted if each.get(key)})
                for each in mcp_servers
            ]
        if trajectory:
            prior = folder / "prior-trajectory.json"
            prior.write_text(trajectory, encoding="utf-8")
            given["load_trajectory"] = str(prior)
        self._is_loading = bool(trajectory)
        self._agent = AgentFactory.create_agent_from_config(CONFIG, logs_dir=self._logs, **given)
        self._devbox = HarborEnvironment(workspace, str(scenario), paths)

    async def prepare_devbox(self) -> None:
        with self._devbox.scoped_exec_env(self._agent.extra_env):
            await self._agent.setup(self._devbox)

    async def run(self) -> dict[str, Any]:
        context = AgentContext()
        is_timed_out = False
        try:
            with self._devbox.scoped_exec_env(self._agent.extra_env):
                work = self._agent.load if self._is_loading else self._agent.run
                async with asyncio.timeout(self._time_limit) as limit:
                    await work(self._prompt, self._devbox, context)
        except TimeoutError:
            if not limit.expired():
                raise
            is_timed_out = True
        finally:
            try:
                async with asyncio.timeout(READING_S):
                    await self._read_logs(context)
            except Exception as error:  # noqa: BLE001 - the agent has done its work
                self._log.warning("the agent's logs could not be read: %r", error)
            self._log.usage(
                input_tokens=context.n_input_tokens or 0,
                output_tokens=context.n_output_tokens or 0,
                cached_tokens=context.n_cache_tokens or 0,
                cost_usd=context.cost_usd or 0,
            )
        return {"version": self._agent.version() or "", "is_timed_out": is_timed_out}

    async def _read_logs(self, context: Any) -> None:
        """Make both folders of logs one, and let the agent read its usage and its trajectory from them."""
        if await self._devbox.is_dir(LOGS):
            await self._devbox.download_dir(LOGS, self._logs)
        if context.is_empty() and hasattr(self._agent, "populate_context_post_run"):
            self._agent.populate_context_post_run(context)
        await self._devbox.upload_dir(self._logs, LOGS)


class HarborEnvironment(BaseEnvironment):  # type: ignore[misc]  # Harbor is only there where it runs
    """Harbor's environment, with the devbox behind it. It runs already, and somebody else ends it."""

    def __init__(self, workspace: Any, scenario: str, paths: Any) -> None:
        self._workspace = workspace
        self._users: tuple[str, ...] = ()
        super().__init__(
            environment_dir=paths.trial_dir,
            environment_name=scenario,
            session_id=f"{scenario}__env",
            trial_paths=paths,
            task_env_config=EnvironmentConfig(workdir=workspace.working_directory),
        )

    @staticmethod
    def type() -> str:
        return "sweep"

    @property
    def capabilities(self) -> Any:
        return EnvironmentCapabilities()

    def _validate_definition(self) -> None:
        pass

    async def start(self, force_build: bool) -> None:  # noqa: FBT001 - as Harbor has it
        pass

    async def stop(self, delete: bool) -> None:  # noqa: FBT001 - as Harbor has it
        pass

    async def exec(
        self,
        command: str,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_sec: int | None = None,
        user: str | int | None = None,
    ) -> Any:
        """Run a command as this devbox's user, or as another one if that is root.

        Raises RuntimeError when its time is over. A user that it cannot have makes it fail, as a command that `su`
        refuses.
        """
        wanted = self._resolve_user(user)
        if wanted is not None and str(wanted) not in await self._own_names():
            if "0" not in self._users:
                why = f"sweep: commands of this devbox run as {self._users[1]}, and cannot as {wanted}"
                return ExecResult(stdout="", stderr=f"{why}: a scenario with an image has root\n", return_code=126)
            name = f'"$(id -un -- {shlex.quote(str(wanted))})"'
            shell = "$(command -v bash || echo /bin/sh)"
            command = f'exec su -s "{shell}" -c {shlex.quote(command)} -- {name}'
        done = await self._workspace.aexec(
            command, timeout=timeout_sec or _MAX_TIMEOUT_S, environment=self._merge_env(env), cwd=cwd
        )
        if done.exit_status is None:
            raise RuntimeError(f"Command timed out after {timeout_sec} seconds")
        return ExecResult(stdout=done.stdout, stderr=done.stderr, return_code=done.exit_status)

    async def _own_names(self) -> tuple[str, ...]:
        """The number and the name of the user that commands run as."""
        if not self._users:
            self._users = tuple((await self._workspace.aexec("id -u; id -un")).stdout.split())
        return self._users

    async def upload_file(self, source_path: Path | str, target_path: str) -> None:
        await self._workspace.aupload(source_path, target_path)

    async def upload_dir(self, source_dir: Path | str, target_dir: str) -> None:
        await self._workspace.aupload(source_dir, target_dir)

    async def download_file(self, source_path: str, target_path: Path | str) -> None:
        await self._workspace.adownload(source_path, target_path)

    async def download_dir(self, source_dir: str, target_dir: Path | str) -> None:
        await self._workspace.adownload(source_dir, target_dir)
