"""The commands: they open, wire, run and close. The only floor that imports all others."""

from pathlib import Path
from typing import Final

import orchestrator

#: The bundled benchmarks.
BUNDLED: Final = Path(orchestrator.__file__).parent / "benchmarks"
#: Folders of the user's agents, which win over the built-in ones.
AGENTS: Final = (Path("agents"),)
