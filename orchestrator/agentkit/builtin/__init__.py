"""The bundled Python agents, by name: each is a file that the user's interpreter runs by path."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.agentkit.agent import Outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Builtin:
    """The class `entry` of a file, its outputs, and its needs.

    It needs a model, described by `model`, and a `package` with `module` for the interpreter that runs it.
    """

    description: str
    file: Path
    entry: str
    outputs: Outputs
    model: str
    package: str
    module: str


BUILTIN: Final[Mapping[str, Builtin]] = {
    "mini": Builtin(
        description="mini-swe-agent's loop on this machine, over the devbox.",
        file=Path(__file__).with_name("mini.py"),
        entry="Mini",
        outputs=Outputs(trajectory=("~/.sweep-mini/mini.traj.json",), trajectory_format="mini-swe-agent"),
        model="PROVIDER/NAME, as litellm calls it",
        package="mini-swe-agent>=2.4,<3",
        module="minisweagent",
    )
}
