"""A process that works with an agent until it is killed."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from orchestrator.agentkit.agent import Task
from orchestrator.agentkit.loader import load

from .conftest import LocalWorkspace


@asynccontextmanager
async def at_work(agent: str, folder: Path, workspace: LocalWorkspace) -> AsyncIterator[None]:
    """A process of its own works with an agent, as a sweep does; it is killed when the block ends."""
    command = [sys.executable, "-m", "tests.agentkit.at_work", agent, str(folder), str(workspace.root)]
    root = Path(__file__).parents[2]
    async with await anyio.open_process(command, stdout=None, stderr=None, cwd=root) as process:
        try:
            yield
        finally:
            process.kill()


async def _work(agent: str, folder: Path, root: Path) -> None:
    loaded = load(agent, python=None, search=(), settings={}, environ=os.environ)
    task = Task(
        scenario_id="s",
        scenario_name="s",
        prompt="",
        time_limit=600,
        folder=folder,
        log=folder / "agent.log",
        devbox_id="d",
        endpoint="",
    )
    await loaded.solve(task, LocalWorkspace(root=root), lambda _: None)


if __name__ == "__main__":
    anyio.run(_work, sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
