"""Names of collected files: none by which a program takes a file for settings of its own."""

import pytest

from orchestrator.engine.artifacts.unpack import harmless


@pytest.mark.parametrize(
    ("name", "here"),
    [
        (".git", "dot-git"),
        (".GIT", "dot-GIT"),
        (".git ", "dot-git"),
        (".git. .", "dot-git"),
        (".g\u200cit", "dot-git"),
        ("\ufeff.git", "dot-git"),
        (".git::$INDEX_ALLOCATION", "dot-git"),
        (".git:x", "dot-git"),
        ("git~1", "not-git~1"),
        ("GIT~2", "not-GIT~2"),
        (".\uff47it", "dot-\uff47it"),
        (".envrc", "dot-envrc"),
        (".v\u017fcode", "dot-v\u017fcode"),
        (".idea", "dot-idea"),
        ("vscode~1", "not-vscode~1"),
        (".mise.toml", "dot-mise.toml"),
        ("mise.toml", "not-mise.toml"),
        (".tool-versions", "dot-tool-versions"),
        ("HEAD", "not-HEAD"),
        (".git\\hooks", ".git_hooks"),
        ("a\\.git", "a_.git"),
    ],
)
def test_a_name_that_starts_programs_is_another_at_home(name: str, here: str) -> None:
    assert harmless(name) == here
    assert harmless(here) == here


@pytest.mark.parametrize("name", ["git", ".gitignore", "a.git", "report.md", ".tool", "…", " ", "-rf", "HEADER", "~"])
def test_every_other_name_stays(name: str) -> None:
    assert harmless(name) == name
