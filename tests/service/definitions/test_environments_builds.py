"""Environments without an image: built once, as their folder says, and kept whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.service.definitions.catalog import Catalog
from orchestrator.service.environments.environments import Environments
from orchestrator.service.errors import NotFound
from orchestrator.service.sandbox.prepared import Healthcheck, Preparation, Prepared
from orchestrator.service.sandbox.provider import BoxStartFailed, Provider

pytestmark = pytest.mark.anyio
Make = Callable[..., Path]


def environments(folder: Path, provider: Provider) -> Environments:
    cache = folder.parent.parent / "cache"
    return Environments(find_blueprint=Catalog([folder.parent]).blueprint, provider=provider, cache=cache, shared=cache)


async def blueprint_of(folder: Path) -> str:
    catalog = Catalog([folder])
    entry = (await catalog.entries())[0]
    view: Any = await catalog.scenario(entry.id)
    return str(view["environment"]["blueprint_id"])


async def prepared(folder: Path, provider: Provider) -> Prepared:
    return await environments(folder, provider).prepare(await blueprint_of(folder), Preparation())


def tree(prepared: Prepared) -> dict[str, str]:
    root = prepared.root
    assert root is not None
    return {path.relative_to(root).as_posix(): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


async def test_without_a_dockerfile_the_files_are_in_the_working_directory(scenario: Make, process: Provider) -> None:
    files = {
        "environment/setup.sh": "echo ready\n",
        "environment/.hidden": "h",
        "environment/tests/test_it.py": "t",
        "task.toml": '[environment]\nallow_internet = true\nallowed_hosts = ["a.test"]\nmemory_mb = 512\n'
        'env = { MODE = "fast" }\n',
    }
    found = await prepared(scenario(files), process)
    assert tree(found) == {"app/main.py": "print('hello')\n", "app/.hidden": "h", "app/tests/test_it.py": "t"}
    assert (found.working_directory, found.environment, found.network) == ("/app", {"MODE": "fast"}, True)
    assert found.setup == ("echo ready\n",)
    assert found.hosts == ("a.test",)
    assert found.resources is not None
    assert found.resources.memory == 512 << 20


async def test_a_health_check_is_kept_with_the_environment(scenario: Make, process: Provider) -> None:
    task = '[environment.healthcheck]\ncommand = "true"\ninterval_sec = 0\ntimeout_sec = 2.5\nretries = 1\n'
    folder = scenario({"task.toml": task})
    there = environments(folder, process)
    check = Healthcheck(command="true", interval=0, timeout=2.5, retries=1)
    assert (await there.prepare(await blueprint_of(folder), Preparation())).healthcheck == check
    assert (await environments(folder, process).prepare(await blueprint_of(folder), Preparation())).healthcheck == check
    assert (await prepared(scenario(name="other"), process)).healthcheck is None


async def test_an_environment_that_was_kept_before_there_were_health_checks_is_read(
    scenario: Make, process: Provider
) -> None:
    folder = scenario()
    before = await prepared(folder, process)
    assert before.root is not None
    place = before.root.parent / "environment.json"
    facts = json.loads(place.read_bytes())
    del facts["healthcheck"]
    place.write_text(json.dumps(facts))
    assert await prepared(folder, process) == before


async def test_workdir_of_the_task_is_where_the_files_go(scenario: Make, process: Provider) -> None:
    found = await prepared(scenario({"task.toml": '[environment]\nworkdir = "/srv/work"\n'}), process)
    assert (list(tree(found)), found.working_directory) == (["srv/work/main.py"], "/srv/work")


async def test_an_empty_environment_is_an_empty_working_directory(scenario: Make, process: Provider) -> None:
    found = await prepared(scenario({"environment/main.py": None}), process)
    assert found.root is not None
    assert (found.root / "app").is_dir()


async def test_an_unknown_blueprint_is_not_found(scenario: Make, process: Provider) -> None:
    with pytest.raises(NotFound, match="There is no blueprint 'bpt_other'"):
        await environments(scenario(), process).prepare("bpt_other", Preparation())


async def test_a_blueprint_is_found_without_its_scenario_having_been_read(scenario: Make, process: Provider) -> None:
    scenario({"task.toml": "broken"}, name="broken")
    folder = scenario()
    assert tree(await environments(folder, process).prepare(await blueprint_of(folder), Preparation()))


async def test_an_environment_is_built_once_and_outlives_its_folder(scenario: Make, process: Provider) -> None:
    folder = scenario()
    key = await blueprint_of(folder)
    first = await environments(folder, process).prepare(key, Preparation())
    before = tree(first)
    (folder / "environment" / "main.py").write_text("print('other')\n")
    again = environments(folder, process)
    assert tree(await again.prepare(key, Preparation())) == before
    assert await blueprint_of(folder) != key
    assert await again.prepare(key, Preparation()) == first


async def test_a_broken_environment_is_not_taken_for_an_equal_one_that_was_built(
    scenario: Make, process: Provider
) -> None:
    """The same files, but for one that cannot be used."""
    good, bad = scenario(name="good"), scenario(name="bad")
    os.mkfifo(bad / "environment" / "pipe")
    known = environments(good, process)
    await known.prepare(await blueprint_of(good), Preparation())
    with pytest.raises(BoxStartFailed, match="environment/pipe: is a pipe"):
        await known.prepare(await blueprint_of(bad), Preparation())


@pytest.mark.parametrize("harm", ["facts", "facts garbled", "root", "a file", "a byte"])
async def test_a_torn_entry_is_built_again(scenario: Make, process: Provider, harm: str) -> None:
    folder = scenario()
    key = await blueprint_of(folder)
    found = await environments(folder, process).prepare(key, Preparation())
    assert found.root is not None
    facts, file = found.root.parent / "environment.json", found.root / "app" / "main.py"
    if harm == "facts":
        facts.unlink()
    elif harm == "facts garbled":
        facts.write_bytes(b"{")
    elif harm == "root":
        found.root.rename(found.root.parent / "gone")
    elif harm == "a file":
        file.unlink()
    else:
        file.write_text("print('hell")
    assert tree(await environments(folder, process).prepare(key, Preparation())) == {"app/main.py": "print('hello')\n"}


async def test_an_unfinished_build_of_a_killed_process_is_removed_at_the_next_build(
    scenario: Make, process: Provider
) -> None:
    folder = scenario()
    left = folder.parent.parent / "cache" / "environments" / ".building-999999999-abc"
    (left / "tree-0").mkdir(parents=True)
    await prepared(folder, process)
    assert not left.exists()


async def test_an_environment_with_an_image_needs_walls(scenario: Make, process: Provider) -> None:
    folder = scenario({"environment/Dockerfile": "FROM busybox\n"})
    with pytest.raises(BoxStartFailed, match="asks for an image, which needs devboxes with walls"):
        await prepared(folder, process)


async def test_a_build_that_is_impossible_fails_in_the_words_of_the_check(scenario: Make, process: Provider) -> None:
    folder = scenario({"environment/Dockerfile": "FROM x\nCOPY nothing .\nWORKDIR\n"})
    with pytest.raises(BoxStartFailed) as failure:
        await prepared(folder, process)
    assert "line 2: COPY: nothing is not in the context" in str(failure.value)
    assert "line 3: WORKDIR: it needs something after it" in str(failure.value)
