"""The forms that benchmarks are imported from."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from orchestrator.service.definitions.importers.prompts import read_prompts
from orchestrator.service.definitions.importers.python_problems import read_humaneval, read_mbpp
from orchestrator.service.definitions.importers.scenario_folder import ImportedScenario

FORMS: Final[dict[str, Callable[[Path], Iterator[ImportedScenario]]]] = {
    "humaneval": read_humaneval,
    "mbpp": read_mbpp,
    "prompts": read_prompts,
}
