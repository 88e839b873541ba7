"""`[[scorers]]` tables become a scoring contract, with the files they name written into it.

The contract is what the wire knows; where it wants contents a table gives a file under `tests/`, so that hidden files
stay files an author can run. Tables are ours, so every key that is not known is a mistake.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from orchestrator.service.content import Contents, Listing, complaint
from orchestrator.service.definitions.task_toml import FILE, Table
from orchestrator.service.diagnostics import Report, nearest, shown
from orchestrator.service.store import Document

#: Bytes of one file that becomes text of a definition.
MAX_TEXT: Final = 8 << 20
_COMMON: Final = ("name", "weight", "type")
_NEEDED: Final = {
    "ast_grep_scorer": ("pattern", "search_directory"),
    "bash_script_scorer": ("bash_script",),
    "command_scorer": ("command",),
    "custom_scorer": ("custom_scorer_type",),
    "python_script_scorer": ("python_script",),
    "test_based_scorer": ("test_command",),
}
_OPTIONAL: Final = {
    "ast_grep_scorer": ("lang",),
    "custom_scorer": ("scorer_params",),
    "python_script_scorer": ("requirements", "python_version_constraint"),
    "test_based_scorer": ("test_files",),
}
_FILES: Final = {
    "bash_script": "bash_script",
    "python_script": "python_script",
    "requirements": "requirements_contents",
}
"""Keys that name a file under tests/, and the contract's key for its contents."""
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorers:
    """Reads tables against the files of `tests/` and the custom types the benchmark registers."""

    tests: Listing
    contents: Contents
    custom_types: Collection[str]
    report: Report

    def contract(self, tables: Sequence[Table]) -> Document:
        """The scoring contract; what is wrong goes to the report and is left out."""
        functions = [self._function(number, table, is_alone=len(tables) == 1) for number, table in enumerate(tables)]
        self._judge_together(functions)
        return {"scoring_function_parameters": functions}

    def _error(self, number: int, key: str, message: str) -> None:
        self.report.error(FILE, f"scorers[{number}].{key}", message)

    def _function(self, number: int, table: Table, *, is_alone: bool) -> Document:
        name, weight = table.get("name"), table.get("weight", 1.0 if is_alone else None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self._error(number, "name", f"expected letters, digits, - and _, got {shown(name)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            self._error(number, "weight", f"expected a number above 0, got {shown(weight)}")
            weight = None
        return {"name": name, "weight": weight, "scorer": self._scorer(number, table)}

    def _scorer(self, number: int, table: Table) -> Document:
        kind = table.get("type")
        if not isinstance(kind, str) or kind not in _NEEDED:
            meant = nearest(str(kind), _NEEDED)
            hint = f"did you mean {meant}?" if meant else f"expected one of {', '.join(_NEEDED)}"
            self._error(number, "type", f"unknown type {shown(kind)}; {hint}")
            return {}
        allowed = (*_COMMON, *_NEEDED[kind], *_OPTIONAL.get(kind, ()))
        for key in table:
            if key not in allowed:
                meant = nearest(key, allowed)
                hint = f"did you mean {meant}?" if meant else f"a {kind} knows {', '.join(allowed)}"
                self._error(number, key, f"unknown key; {hint}")
        scorer: Document = {"type": kind}
        for key in (*_NEEDED[kind], *_OPTIONAL.get(kind, ())):
            if key in table:
                scorer |= self._field(number, key, table[key])
            elif key in _NEEDED[kind]:
                self._error(number, key, f"is missing: a {kind} needs it")
        return scorer

    def _field(self, number: int, key: str, value: Any) -> Document:
        if key == "test_files":
            return {key: self._test_files(number, value)}
        if key == "scorer_params":
            return {key: value}
        if not isinstance(value, str) or not value.strip():
            self._error(number, key, f"expected a text, got {shown(value)}")
            return {}
        if key in _FILES:
            return {_FILES[key]: self._contents(lambda why: self._error(number, key, why), value)}
        if key == "custom_scorer_type" and value not in self.custom_types:
            known = nearest(value, self.custom_types) or ", ".join(sorted(self.custom_types)) or "none"
            self._error(number, key, f"{shown(value)} is not in benchmark.toml, [custom_scorers] (there: {known})")
        return {key: value}

    def _test_files(self, number: int, value: Any) -> list[Document]:
        if not isinstance(value, Mapping):
            self._error(number, "test_files", 'expected { "path in the working directory" = "file under tests/" }')
            return []
        return [self._test_file(number, path, file) for path, file in value.items()]

    def _test_file(self, number: int, path: str, file: Any) -> Document:
        def fault(why: str) -> None:
            self._error(number, f'test_files."{path}"', why)

        pure = PurePosixPath(path)
        if not pure.parts or pure.is_absolute() or ".." in pure.parts:
            fault("expected a path inside the working directory")
        if not isinstance(file, str):
            fault(f"expected a file under tests/, got {shown(file)}")
            return {}
        return {"file_path": path, "file_contents": self._contents(fault, file)}

    def _contents(self, fault: Callable[[str], None], file: str) -> str:
        """The text of a file under tests/."""
        node = self.tests.find(str(PurePosixPath(file)))
        if node is None or node.kind != "file":
            names = [each.path for each in self.tests.nodes if each.kind == "file"]
            meant = nearest(file, names)
            fault(f"tests/{file} does not exist" + (f"; did you mean {meant}?" if meant else ""))
            return ""
        try:
            return self.contents.read(node, MAX_TEXT).decode()
        except OSError as error:
            fault(f"tests/{file} {complaint(error)}")
            self.contents.skip(node)
            return ""
        except UnicodeDecodeError as error:
            fault(
                f"tests/{file} is not UTF-8 text ({error.reason} at byte {error.start}); keep data in test.sh's folder"
            )
            return ""

    def _judge_together(self, functions: Sequence[Document]) -> None:
        names = [function["name"] for function in functions]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            self.report.error(FILE, "scorers", f"the name {name!r} is used more than once")
        weights = [function["weight"] for function in functions]
        if None not in weights and not math.isclose(math.fsum(weights), 1, abs_tol=1e-6):
            self.report.error(FILE, "scorers", f"the weights must sum to 1, they sum to {math.fsum(weights):.9g}")
