"""The scoring that a scenario asks for: the box it runs in, the files it sees, its tests, and its contract.

The contract is what the wire knows: `[[scorers]]` tables become one, with the files they name written into it. Where it
wants contents a table gives a file under `tests/`, so that hidden files stay files an author can run. Tables are ours,
so every unknown key is a mistake.

The contract cannot say the rest: a client of the published protocol gets the tests as one self-extracting script, which
runs in any box it is given. Our own service knows better, and scores by a plan.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final

from orchestrator.core.protocol import ScoringMode
from orchestrator.service.content import Contents, Listing, complaint, decoded
from orchestrator.service.definitions.task_toml import FILE, Artifact, Collect, Reach, Table
from orchestrator.service.diagnostics import Report, hint, nearest, shown
from orchestrator.service.scoring.contract import WEIGHT_TOLERANCE, ScorerType
from orchestrator.service.store import Document

TESTS_PROGRAM: Final = "test.sh"
#: Bytes of one file that becomes text of a definition.
MAX_TEXT_BYTES: Final = 8 << 20
_COMMON: Final = ("name", "weight", "type")
_NEEDED: Final[Mapping[str, Sequence[str]]] = {
    ScorerType.AST_GREP: ("pattern", "search_directory"),
    ScorerType.BASH_SCRIPT: ("bash_script",),
    ScorerType.COMMAND: ("command",),
    ScorerType.CUSTOM: ("custom_scorer_type",),
    ScorerType.PYTHON_SCRIPT: ("python_script",),
    ScorerType.TEST_BASED: ("test_command",),
}
_OPTIONAL: Final[Mapping[str, Sequence[str]]] = {
    ScorerType.AST_GREP: ("lang",),
    ScorerType.CUSTOM: ("scorer_params",),
    ScorerType.PYTHON_SCRIPT: ("requirements", "python_version_constraint"),
    ScorerType.TEST_BASED: ("test_files",),
}
_FILES: Final = {
    "bash_script": "bash_script",
    "python_script": "python_script",
    "requirements": "requirements_contents",
}
"""Keys that name a file under tests/, and the contract's key for its contents."""
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tests:
    """The folder tests/ as the author wrote it; no `archive` where the verifier's own image has it.

    `archive` is a tar.gz whose members are relative to /tests and have the modes they get there, 755 for `program`
    whatever it had. `program` is executed as a file, by its path (`/tests/test.sh`) and in the working directory, so
    that its `#!` line counts; the kernel refuses a script without one (ENOEXEC), and then bash executes it:
    `bash /tests/test.sh`. A shell that executes it does both by itself: `bash -c /tests/test.sh`. Its exit status means
    nothing: `scoring.rewards` reads the file that it wrote.
    `variables` are the verifier's, as written: with templates (`self_extracting.TEMPLATE`: ${NAME}, ${NAME:-default})
    that are filled in from the variables of the box.
    """

    archive: bytes | None
    variables: Mapping[str, str] = field(default_factory=dict)
    program: str = TESTS_PROGRAM


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringPlan:
    """The value of the key `_scoring` of a scenario's document.

    `tests` is None where the contract has other scorers: `[[scorers]]`, or those of a client. `environment` is the id
    of the blueprint of the verifier's own environment, `reach` what scorers reach where the agent reaches another, and
    `user` who they are where a step has one of its own; None stands for the environment's. `templates` are variables of
    that environment which come with the run.
    """

    mode: ScoringMode = ScoringMode.SHARED
    artifacts: tuple[Artifact, ...] = ()
    collect: tuple[Collect, ...] = ()
    tests: Tests | None = None
    environment: str | None = None
    reach: Reach | None = None
    user: str | None = None
    templates: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableNames:
    """The value of the key `_variables` of a scenario's document: what it makes of variables that come with a run.

    `templates` are those of the agent's environment by their names. The names in all templates are required, which the
    wire shows, or `optional`; what is for `scorers_only` does not reach the agent's box.
    """

    templates: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    scorers_only: tuple[str, ...] = ()


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
        if known == weights and not math.isclose(math.fsum(known), 1, abs_tol=WEIGHT_TOLERANCE):
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
            value = table.get(key)
            if key not in table:
                if key in needed:
                    self._error(number, key, f"is missing: a {kind} needs it")
            elif key == "scorer_params":
                scorer[key] = value
            elif key == "test_files" and isinstance(value, Mapping):
                scorer[key] = [self._test_file(number, path, file) for path, file in value.items()]
            elif key == "test_files":
                self._error(number, key, 'expected { "path in the working directory" = "file under tests/" }')
            elif not isinstance(value, str) or not value.strip():
                self._error(number, key, f"expected a string, got {shown(value)}")
            elif key in _FILES:
                scorer[_FILES[key]] = self._contents(partial(self._error, number, key), value)
            else:
                scorer[key] = value
                if key == "custom_scorer_type" and value not in self.custom_types:
                    known = nearest(value, self.custom_types) or ", ".join(sorted(self.custom_types)) or "none"
                    why = f"{shown(value)} is not in benchmark.toml, [custom_scorers] (there: {known})"
                    self._error(number, key, why)
        return scorer

    def _test_file(self, number: int, path: str, file: Any) -> Document:
        fault = partial(self._error, number, f'test_files."{path}"')
        pure = PurePosixPath(path)
        if not pure.parts or pure.is_absolute() or ".." in pure.parts:
            fault("expected a path inside the working directory")
        if not isinstance(file, str):
            fault(f"expected a file under tests/, got {shown(file)}")
            return {}
        return {"file_path": path, "file_contents": self._contents(fault, file)}

    def _contents(self, fault: Callable[[str], None], file: str) -> str:
        """Read the text of a file under tests/."""
        node = self.tests.find(str(PurePosixPath(file)))
        if node is None or node.kind != "file":
            near = nearest(file, [each.path for each in self.tests.nodes if each.kind == "file"])
            fault(f"tests/{file} does not exist" + (f"; did you mean {near}?" if near else ""))
            return ""
        try:
            return decoded(self.contents.read(node, MAX_TEXT_BYTES))
        except OSError as error:
            fault(f"tests/{file} {complaint(error)}")
            self.contents.skip(node)
            return ""
