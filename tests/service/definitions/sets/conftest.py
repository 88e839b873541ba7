"""A git repository with scenarios, and copies of what is in it."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.service.definitions.sets.copies import Copies


@dataclass(frozen=True, slots=True)
class Origin:
    """A repository of this machine, asked as one elsewhere is."""

    folder: Path

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    def git(self, *words: str) -> str:
        who = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        done = subprocess.run(
            ["git", "-C", str(self.folder), *words],
            env={**os.environ, **who},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def commit(self, **files: str) -> str:
        """Write files, commit everything, and return the commit's id."""
        for name, text in files.items():
            self.write(name, text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=x")
        return self.git("rev-parse", "HEAD")

    def write(self, name: str, text: str) -> None:
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def add_tasks(self, count: int, folder: str = "tasks") -> None:
        for number in range(count):
            self.write(f"{folder}/task-{number}/task.toml", "[environment]\nallow_internet = false\n")
            self.write(f"{folder}/task-{number}/instruction.md", f"Make done number {number}.\n")


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    made = Origin(tmp_path / "origin")
    made.folder.mkdir()
    made.git("init", "--quiet", "--initial-branch=main")
    made.git("config", "uploadpack.allowFilter", "true")
    return made


@pytest.fixture
def said() -> list[str]:
    """What was said of the progress."""
    return []


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> Copies:
    monkeypatch.setenv("SWEEP_CACHE", str(tmp_path / "cache"))
    return Copies([], said.append)
