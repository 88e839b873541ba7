"""What agents have in common whose work is there already: no model is asked, and no software is installed."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from orchestrator.agentkit.agent import Outputs, Task, Where, Workspace
from orchestrator.core.protocol import AdditionalContext
from orchestrator.core.records import Install


class FinishedWork:
    """The part of an `Agent` that puts finished work into a devbox, all but its name, its digest and `solve`."""

    __slots__ = ()
    where: ClassVar[Where] = "devbox"
    needs_reference: ClassVar[bool] = False
    time_limit: ClassVar[float | None] = None
    hosts: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[Install | None] = None
    outputs: ClassVar[Outputs] = Outputs()
    secrets: ClassVar[Mapping[str, str]] = {}
    endpoint_secrets: ClassVar[Mapping[str, str]] = {}

    def unmet(self, context: AdditionalContext) -> Sequence[str]:
        """Nothing: the work is done."""
        del context
        return ()

    async def prepare(self, task: Task, workspace: Workspace) -> None:
        """Do nothing: it has no software."""

    async def aclose(self) -> None:
        """Do nothing: it holds nothing on this host."""
