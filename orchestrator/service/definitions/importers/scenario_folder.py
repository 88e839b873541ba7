"""A scenario that comes from a row of another form, and the folder that it becomes."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

#: Ends every test.sh of ours: 1 if what was run before ended with 0.
REWARD: Final = "echo $((! $?)) >/logs/verifier/reward.txt\n"
_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedScenario:
    """A scenario by the texts of its files; the paths in `files` are relative to its folder."""

    name: str
    statement: str
    files: Mapping[str, str]
    metadata: Mapping[str, str] = field(default_factory=dict)
    agent_timeout: float = 600.0
    verifier_timeout: float = 120.0

    @property
    def folder(self) -> str:
        """The name of its folder: its name, with a dash for what is unusual in one."""
        return _UNFIT.sub("-", self.name).strip("-.") or "scenario"

    def write(self, benchmark: Path) -> None:
        """Write its folder, which is not there yet. Blocking. Raises OSError."""
        task = [
            'version = "1.0"',
            "[metadata]",
            *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in self.metadata.items()),
            "[environment]",
            "allow_internet = false",
            "[agent]",
            f"timeout_sec = {self.agent_timeout}",
            "[verifier]",
            f"timeout_sec = {self.verifier_timeout}",
        ]
        place = benchmark / self.folder
        place.mkdir()
        (place / "environment").mkdir()
        files = {"task.toml": "\n".join(task) + "\n", "instruction.md": self.statement, **self.files}
        for name, text in files.items():
            file = place / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if text.startswith("#!") else 0o644)
