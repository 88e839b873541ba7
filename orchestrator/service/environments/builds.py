"""Carrying out a blueprint's steps: folders and copies on this machine's disk, commands in a box of the provider.

Commands see exactly what a devbox will see (the same provider, no network, the tree built so far), so that what works
here works there. Commands in a row share a box; a copy between them is made on the tree that came out of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Final

import anyio
from anyio.to_thread import run_sync

from orchestrator.service.definitions.blueprints import Blueprint, context
from orchestrator.service.environments.dockercopy import Context, Tree
from orchestrator.service.environments.dockerfile import FILE, INHERITED_PATH, Copy, Folder, Run, Step
from orchestrator.service.environments.dockerlines import Mistake
from orchestrator.service.environments.installs.settings import covers
from orchestrator.service.sandbox.commands import Finished, run
from orchestrator.service.sandbox.folders import LOGS
from orchestrator.service.sandbox.provider import (
    Box,
    BoxDied,
    BoxSpec,
    BoxStartFailed,
    Capability,
    Command,
    Provider,
)
from orchestrator.service.sandbox.safe_fs import remove

KEPT_OUTPUT: Final = 2000
STOP_TIME: Final = 30
ASK_TIME: Final = 30
_OWN: Final = (*(path[1:] for path in LOGS), "tmp", "tests", "solution", "logs")
"""Every box has these; empty, they say nothing about the environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One building of one blueprint in the empty folder `folder`."""

    blueprint: Blueprint
    provider: Provider
    folder: Path

    async def carry_out(self) -> Path:
        """Take all steps; returns the tree. Raises BoxStartFailed naming the line that failed, and why."""
        tree = Tree(self.folder / "tree-0")
        deadline = anyio.current_time() + self.blueprint.build_timeout
        await run_sync(tree.root.mkdir)
        try:
            available = await run_sync(context, self.blueprint)
        except Mistake as mistake:
            raise BoxStartFailed(f"environment/.dockerignore: {mistake}") from None
        await run_sync(tree.make_folder, self.blueprint.working_directory)
        for number, steps in enumerate(_runs_together(self.blueprint.steps), start=1):
            runs = [step for step in steps if isinstance(step, Run)]
            if runs:
                tree = await self._run(runs, tree, self.folder / f"tree-{number}", deadline)
            else:
                await run_sync(_place, tree, steps[0], available)
        await run_sync(_tidy, tree)
        return tree.root

    async def _run(self, runs: Sequence[Run], tree: Tree, after: Path, deadline: float) -> Tree:
        """Run commands in one box on the tree; returns the tree they left."""
        box = await self.provider.start(await run_sync(self._spec, tree))
        try:
            for step in runs:
                await self._run_one(box, step, deadline)
            await run_sync(after.mkdir)
            try:
                await box.export(after)
            except (BoxDied, OSError) as error:
                raise BoxStartFailed(f"{_place_name(runs[-1])}: its result could not be kept: {error}") from error
        finally:
            with anyio.move_on_after(STOP_TIME, shield=True):
                await box.stop()
        await run_sync(remove, tree.root)
        return Tree(after)

    def _spec(self, tree: Tree) -> BoxSpec:
        return BoxSpec(
            id=f"build-{token_hex(6)}",
            resources=self.blueprint.resources,
            network=Capability.NETWORK_OFF not in self.provider.capabilities,
            working_directory=self.blueprint.working_directory,
            root=tree.root,
            binds=covers(self.folder / "nothing") if Capability.ISOLATED in self.provider.capabilities else (),
        )

    async def _run_one(self, box: Box, step: Run, deadline: float) -> None:
        timeout = max(0.0, deadline - anyio.current_time())
        command = Command(argv=step.argv, cwd=step.cwd, environment=step.environment)
        try:
            finished = await run(box, command, timeout=timeout)
        except BoxDied as error:
            raise BoxStartFailed(f"{_place_name(step)}: its box ended: {error}") from error
        if finished.status != 0:
            raise BoxStartFailed(f"{_place_name(step)}: {_why(finished, self.blueprint.build_timeout)}")


async def with_path(blueprint: Blueprint, provider: Provider) -> Blueprint:
    """The blueprint with $PATH filled in, which takes a box only where a line of the Dockerfile has it."""
    runs = [step for step in blueprint.steps if isinstance(step, Run)]
    environments = [blueprint.environment, *(step.environment for step in runs)]
    if not any(INHERITED_PATH in value for each in environments for value in each.values()):
        return blueprint
    box = await provider.start(BoxSpec(id=f"build-{token_hex(6)}"))
    try:
        path = (await run(box, Command(argv=("printenv", "PATH")), timeout=ASK_TIME)).stdout.decode().strip()
    finally:
        with anyio.move_on_after(STOP_TIME, shield=True):
            await box.stop()

    def filled(environment: Mapping[str, str]) -> dict[str, str]:
        return {name: value.replace(INHERITED_PATH, path) for name, value in environment.items()}

    steps = [
        replace(step, environment=filled(step.environment)) if isinstance(step, Run) else step
        for step in blueprint.steps
    ]
    return replace(blueprint, environment=filled(blueprint.environment), steps=tuple(steps))


def _runs_together(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Commands in a row as one list, every other step as a list of its own."""
    row: list[Step] = []
    for step in steps:
        if not isinstance(step, Run) and row:
            yield row
            row = []
        if isinstance(step, Run):
            row.append(step)
        else:
            yield [step]
    if row:
        yield row


def _place(tree: Tree, step: Step, available: Context) -> None:
    try:
        if isinstance(step, Folder):
            tree.make_folder(step.path)
        elif isinstance(step, Copy):
            tree.copy(step, available)
    except (Mistake, OSError) as error:
        raise BoxStartFailed(f"{_place_name(step)}: {error}") from error


def _place_name(step: Step) -> str:
    """File and line of a step, and what it says."""
    if not step.line:
        return "environment/"
    said = f"WORKDIR {step.path}" if isinstance(step, Folder) else step.text
    return f"{FILE}:{step.line}: {said}"


def _why(finished: Finished, limit: float) -> str:
    output = finished.output.strip()[-KEPT_OUTPUT:]
    ended = f"ended with status {finished.status}"
    if finished.is_timed_out:
        ended = f"ran out of time (environment.build_timeout_sec = {limit:g} in task.toml, for all lines together)"
    hint = ""
    if any(sign in output for sign in ("Read-only file system", "Permission denied")):
        hint = "\nOnly /app, /home/user, /tmp and the folders that WORKDIR or COPY name can be written in a devbox."
    return f"{ended}\n{output}{hint}" if output else f"{ended}, without output{hint}"


def _tidy(tree: Tree) -> None:
    for name in _OWN:
        folder = tree.root / name
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
