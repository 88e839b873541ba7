"""Making one layer: the script runs in a box of its own, and what it left below its prefix is taken out.

The script is the agent's author's, as it would be in a terminal, and so are the scripts of the packages that it names.
The rule for what it gets: this machine's settings of package managers are in a box where nothing is a scenario's, no
program, no file and no variable; a box that has a scenario's programs gets none of them, and reaches the tools' own
indexes alone. Either box goes out by the proxy, to the hosts that the settings and the agent's file name; a token that
was written into the layer is struck out. What an agent does later runs elsewhere and sees none of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Final

import anyio
import structlog
from anyio.to_thread import run_sync

from orchestrator.service.environments.installs.brought import Brought
from orchestrator.service.environments.installs.indexes import index_hosts
from orchestrator.service.environments.installs.install import Install, InstallFailed
from orchestrator.service.environments.installs.settings import Settings
from orchestrator.service.environments.installs.traces import strike_out
from orchestrator.service.sandbox.commands import Finished, run
from orchestrator.service.sandbox.egress.addresses import Resolver
from orchestrator.service.sandbox.egress.dialing import Upstream
from orchestrator.service.sandbox.egress.proxy import Egress, EgressVerdict
from orchestrator.service.sandbox.egress.rules import Rules
from orchestrator.service.sandbox.provider import (
    GIB,
    HOME,
    Box,
    BoxDied,
    BoxSpec,
    BoxStartFailed,
    Command,
    Provider,
    Resources,
    shell,
)

TIMEOUT: Final = 3600.0
STOP_TIME: Final = 30
#: An install needs more than most agents do.
RESOURCES: Final = Resources(cpus=2.0, memory=4 * GIB, disk=16 * GIB, processes=4096)
#: Bytes of a script's output in memory, each stream; and characters of its end in a message.
_KEPT: Final = 32 << 20
_SHOWN: Final = 2000
_MKDIR_TIME: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Building:
    """One making of one install in the empty folder `folder`, from the bare machine or what a scenario `brought`."""

    install: Install
    brought: Brought | None
    resources: Resources
    provider: Provider
    folder: Path
    resolve: Resolver | None = None

    async def carry_out(self) -> Path:
        """Run the script; returns the tree that it made. Raises InstallFailed in words for the user, and OSError."""
        made = self.folder / "made"
        await run_sync(made.mkdir)
        settings, root = await run_sync(self._prepare)
        try:
            box = await self.provider.start(self._spec(settings, root))
            try:
                finished, egress = await self._run(box, settings)
                if finished.status != 0:
                    raise InstallFailed(_why(finished, egress))
                await box.export(made, self.install.prefix)
            finally:
                with anyio.move_on_after(STOP_TIME, shield=True):
                    await box.stop()
        except (BoxStartFailed, BoxDied) as error:
            raise InstallFailed(f"its box ended: {error.message}") from error
        tree = await run_sync(self._made, made)
        await run_sync(strike_out, tree, settings.secrets)
        return tree

    def _prepare(self) -> tuple[Settings, Path | None]:
        """The settings that the box gets, and the tree that it starts from."""
        if self.brought is None:
            copies = self.folder / "settings"
            copies.mkdir()
            return Settings.of_this_machine(copies), None
        root, nothing = self.folder / "brought", self.folder / "nothing"
        root.mkdir()
        self.brought.copy(root)
        return Settings.of_nobody(nothing), root

    def _spec(self, settings: Settings, root: Path | None) -> BoxSpec:
        return BoxSpec(
            id=f"install-{token_hex(6)}",
            resources=_at_least(self.resources, RESOURCES),
            environment={} if self.brought is None else self.brought.environment,
            root=root,
            binds=settings.binds,
        )

    async def _run(self, box: Box, settings: Settings) -> tuple[Finished, Egress]:
        """Run the script, with its way out. Raises InstallFailed, BoxDied and OSError."""
        egress = Egress(await self._rules(box, settings), _tell, self.resolve, _upstream(settings))
        ended: list[Finished] = []
        failed: list[BoxDied | OSError] = []
        async with anyio.create_task_group() as tasks:
            try:
                await tasks.start(egress.serve, box)
                variables = {**settings.variables, **egress.variables, **_proxied(egress)}
                ended.append(await self._run_script(box, variables))
            except (BoxDied, OSError) as error:  # it leaves as it is, not inside a group
                failed.append(error)
            tasks.cancel_scope.cancel()
        if failed:
            raise failed[0]
        return ended[0], egress

    async def _rules(self, box: Box, settings: Settings) -> Rules:
        return Rules.parse(self.install.hosts, trusted=await index_hosts(box, settings))

    async def _run_script(self, box: Box, variables: Mapping[str, str]) -> Finished:
        prefix = self.install.prefix
        await run(box, Command(argv=("mkdir", "-p", prefix), cwd=HOME, is_plain=True), timeout=_MKDIR_TIME)
        environment = {**variables, **self.install.environment, "SWEEP_AGENT_PREFIX": prefix}
        command = shell(self.install.script, cwd=HOME, environment=environment)
        return await run(box, command, timeout=TIMEOUT, keep=_KEPT)

    def _made(self, made: Path) -> Path:
        """What is at the prefix: a folder, and not one that a link stands for."""
        tree = made
        for part in self.install.prefix.strip("/").split("/"):
            tree /= part
            if tree.is_symlink() or not tree.is_dir():
                raise InstallFailed(f"its script made {self.install.prefix} something else than a folder")
        if not any(tree.iterdir()):
            raise InstallFailed(f"its script put nothing below $SWEEP_AGENT_PREFIX, which is {self.install.prefix}")
        return tree


def _at_least(asked: Resources, least: Resources) -> Resources:
    return replace(
        asked,
        cpus=max(asked.cpus, least.cpus),
        memory=max(asked.memory, least.memory),
        disk=max(asked.disk, least.disk),
        processes=max(asked.processes, least.processes),
    )


async def _tell(verdict: EgressVerdict, host: str) -> None:
    structlog.get_logger().info("install.egress", verdict=verdict, host=host)


def _upstream(settings: Settings) -> Upstream | None:
    if settings.proxy is None:
        return None
    try:
        return Upstream.parse(settings.proxy, settings.bypass)
    except ValueError as error:
        raise InstallFailed(str(error)) from None


def _proxied(egress: Egress) -> Mapping[str, str]:
    """The proxy as settings of the tools, which would else prefer one of a file; an index on loopback is behind it."""
    proxy = egress.variables["http_proxy"]
    named = dict.fromkeys(("npm_config_proxy", "npm_config_https_proxy", "PIP_PROXY"), proxy)
    return {**named, **dict.fromkeys(("no_proxy", "NO_PROXY", "npm_config_noproxy"), "")}


def _why(finished: Finished, egress: Egress) -> str:
    ended = f"ran out of time ({TIMEOUT:g} s)" if finished.is_timed_out else f"ended with status {finished.status}"
    said = finished.output.strip()[-_SHOWN:]
    why = f"its script {ended}\n{said}" if said else f"its script {ended}, and printed nothing"
    refused = ", ".join(egress.counters.document()["refused"])
    if not refused:
        return why
    fix = "name it in [network] hosts of the agent's file, or as a trusted host in your settings of pip"
    return f"{why}\nIt was not let out to {refused}: no setting of npm, pip or uv names that. If it is needed, {fix}."
