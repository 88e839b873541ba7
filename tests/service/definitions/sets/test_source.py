"""Words that name a benchmark somewhere else."""

from pathlib import Path

import pytest

from orchestrator.core.errors import UsageError
from orchestrator.service.definitions.sets.source import ArchiveFile, GitAddress, RegistryName, parse_source


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("git+https://host/org/repo", GitAddress(url="https://host/org/repo")),
        ("git+https://host/org/repo.git@v1.2", GitAddress(url="https://host/org/repo.git", ref="v1.2")),
        ("git+https://me@host/repo", GitAddress(url="https://me@host/repo")),
        ("git+ssh://git@host/repo@main#a/b/", GitAddress(url="ssh://git@host/repo", ref="main", folder="a/b")),
        ("git+file:///srv/x@feature/y", GitAddress(url="file:///srv/x", ref="feature/y")),
        ("git+/srv/x#sub", GitAddress(url="/srv/x", folder="sub")),
        ("https://host/org/repo", GitAddress(url="https://host/org/repo")),
        ("https://host/org/repo@v1", GitAddress(url="https://host/org/repo", ref="v1")),
        ("https://host/org/repo/tree/main/a/b", GitAddress(url="https://host/org/repo", tree="main/a/b")),
        ("https://host/g/sub/repo/-/tree/v1/", GitAddress(url="https://host/g/sub/repo", tree="v1")),
        ("https://host/datasets/org/repo", GitAddress(url="https://host/datasets/org/repo")),
        ("terminal-bench@2.0", RegistryName(name="terminal-bench", version="2.0")),
        ("org/set@1.0", RegistryName(name="org/set", version="1.0")),
        ("terminal-bench", RegistryName(name="terminal-bench")),
        ("./tasks.tar.gz", ArchiveFile(file=Path.cwd() / "tasks.tar.gz")),
        ("tasks.tgz", ArchiveFile(file=Path.cwd() / "tasks.tgz")),
        ("./folder", None),
        ("../x", None),
    ],
)
def test_words_are_read_as_their_author_meant_them(words: str, wanted: object) -> None:
    assert parse_source(words) == wanted


def test_a_folder_of_this_machine_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "terminal-bench").mkdir()
    assert parse_source("terminal-bench") is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("git+", "is no address"),
        ("git+--upload-pack=x", "is no address"),
        ("git+https://host", "is no address"),
        ("git+https://host/org/repo@", "was expected after the @"),
        ("git+https://host/org/repo#../x", "leaves the repository"),
        ("https://host/x", "HOST/ORG/REPO was expected"),
        ("git+https://me:secret@host/org/repo", "credential helper"),
        ("https://me:secret@host/org/repo", "credential helper"),
        ("https://host/x/y.tar.gz", "download it"),
    ],
)
def test_words_that_are_none_are_refused_with_what_was_expected(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_source(words)
