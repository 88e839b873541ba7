"""Environments are built once, as their folder says, and kept whole."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestrator.service.definitions.catalog import Catalog
from orchestrator.service.environments.environments import Environments
from orchestrator.service.errors import NotFound
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.prepared import Healthcheck, Prepared
from orchestrator.service.sandbox.provider import Box, BoxSpec, BoxStartFailed, Capability, Provider, shell

pytestmark = pytest.mark.anyio
Make = Callable[..., Path]


@dataclass(slots=True)
class Watched:
    """A provider that counts the boxes it starts, and holds each until it is let go."""

    provider: Provider
    started: int = 0
    reached: anyio.Event = field(default_factory=anyio.Event)
    go: anyio.Event = field(default_factory=anyio.Event)

    @property
    def name(self) -> str:
        return self.provider.name

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self.provider.capabilities

    async def start(self, spec: BoxSpec, *, beside: Box | None = None) -> Box:
        self.started += 1
        self.reached.set()
        await self.go.wait()
        return await self.provider.start(spec, beside=beside)

    async def close(self) -> None:
        await self.provider.close()


def environments(folder: Path, provider: Provider) -> Environments:
    cache = folder.parent.parent / "cache"
    return Environments(find_blueprint=Catalog([folder.parent]).blueprint, provider=provider, cache=cache)


async def blueprint_of(folder: Path) -> str:
    catalog = Catalog([folder])
    entry = (await catalog.entries())[0]
    view: Any = await catalog.scenario(entry.id)
    return str(view["environment"]["blueprint_id"])


async def prepared(folder: Path, provider: Provider) -> Prepared:
    return await environments(folder, provider).prepare(await blueprint_of(folder))


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
    assert (await there.prepare(await blueprint_of(folder))).healthcheck == check
    assert (await environments(folder, process).prepare(await blueprint_of(folder))).healthcheck == check
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


async def test_a_dockerfile_is_carried_out_in_boxes_without_network(scenario: Make, local: Provider) -> None:
    dockerfile = """\
    FROM python:3.12
    ENV NAME=world PATH=/app/bin:$PATH
    WORKDIR /app
    COPY main.py ./
    RUN python3 main.py > first.txt && mkdir bin
    RUN printf '#!/bin/sh\\necho tool $NAME\\n' > bin/tool && chmod +x bin/tool
    RUN cat /proc/net/dev | tail -n +3 | cut -d: -f1 | xargs > devices
    WORKDIR /srv/data
    RUN ["sh", "-c", "pwd > where; tool > said; rm /app/main.py"]
    COPY <<EOF after.txt
    after $NAME
    EOF
    COPY extra /app/extra/
    RUN cat after.txt /app/extra/x.txt > both.txt
    WORKDIR /app
    """
    text = "\n".join(line.strip() for line in dockerfile.splitlines())
    folder = scenario(
        {"environment/Dockerfile": text, "environment/extra/x.txt": "x\n", "environment/setup.sh": "true"}
    )
    found = await prepared(folder, local)
    assert tree(found) == {
        "app/bin/tool": "#!/bin/sh\necho tool $NAME\n",
        "app/devices": "lo\n",
        "app/extra/x.txt": "x\n",
        "app/first.txt": "hello\n",
        "srv/data/after.txt": "after world\n",
        "srv/data/both.txt": "after world\nx\n",
        "srv/data/said": "tool world\n",
        "srv/data/where": "/srv/data\n",
    }
    assert found.working_directory == "/app"
    assert found.setup == ("true",)
    path = found.environment["PATH"]
    assert path.startswith("/app/bin:/")
    assert "\0" not in path
    box = await local.start(
        BoxSpec(id="use", root=found.root, environment=found.environment, working_directory=found.working_directory)
    )
    try:
        assert (await run(box, shell("tool; python3 -c 'print(1)'"), timeout=30)).stdout == b"tool world\n1\n"
    finally:
        await box.stop()


async def test_without_isolation_commands_see_their_folders_below_the_boxs(scenario: Make, process: Provider) -> None:
    dockerfile = "FROM x\nWORKDIR /app/sub\nCOPY main.py ./\nRUN python3 main.py > out.txt\n"
    found = await prepared(scenario({"environment/Dockerfile": dockerfile}), process)
    assert tree(found)["app/sub/out.txt"] == "hello\n"


async def test_a_command_that_fails_names_its_line_and_shows_its_end(scenario: Make, process: Provider) -> None:
    dockerfile = "FROM x\nCOPY main.py .\n# why\nRUN echo fine && \\\n    echo broken >&2 && exit 3\n"
    with pytest.raises(BoxStartFailed) as failure:
        await prepared(scenario({"environment/Dockerfile": dockerfile}), process)
    message = str(failure.value)
    assert message.startswith(
        "environment/Dockerfile:4: RUN echo fine &&     echo broken >&2 && exit 3: ended with status 3"
    )
    assert message.endswith("fine\nbroken")


async def test_writing_to_the_system_fails_with_what_can_be_written(scenario: Make, local: Provider) -> None:
    dockerfile = "FROM x\nRUN touch /usr/local/x\n"
    with pytest.raises(BoxStartFailed, match="Only /app, /home/user, /tmp and the folders that WORKDIR or COPY name"):
        await prepared(scenario({"environment/Dockerfile": dockerfile}), local)


async def test_building_has_a_time_limit(scenario: Make, process: Provider) -> None:
    task = "[environment]\nallow_internet = false\nbuild_timeout_sec = 0.5\n"
    folder = scenario({"task.toml": task, "environment/Dockerfile": "FROM x\nRUN sleep 60\n"})
    with pytest.raises(BoxStartFailed, match=r"Dockerfile:2: RUN sleep 60: ran out of time .*build_timeout_sec = 0.5"):
        await prepared(folder, process)


async def test_a_build_that_is_impossible_here_fails_in_the_words_of_the_check(
    scenario: Make, process: Provider
) -> None:
    folder = scenario({"environment/Dockerfile": "FROM x\nRUN apt-get update\nCOPY nothing .\nUSER me\n"})
    with pytest.raises(BoxStartFailed) as failure:
        await prepared(folder, process)
    assert "line 2: RUN: apt-get needs root" in str(failure.value)
    assert "line 3: COPY nothing .: nothing is not in environment/" in str(failure.value)
    assert "line 4: USER: me" in str(failure.value)


async def test_an_unknown_blueprint_is_not_found(scenario: Make, process: Provider) -> None:
    with pytest.raises(NotFound, match="There is no blueprint 'bpt_other'"):
        await environments(scenario(), process).prepare("bpt_other")


async def test_a_blueprint_is_found_without_its_scenario_having_been_read(scenario: Make, process: Provider) -> None:
    scenario({"task.toml": "broken"}, name="broken")
    folder = scenario()
    assert tree(await environments(folder, process).prepare(await blueprint_of(folder)))


async def test_an_environment_is_built_once_and_outlives_its_folder(scenario: Make, process: Provider) -> None:
    folder = scenario({"environment/Dockerfile": "FROM x\nCOPY main.py .\nRUN date +%s%N > when\n"})
    key = await blueprint_of(folder)
    first = await environments(folder, process).prepare(key)
    before = tree(first)
    (folder / "environment" / "main.py").write_text("print('other')\n")
    again = environments(folder, process)
    assert tree(await again.prepare(key)) == before
    assert await blueprint_of(folder) != key
    assert await again.prepare(key) == first


async def test_many_who_ask_at_once_get_one_build(scenario: Make, process: Provider) -> None:
    folder = scenario({"environment/Dockerfile": "FROM x\nRUN date +%s%N > when\n"})
    watched = Watched(process)
    watched.go.set()
    known, key, found = environments(folder, watched), await blueprint_of(folder), list[Prepared]()

    async def ask() -> None:
        found.append(await known.prepare(key))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ask)
    assert (watched.started, len(found), len(set(map(str, found)))) == (1, 20, 1)
    assert not list((folder.parent.parent / "cache" / "environments").glob(".building-*"))


async def test_a_broken_environment_is_not_taken_for_an_equal_one_that_was_built(
    scenario: Make, process: Provider
) -> None:
    """The same files, but for one that cannot be used."""
    good, bad = scenario(name="good"), scenario(name="bad")
    os.mkfifo(bad / "environment" / "pipe")
    known = environments(good, process)
    await known.prepare(await blueprint_of(good))
    with pytest.raises(BoxStartFailed, match="environment/pipe: is a pipe"):
        await known.prepare(await blueprint_of(bad))


async def test_an_environment_edited_during_its_build_is_not_kept_under_the_old_digest(
    scenario: Make, process: Provider
) -> None:
    files = {"environment/Dockerfile": "FROM x\nRUN true\nCOPY main.py /app/\n", "environment/main.py": "first\n"}
    folder = scenario(files)
    watched = Watched(process)
    known, key = environments(folder, watched), await blueprint_of(folder)

    async def edit() -> None:
        await watched.reached.wait()
        (folder / "environment/main.py").write_text("other\n")
        watched.go.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(edit)
        with pytest.raises((BoxStartFailed, NotFound), match="changed"):
            await known.prepare(key)
    (folder / "environment/main.py").write_text("first\n")
    assert tree(await known.prepare(key)) == {"app/main.py": "first\n"}


async def test_a_cancelled_builder_leaves_nothing_and_the_next_takes_over(scenario: Make, process: Provider) -> None:
    folder = scenario({"environment/Dockerfile": "FROM x\nRUN date > when\n"})
    watched = Watched(process)
    known, key, found = environments(folder, watched), await blueprint_of(folder), list[Prepared]()
    first = anyio.CancelScope()

    async def ask(scope: anyio.CancelScope) -> None:
        with scope:
            found.append(await known.prepare(key))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, first)
        await watched.reached.wait()
        tasks.start_soon(ask, anyio.CancelScope())
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        watched.go.set()
    assert (watched.started, len(found)) == (2, 1)
    assert [path.name for path in (folder.parent.parent / "cache" / "environments").iterdir()] == [
        found[0].root.parent.name if found[0].root else ""
    ]


async def test_a_failure_counts_for_all_who_waited_and_not_for_those_who_come_later(
    scenario: Make, process: Provider
) -> None:
    folder = scenario({"environment/Dockerfile": "FROM x\nRUN exit 1\n"})
    watched = Watched(process)
    known, key, failures = environments(folder, watched), await blueprint_of(folder), list[str]()

    async def ask() -> None:
        try:
            await known.prepare(key)
        except BoxStartFailed as error:
            failures.append(str(error))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(ask)
        await watched.reached.wait()
        await anyio.wait_all_tasks_blocked()
        watched.go.set()
    assert (watched.started, len(failures), len(set(failures))) == (1, 10, 1)
    await ask()
    assert watched.started == 2


@pytest.mark.parametrize("harm", ["facts", "facts garbled", "root", "a file", "a byte"])
async def test_a_torn_entry_is_built_again(scenario: Make, process: Provider, harm: str) -> None:
    folder = scenario()
    key = await blueprint_of(folder)
    found = await environments(folder, process).prepare(key)
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
    assert tree(await environments(folder, process).prepare(key)) == {"app/main.py": "print('hello')\n"}


async def test_an_unfinished_build_of_a_killed_process_is_removed_at_the_next_build(
    scenario: Make, process: Provider
) -> None:
    folder = scenario()
    left = folder.parent.parent / "cache" / "environments" / ".building-999999999-abc"
    (left / "tree-0").mkdir(parents=True)
    await prepared(folder, process)
    assert not left.exists()


async def test_a_setup_script_that_the_dockerfile_runs_does_not_run_again(scenario: Make, process: Provider) -> None:
    files = {
        "environment/setup.sh": "echo done > done.txt\n",
        "environment/Dockerfile": "FROM x\nCOPY setup.sh ./\nRUN sh setup.sh\n",
    }
    found = await prepared(scenario(files), process)
    assert found.setup == ()
    assert tree(found)["app/done.txt"] == "done\n"


async def test_a_setup_script_of_ours_is_not_copied_with_the_rest(scenario: Make, process: Provider) -> None:
    files = {"environment/setup.sh": "true\n", "environment/Dockerfile": "FROM x\nCOPY . .\n"}
    found = await prepared(scenario(files), process)
    assert set(tree(found)) == {"app/Dockerfile", "app/main.py"}
    assert found.setup == ("true\n",)
