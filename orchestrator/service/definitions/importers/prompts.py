"""A table of one's own: what to do, and a command that tells whether it was done.

Columns: prompt and test, commands of bash in the working directory; name, solution and timeout (seconds) if wanted.
"""

from collections.abc import Iterator
from pathlib import Path

from orchestrator.service.definitions.importers.rows import read_rows
from orchestrator.service.definitions.importers.scenario_folder import REWARD, ImportedScenario


def read_prompts(file: Path) -> Iterator[ImportedScenario]:
    """Read the rows, which are numbered where they have no names. Raises UsageError."""
    for number, row in enumerate(read_rows(file), 1):
        files: dict[str, str | Path] = {"tests/test.sh": f"#!/bin/bash\n(\n{row.text('test')}\n)\n{REWARD}"}
        if solution := row.text("solution", otherwise=""):
            files["solution/solve.sh"] = f"#!/bin/bash\n{solution}\n"
        yield ImportedScenario(
            name=row.text("name", "id", otherwise=f"{number:04}"),
            statement=f"{row.text('prompt')}\n",
            files=files,
            agent_timeout=row.seconds("timeout", otherwise=600.0),
        )
