"""The work of an earlier attempt as an agent: puts it into a fresh devbox, so that scorers judge it again.

That is its patch, and what crossed to separate scorers: this is only written there, for the endpoint to put back.

No model is asked, and no software is installed. Work that cannot be put back as it was is no work: its trial keeps the
result that it has.
"""

import gzip
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio

from orchestrator.agentkit.agent import Result, Task, Workspace
from orchestrator.agentkit.file.command import tail
from orchestrator.agentkit.finished_work import FinishedWork
from orchestrator.core.errors import AgentCrashed

#: The folder in the scratch folder with the pieces of what crossed.
KEPT: Final = "kept"
#: Bytes of one piece.
_PIECE_BYTES: Final = 8 << 20
#: As git applies it, in a repository of its own: settings and attributes of the scenario's change nothing. GNU patch
#: knows no binary files, but an image may have it and no git.
_APPLY: Final = """\
patch=$SWEEP_PATCH_FILE
[ -s "$patch" ] || exit 0
command -v git >/dev/null || exec patch --batch --forward -p1 -i "$patch"
export GIT_DIR=${patch%/*}/git GIT_WORK_TREE=$PWD GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
git init --quiet && mkdir -p "$GIT_DIR/info" && echo '* -text -eol -ident -filter' >"$GIT_DIR/info/attributes" &&
    git -c core.autocrlf=false -c core.symlinks=true -c core.fileMode=true apply --whitespace=nowarn "$patch"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWork(FinishedWork):
    """Stands for the agent of an arm.

    `patches` are the files of the attempt that is scored again, None for none, and `crossed` are archives of what
    crossed. They are by the names of steps, and "" is that of a scenario without.
    """

    name: str
    digest: str
    version: str | None = None
    model: str | None = None
    patches: Mapping[str, Path | None] = field(default_factory=dict)
    crossed: Mapping[str, Path] = field(default_factory=dict)

    async def solve(self, task: Task, workspace: Workspace, log: Callable[[bytes], None]) -> Result:
        """Put back the work of the step under way. Raises AgentCrashed if that cannot be, or there is none."""
        del log  # the workspace collects the output of a program in the devbox
        if task.step not in self.patches:
            which = f"the step {task.step}" if task.step else "a scenario without steps"
            raise AgentCrashed(f"no work was kept of {which}: it was not begun then")
        place, file = self.patches[task.step], f"{workspace.scratch}/kept.patch"
        try:
            patch = b"" if place is None else await anyio.Path(place).read_bytes()
        except OSError as error:
            raise AgentCrashed(f"{place} cannot be read: {error.strerror}") from None
        if task.step in self.crossed:
            await self._lay_out(self.crossed[task.step], f"{workspace.scratch}/{KEPT}", workspace)
        await workspace.write(file, patch)
        result = await workspace.run(_APPLY, time_limit=task.time_limit, environment={"SWEEP_PATCH_FILE": file})
        if result.exit_status != 0:
            words = tail(f"{result.stdout}\n{result.stderr}")
            raise AgentCrashed(f"the kept patch does not apply: {words}")
        return Result(exit_status=0)

    async def _lay_out(self, archive: Path, folder: str, workspace: Workspace) -> None:
        """Write what crossed into a folder of the devbox, in pieces. Raises AgentCrashed if it cannot be read."""
        try:
            with await anyio.to_thread.run_sync(gzip.open, archive) as file:
                number = 0
                while piece := await anyio.to_thread.run_sync(file.read, _PIECE_BYTES):
                    await workspace.write(f"{folder}/{number:03}", piece)
                    number += 1
        except (OSError, EOFError, zlib.error) as error:
            raise AgentCrashed(f"{archive} cannot be read: {error}") from None
