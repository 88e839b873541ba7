"""A scenario that comes from another form, and the folder that it becomes."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orchestrator.core.protocol import ScoringMode

#: Ends every test.sh of ours: 1 if what was run before ended with 0.
REWARD: Final = "echo $((! $?)) >/logs/verifier/reward.txt\n"
_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]+")
Table = Mapping[str, str | bool | float | Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedScenario:
    """A scenario by its files: {path in its folder: text, or a file to copy}. A text that begins with #! is a program.

    `environment` are keys of the section of that name in task.toml, beside `allow_internet`, and `variables` are those
    of its devboxes; `scorers` are its tables. Times are seconds. A `note` says what of it is not as it was.
    """

    name: str
    statement: str
    files: Mapping[str, str | Path]
    metadata: Table = field(default_factory=dict)
    environment: Table = field(default_factory=dict)
    variables: Table = field(default_factory=dict)
    allow_internet: bool = False
    agent_timeout: float = 600.0
    verifier_timeout: float = 120.0
    scoring_mode: ScoringMode = ScoringMode.SHARED
    scorers: Sequence[Table] = ()
    note: str = ""

    @property
    def folder(self) -> str:
        """The name of its folder: its name, with a dash for what is unusual in one."""
        return _UNFIT.sub("-", self.name).strip("-.") or "scenario"

    def write(self, benchmark: Path) -> None:
        """Write its folder, which is not there yet. Blocking. Raises OSError."""
        task = [
            'version = "1.0"',
            *_section("[metadata]", self.metadata),
            *_section("[environment]", {"allow_internet": self.allow_internet, **self.environment}),
            *(_section("[environment.env]", self.variables) if self.variables else []),
            *_section("[agent]", {"timeout_sec": self.agent_timeout}),
            *_section("[verifier]", {"timeout_sec": self.verifier_timeout, "environment_mode": self.scoring_mode}),
            *(line for table in self.scorers for line in _section("[[scorers]]", table)),
        ]
        place = benchmark / self.folder
        place.mkdir()
        (place / "environment").mkdir()
        files = {"task.toml": "\n".join(task) + "\n", "instruction.md": self.statement, **self.files}
        for name, content in files.items():
            file = place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copy(content, file)
            else:
                file.write_bytes(content.encode())  # other ends of lines stay
                file.chmod(0o755 if content.startswith("#!") else 0o644)


def _section(head: str, table: Table) -> list[str]:
    return [head, *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items())]
