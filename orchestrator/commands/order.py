"""Orders to a sweep that runs on this machine, given through the socket in its folder."""

from pathlib import Path

from orchestrator.core.orders import Order
from orchestrator.rundir.control_socket import give
from orchestrator.rundir.sweep_index import holder
from orchestrator.view.console import say


def run(folder: Path, order: Order) -> None:
    """Give an order, and print what was done. Raises UsageError if it is refused, or if nobody is there to take it."""
    done = give(folder, order, holder(folder))
    say(f"{folder.name}: {done}.")
