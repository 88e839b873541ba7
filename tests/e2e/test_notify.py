"""`--notify` on whole sweeps: who is told what, and where an address never is."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.docs.pages import PAGES
from tests.docs.test_manual import TYPES, rows
from tests.receivers import KEY
from tests.receivers import hook as hook  # noqa: PLC0414 - a fixture

if TYPE_CHECKING:
    from .conftest import Desk

#: Settings as a file has them; the address is in the clear.
SETTINGS: Final = """
benchmark = "six"
limit = 2
notify = ["ADDRESS", "tee -a told.jsonl >/dev/null; ps -eo args >ps.txt", "exit 3"]

[[arms]]
agent = "oracle"
"""


def told(desk: "Desk") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (desk.folder / "told.jsonl").read_text().splitlines()]


def files_with(word: str, folder: Path) -> list[str]:
    return [str(file) for file in folder.rglob("*") if file.is_file() and word.encode() in file.read_bytes()]


def test_the_end_is_told_and_the_address_is_in_no_file_and_no_process(
    served: "Desk", hook: tuple[str, list[tuple[str, Any]]]
) -> None:
    """Not in the copy of the settings, the manifest, the log, nor where an agent prints it."""
    url, posts = hook
    (served.folder / "mine.toml").write_text(SETTINGS.replace("ADDRESS", url))
    settings = tomllib.loads((served.folder / "mine.toml").read_text())
    ended = served.sweep("run", "--config", "mine.toml", "--name", "it")
    assert ended.err.count("notifier 3 (a command) failed: exit status 3.") + ended.out.count("exit status 3") == 1
    (one,) = told(served)
    assert (one["kind"], one["scored"], one["left"], one["sweep"]["name"]) == ("ended", 2, 0, "it")
    assert one["arms"][0]["mean"] == 1.0
    assert one["command"] == f"sweep show {served.folder / 'runs/it'}"
    types = {row[0].strip("`"): TYPES[row[1]] for row in rows(PAGES["notifications"].partition("## The JSON")[2])[1:]}
    assert list(types) == list(one)
    assert [key for key, kind in types.items() if not isinstance(one[key], kind)] == []
    assert [(path, body["title"]) for path, body in posts] == [(f"/{KEY}", one["title"])]
    copy = tomllib.loads((served.folder / "runs/it/sweep.toml").read_text())
    assert copy.pop("notify") == ["*" * len(each) for each in settings.pop("notify")]
    assert copy == settings
    assert files_with(KEY, served.folder / "runs") == []
    assert KEY not in (served.folder / "ps.txt").read_text()
    assert shutil.which("ps") is None or "orchestrator" in (served.folder / "ps.txt").read_text()

    served.sweep("resume", "it", "--notify", "cat >>told.jsonl")
    assert len(told(served)) == 1, "there was nothing to do"


def test_a_systematic_failure_and_the_stop_are_told(served: "Desk") -> None:
    (served.folder / "bad.toml").write_text('install = "echo no such package; exit 1"\nrun = "true"\n')
    words = ("run", "six", "--agent", "./bad.toml", "--same-failures", "2", "--devboxes", "1", "--attempts", "1")
    served.sweep(*words, "--name", "bad", "--notify", "cat >>told.jsonl", status=1)
    failing, stopped = told(served)
    assert (failing["kind"], stopped["kind"]) == ("failing", "stopped")
    assert failing["reason"].startswith(
        "The sweep stops itself: the agent of bad could not be installed 2 times in a row"
    )
    assert stopped["failures"][0]["kind"] == "AgentSetupFailed"
    assert stopped["left"] == 5


@pytest.mark.parametrize("command", ["run", "resume"])
def test_an_address_that_is_typed_is_refused_before_anything_starts(served: "Desk", command: str) -> None:
    said = served.refused(command, "six", "--notify", f"json://127.0.0.1/{KEY}")
    assert said.startswith("sweep: --notify: an address is a secret, and `ps` shows what is typed.")
    assert KEY not in said
