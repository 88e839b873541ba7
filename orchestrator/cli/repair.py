"""`sweep repair`: what can be kept of a damaged journal."""

from pathlib import Path
from typing import Annotated

import typer


def repair(folder: Annotated[Path, typer.Argument(help="The sweep's folder, such as runs/my-sweep.")]) -> None:
    """Keep every readable line of a damaged journal, set the damaged bytes aside in a file, and say what was lost.

    Results that the journal has lost are taken from results.jsonl, if they are there. `sweep resume` then runs the
    trials again whose results are lost.
    """
    from orchestrator.rundir import repair
    from orchestrator.view.console import say

    lost = repair.repair(folder)
    if lost is None:
        say(f"{folder}: nothing is damaged.")
        return
    if lost.file is not None:
        say(f"{folder}: {lost.lines} damaged lines ({lost.bytes} bytes) were set aside in {lost.file}.")
    if lost.restored:
        say(f"{folder}: {lost.restored} results that the journal had lost were taken from results.jsonl.")
    if lost.trials:
        say(f"They spoke of {', '.join(lost.trials)}.")
