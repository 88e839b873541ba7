"""The composition root: opens, wires, runs, closes. The only place that knows everybody."""

from pathlib import Path
from typing import Final

import orchestrator

#: The benchmarks that come with the project.
BUNDLED: Final = Path(orchestrator.__file__).parent / "benchmarks"
#: Agents of the user's own win over ours.
AGENTS: Final = (Path("agents"),)
