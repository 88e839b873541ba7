"""sweep: the overnight runner for coding-agent benchmarks.

For programs and notebooks, `sweep docs python`:

    sweep = orchestrator.load("runs/my-sweep")
    sweep = await orchestrator.run(orchestrator.SweepConfig(benchmark=..., arms=(...)))

What these names mean is loaded when they are used, so that the import is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from orchestrator.api import LoadedSweep as LoadedSweep
    from orchestrator.api import load as load
    from orchestrator.api import run as run
    from orchestrator.core.config import ArmConfig as ArmConfig
    from orchestrator.core.config import SweepConfig as SweepConfig
    from orchestrator.core.errors import SweepError as SweepError

__version__ = "0.1.0"
#: The module of each name.
_HOMES: Final = {
    "ArmConfig": "orchestrator.core.config",
    "LoadedSweep": "orchestrator.api",
    "SweepConfig": "orchestrator.core.config",
    "SweepError": "orchestrator.core.errors",
    "load": "orchestrator.api",
    "run": "orchestrator.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
