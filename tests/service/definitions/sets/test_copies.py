"""Copies of benchmarks from git repositories, registries and archives."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator.commands.fetched import fetch
from orchestrator.core.errors import Unavailable, UsageError
from orchestrator.service.definitions.sets import git
from orchestrator.service.definitions.sets.copies import Copies
from orchestrator.service.definitions.sets.source import parse_source
from tests.waiting import until

from .conftest import Origin

pytestmark = pytest.mark.anyio


async def got(copies: Copies, words: str) -> Path:
    source = parse_source(words)
    assert source is not None
    return await copies.get(await copies.find_origin(source))


async def test_a_repository_is_got_at_a_branch_a_tag_a_commit_and_its_usual_branch(
    origin: Origin, copies: Copies
) -> None:
    first = origin.commit(**{"a/task.toml": "", "a/instruction.md": "one"})
    origin.git("tag", "--annotate", "--message=x", "v1")
    origin.commit(**{"a/instruction.md": "two"})
    origin.git("checkout", "--quiet", "-b", "feature/x")
    origin.commit(**{"a/instruction.md": "three"})
    origin.git("checkout", "--quiet", "main")
    asked = {"": "two", "@v1": "one", f"@{first}": "one", "@feature/x": "three", "@main": "two"}
    for ref, text in asked.items():
        folder = await got(copies, f"git+{origin.url}{ref}")
        assert folder.name == "origin"
        assert (folder / "a/instruction.md").read_text() == text
        assert not list(folder.rglob(".git"))


async def test_the_ref_of_a_browsers_address_may_have_slashes() -> None:
    refs = {"HEAD": "1", "refs/heads/main": "1", "refs/heads/feature/x": "2", "refs/tags/v1": "3"}
    assert git.split("u", refs, "feature/x/tasks/hard") == ("2", "tasks/hard")
    assert git.split("u", refs, "v1") == ("3", "")
    with pytest.raises(UsageError, match="did you mean main"):
        git.split("u", refs, "mian/tasks")


async def test_only_the_folder_that_is_asked_for_comes(origin: Origin, copies: Copies, tmp_path: Path) -> None:
    origin.add_tasks(3, "sets/small")
    origin.write("sets/large/file", "x" * 100_000)
    origin.commit()
    folder = await got(copies, f"git+{origin.url}#sets/small")
    assert folder.name == "small"
    assert sorted(each.name for each in folder.iterdir()) == ["task-0", "task-1", "task-2"]
    packs = sum(each.stat().st_size for each in (tmp_path / "cache/repositories").rglob("*.pack"))
    assert packs < 10_000


async def test_of_a_repository_with_a_folder_of_tasks_that_is_the_benchmark(origin: Origin, copies: Copies) -> None:
    origin.add_tasks(2)
    origin.commit(**{"README.md": "x"})
    folder = await got(copies, f"git+{origin.url}")
    assert (folder.name, sorted(each.name for each in folder.iterdir())) == ("origin", ["task-0", "task-1"])


async def test_what_is_here_needs_no_network(origin: Origin, copies: Copies) -> None:
    origin.add_tasks(2)
    commit = origin.commit()
    folder = await got(copies, f"git+{origin.url}@main#tasks")
    origin.folder.rename(origin.folder.with_name("away"))
    for ref in ("main", commit):
        assert await got(Copies([], print), f"git+{origin.url}@{ref}#tasks") == folder
    with pytest.raises(Unavailable, match="does not appear to be a git repository"):
        await got(copies, f"git+{origin.url}/other")


async def test_a_fetch_that_was_ended_goes_on_where_it_was(
    origin: Origin, copies: Copies, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git, "_PIECE", 5)
    origin.add_tasks(30)
    origin.commit()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(got, copies, f"git+{origin.url}")
        await until(lambda: any(", 10 here" in each for each in said), "it does not begin")
        tasks.cancel_scope.cancel()
    said.clear()
    folder = await got(copies, f"git+{origin.url}")
    assert len(list(folder.iterdir())) == 30
    (first, *_) = (each for each in said if " here" in each)
    assert int(first.split()[1]) <= 22, "31 contents differ, and some had come"


async def test_a_folder_or_a_ref_that_is_not_there_is_named_with_what_is_near(origin: Origin, copies: Copies) -> None:
    origin.add_tasks(1)
    origin.commit()
    with pytest.raises(UsageError, match=r"no folder taks at .*did you mean tasks"):
        await got(copies, f"git+{origin.url}#taks")
    with pytest.raises(UsageError, match="has no mian: did you mean main"):
        await got(copies, f"git+{origin.url}@mian")
    with pytest.raises(Unavailable, match="has no commit"):
        await got(copies, f"git+{origin.url}@{'a' * 40}")


async def test_a_set_of_a_registry_has_folders_of_several_commits_and_is_pinned(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEP_CACHE", str(tmp_path / "cache"))
    origin.add_tasks(3)
    first = origin.commit()
    second = origin.commit(**{"tasks/task-1/instruction.md": "changed"})
    tasks = [
        {"name": "one", "git_url": origin.url, "git_commit_id": first, "path": "tasks/task-1"},
        {"name": "two", "git_url": origin.url, "git_commit_id": "HEAD", "path": "tasks/task-1"},
        {"git_url": origin.url, "git_commit_id": "main", "path": "tasks/task-2"},
        {"name": "again", "git_url": origin.url, "git_commit_id": "main", "path": "tasks/task-2"},
    ]
    listed = [
        {"name": "mine", "version": version, "description": "d", "tasks": tasks[:count], "metrics": []}
        for version, count in (("1.9", 1), ("1.10", 4), ("old", 1))
    ]
    (tmp_path / "registry.json").write_text(json.dumps(listed))
    copies = Copies([str(tmp_path / "registry.json")], print)
    found = await copies.find_origin(parse_source("mine"))  # type: ignore[arg-type]
    assert found.name == "mine@1.10"
    pinned = {part.commit: sorted(part.folders) for part in found.parts}
    assert pinned == {first: ["one"], second: ["again", "task-2", "two"]}
    folder = await copies.get(found)
    texts = {each.name: (each / "instruction.md").read_text() for each in folder.iterdir()}
    assert texts["one"] != texts["two"] == "changed"
    assert texts["again"] == texts["task-2"]
    with pytest.raises(UsageError, match=r"has no mine@3, but old, 1\.9, 1\.10"):
        await got(copies, "mine@3")
    with pytest.raises(UsageError, match="No benchmark is called mien: did you mean mine"):
        await got(copies, "mien@1")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"name": "../x", "git_url": "u", "path": "x"}, "no folder's"),
        ({"name": "x", "git_url": "u", "path": "../x"}, "leaves the repository"),
        ({"name": "x", "path": "x"}, "no git_url"),
        ({"name": "x", "git_url": "u"}, "missing required field `path`"),
    ],
)
async def test_a_registry_that_is_none_is_refused_by_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("SWEEP_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "registry.json"
    file.write_text(json.dumps([{"name": "mine", "version": "1", "tasks": [task]}]))
    with pytest.raises(UsageError, match=message) as refused:
        await got(Copies([str(file)], print), "mine@1")
    assert str(file) in refused.value.message


async def test_an_archive_is_unpacked_once_by_its_content(tmp_path: Path, copies: Copies) -> None:
    source = tmp_path / "tasks/one"
    source.mkdir(parents=True)
    (source / "task.toml").write_text("")
    for name, inside in (("set.tar.gz", "set-1.0"), ("bare.tgz", ".")):
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            archive.add(tmp_path / "tasks", inside)
        folder = await got(copies, str(tmp_path / name))
        assert [each.name for each in folder.iterdir()] == ["one"]
        assert folder.name == name.partition(".")[0]
    (tmp_path / "set.tar.gz").rename(tmp_path / "moved.tar.gz")
    with pytest.raises(UsageError, match="no such file"):
        await got(copies, str(tmp_path / "set.tar.gz"))


async def test_an_archive_writes_nowhere_else(tmp_path: Path, copies: Copies) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.add(__file__, "../../escaped")
    with pytest.raises(UsageError, match="cannot be unpacked"):
        await got(copies, str(tmp_path / "bad.tar"))
    assert not [each for each in os.walk(tmp_path) if "escaped" in each[2]]


@pytest.mark.parametrize(
    "origin",
    [
        {"name": "../x"},
        {"name": "x", "parts": [{"url": "u", "commit": "a" * 40, "folders": {"..": "x"}}]},
        {"name": "x", "parts": [{"url": "u", "commit": "a" * 40, "folders": {"": "../x"}}]},
        {"name": "x", "parts": [{"url": "u", "commit": "--upload-pack=x", "folders": {"": "x"}}]},
    ],
)
async def test_a_manifest_of_strangers_writes_nowhere_else(origin: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"manifest\.json is damaged: origin: .* is no"):
        await fetch("mine@1", [], endpoint=None, origin=origin)


async def test_a_link_in_the_place_of_a_task_shows_nothing_of_this_machine(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/secret").write_text("secret")
    origin.add_tasks(1)
    (origin.folder / "tasks/link").symlink_to(tmp_path / "home")
    commit = origin.commit()
    task = {"git_url": origin.url, "git_commit_id": commit, "path": "tasks/link"}
    (tmp_path / "registry.json").write_text(json.dumps([{"name": "mine", "version": "1", "tasks": [task]}]))
    with pytest.raises(UsageError, match="no folder tasks/link at"):
        await got(Copies([str(tmp_path / "registry.json")], print), "mine@1")
    with pytest.raises(UsageError, match="no folder tasks/link at"):
        await got(Copies([], print), f"git+{origin.url}#tasks/link")
