"""`[[scorers]]` tables become a scoring contract, with the files they name written into it.

The contract is what the wire knows; where it wants contents a table gives a file under `tests/`, so that hidden files
stay files an author can run. Tables are ours, so every unknown key is a mistake.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from orchestrator.service.content import Contents, Listing, complaint, decoded
from orchestrator.service.definitions.task_toml import FILE, Table
from orchestrator.service.diagnostics import Report, hint, nearest, shown
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
class ScorerTables:
    """Reads tables against the files of `tests/` and the custom types the benchmark registers."""

    tests: Listing
    contents: Contents
    custom_types: Collection[str]
    report: Report

    def contract(self, tables: Sequence[Table]) -> Document:
        """Build the scoring contract; a mistake goes to the report, and its value is left out."""
        functions: list[Document] = []
        names: Counter[str] = Counter()
        weights: list[float | None] = []
        for number, table in enumerate(tables):
            name, weight = table.get("name"), table.get("weight", 1.0 if len(tables) == 1 else None)
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                self._error(number, "name", f"expected letters, digits, - and _, got {shown(name)}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                self._error(number, "weight", f"expected a number above 0, got {shown(weight)}")
                weight = None
            functions.append({"name": name, "weight": weight, "scorer": self._scorer(number, table)})
            names.update([name] if isinstance(name, str) else [])
            weights.append(weight)

        for name, count in names.items():
            if count > 1:
                self.report.error(FILE, "scorers", f"the name {name!r} is used more than once")
        known = [weight for weight in weights if weight is not None]
        if known == weights and not math.isclose(math.fsum(known), 1, abs_tol=1e-6):
            self.report.error(FILE, "scorers", f"the weights must sum to 1, they sum to {math.fsum(known):.9g}")
        return {"scoring_function_parameters": functions}

    def _error(self, number: int, key: str, message: str) -> None:
        self.report.error(FILE, f"scorers[{number}].{key}", message)

    def _scorer(self, number: int, table: Table) -> Document:
        kind = table.get("type")
        if not isinstance(kind, str) or kind not in _NEEDED:
            meant = hint(str(kind), _NEEDED, f"expected one of {', '.join(_NEEDED)}")
            self._error(number, "type", f"unknown type {shown(kind)}; {meant}")
            return {}
        needed, optional = _NEEDED[kind], _OPTIONAL.get(kind, ())
        allowed = (*_COMMON, *needed, *optional)
        for key in table:
            if key not in allowed:
                meant = hint(key, allowed, f"a {kind} knows {', '.join(allowed)}")
                self._error(number, key, f"unknown key; {meant}")
        scorer: Document = {"type": kind}
        for key in (*needed, *optional):
            if key in table:
                scorer |= self._field(number, key, table[key])
            elif key in needed:
                self._error(number, key, f"is missing: a {kind} needs it")
        return scorer

    def _field(self, number: int, key: str, value: Any) -> Document:
        if key == "scorer_params":
            return {key: value}
        if key == "test_files":
            if isinstance(value, Mapping):
                return {key: [self._test_file(number, path, file) for path, file in value.items()]}
            self._error(number, key, 'expected { "path in the working directory" = "file under tests/" }')
            return {}
        if not isinstance(value, str) or not value.strip():
            self._error(number, key, f"expected a string, got {shown(value)}")
            return {}
        if key in _FILES:
            return {_FILES[key]: self._contents(lambda why: self._error(number, key, why), value)}
        if key == "custom_scorer_type" and value not in self.custom_types:
            known = nearest(value, self.custom_types) or ", ".join(sorted(self.custom_types)) or "none"
            self._error(number, key, f"{shown(value)} is not in benchmark.toml, [custom_scorers] (there: {known})")
        return {key: value}

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
            near = nearest(file, [each.path for each in self.tests.nodes if each.kind == "file"])
            fault(f"tests/{file} does not exist" + (f"; did you mean {near}?" if near else ""))
            return ""
        try:
            return decoded(self.contents.read(node, MAX_TEXT))
        except OSError as error:
            fault(f"tests/{file} {complaint(error)}")
            self.contents.skip(node)
            return ""
