"""Making one layer: the script runs in a box of its own, and what it left below its prefix is taken out.

The box is a devbox in all but its network, which is the machine's, and its settings of package managers. The script is
the user's own, as it would be in a terminal; what an agent does later runs elsewhere and sees none of them.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Final

import anyio
from anyio.to_thread import run_sync

from orchestrator.service.devboxes.commands import Finished, run
from orchestrator.service.devboxes.contract import (
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
from orchestrator.service.devboxes.prepared import Prepared
from orchestrator.service.installs.install import Install, InstallFailed
from orchestrator.service.installs.settings import Settings

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
    """One making of one install, from `base`, in the empty folder `folder`."""

    install: Install
    base: Prepared
    provider: Provider
    folder: Path

    async def carry_out(self) -> Path:
        """Run the script; returns the tree that it made. Raises InstallFailed in words for the user, and OSError."""
        copies, made = self.folder / "settings", self.folder / "made"
        for each in (copies, made):
            await run_sync(each.mkdir)
        settings = await run_sync(Settings.of_this_machine, copies)
        try:
            box = await self.provider.start(self._spec(settings))
            try:
                await self._run(box, settings)
                await box.export(made, self.install.prefix)
            finally:
                with anyio.move_on_after(STOP_TIME, shield=True):
                    await box.stop()
        except (BoxStartFailed, BoxDied) as error:
            raise InstallFailed(f"its box ended: {error.message}") from error
        return await run_sync(self._made, made)

    def _spec(self, settings: Settings) -> BoxSpec:
        return BoxSpec(
            id=f"install-{token_hex(6)}",
            resources=_at_least(self.base.resources or Resources(), RESOURCES),
            network=True,
            environment=self.base.environment,
            root=self.base.root,
            binds=settings.binds,
        )

    async def _run(self, box: Box, settings: Settings) -> None:
        prefix = self.install.prefix
        await run(box, Command(argv=("mkdir", "-p", prefix), cwd=HOME, is_plain=True), timeout=_MKDIR_TIME)
        environment = {**settings.variables, **self.install.environment, "SWEEP_AGENT_PREFIX": prefix}
        command = shell(self.install.script, cwd=HOME, environment=environment)
        finished = await run(box, command, timeout=TIMEOUT, keep=_KEPT)
        if finished.status != 0:
            raise InstallFailed(_why(finished))

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


def _why(finished: Finished) -> str:
    ended = f"ran out of time ({TIMEOUT:g} s)" if finished.is_timed_out else f"ended with status {finished.status}"
    said = finished.output.strip()[-_SHOWN:]
    return f"its script {ended}\n{said}" if said else f"its script {ended}, and printed nothing"
