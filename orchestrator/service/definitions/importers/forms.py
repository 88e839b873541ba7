"""The forms that benchmarks are imported from."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from orchestrator.core.errors import UsageError
from orchestrator.service.definitions.importers.polyglot import read_polyglot
from orchestrator.service.definitions.importers.prompts import read_prompts
from orchestrator.service.definitions.importers.python_problems import read_humaneval, read_mbpp
from orchestrator.service.definitions.importers.scenario_folder import ImportedScenario
from orchestrator.service.definitions.importers.swe_bench import read_swebench
from orchestrator.service.definitions.importers.terminal_bench import read_terminal_bench

FORMS: Final[dict[str, Callable[[Path], Iterator[ImportedScenario | UsageError]]]] = {
    "humaneval": read_humaneval,
    "mbpp": read_mbpp,
    "polyglot": read_polyglot,
    "prompts": read_prompts,
    "swebench": read_swebench,
    "terminal-bench": read_terminal_bench,
}
"""Readers of a file or a folder. One that knows why a single scenario cannot be had yields the reason in its place."""
