"""Files edited, moved away or replaced while the service runs are noticed when they are read."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.service.definitions import index
from orchestrator.service.definitions.catalog import Catalog
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.definitions.index import identify
from orchestrator.service.errors import Away, NotFound
from orchestrator.service.scoring.scoring import Scoring
from orchestrator.service.store import ListQuery, Store

pytestmark = pytest.mark.anyio

Make = Callable[..., Path]
Write = Callable[[Path, Mapping[str, str]], Path]

FIRST = identify("scn", "bench/first")
CUSTOM = '[[scorers]]\nname = "it"\ntype = "custom_scorer"\ncustom_scorer_type = "half"\n'
EVERY = ListQuery(limit=100, starting_after=None, search="", with_total=True)


async def digest(catalog: Catalog, identity: str = FIRST) -> str:
    view = await catalog.scenario(identity)
    assert view is not None
    return str(view["metadata"]["digest"])


def edit_unseen(path: Path) -> None:
    """Another content of the same size, with the same times as far as anybody can set them."""
    before = path.stat()
    data = path.read_bytes()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # within a tick of the clock nothing tells
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "name", ["instruction.md", "environment/main.py", "solution/solve.sh", "tests/test.sh", "../half.sh"]
)
async def test_an_edit_that_keeps_size_and_time_changes_the_digest(
    scenario: Make, write: Write, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scenario({"task.toml": CUSTOM})
    write(folder.parent, {"benchmark.toml": '[custom_scorers]\nhalf = "half.sh"\n', "half.sh": "echo score=0.5\n"})
    monkeypatch.setattr(index, "TICK_NS", -(10**15))  # what was just written is kept as if it were old
    catalog = Catalog([folder.parent])
    before = await digest(catalog)
    assert await digest(catalog) == before
    edit_unseen(folder / name)
    assert await digest(catalog) != before


async def test_edits_within_a_tick_of_the_clock_are_noticed(scenario: Make) -> None:
    """Made as quickly as possible: same size, same times, same file."""
    folder = scenario()
    catalog, seen = Catalog([folder.parent]), set[str]()
    for number in range(100, 200):
        (folder / "instruction.md").write_text(f"{number}\n")
        seen.add(await digest(catalog))
    assert len(seen) == 100


async def test_files_beside_a_scenarios_parts_are_no_part_of_it(scenario: Make, write: Write) -> None:
    folder = scenario()
    catalog = Catalog([folder.parent])
    before = await digest(catalog)
    write(folder, {"README.md": "For people.\n", "notes/today": "x"})
    assert await digest(catalog) == before


@contextmanager
def flipping(path: Path, *contents: str) -> Iterator[None]:
    """Meanwhile the file's content changes as often as the disk allows."""
    done = threading.Event()

    def flip() -> None:
        while not done.is_set():
            for content in contents:
                path.write_text(content)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


async def test_a_digest_is_that_of_what_was_handed_out_with_it(scenario: Make) -> None:
    """However often the tests are edited while they are read."""
    folder = scenario()
    catalog, seen = Catalog([folder.parent]), dict[str, set[str]]()
    with flipping(
        folder / "tests/test.sh", "echo 1 >/logs/verifier/reward.txt\n", "echo 0 >/logs/verifier/reward.txt\n"
    ):
        for _ in range(200):
            view: Any = await catalog.scenario(FIRST)
            script = view["scoring_contract"]["scoring_function_parameters"][0]["scorer"]["bash_script"]
            seen.setdefault(view["metadata"]["digest"], set()).add(script)
    assert all(len(scripts) == 1 for scripts in seen.values())


async def test_a_folder_that_was_moved_away_is_away_and_back_with_the_same_ids(
    scenario: Make, store: Store, tmp_path: Path
) -> None:
    bench = scenario().parent
    catalog = Catalog([bench])
    definitions = Definitions(store=store, catalog=catalog, scoring=Scoring(cache=tmp_path / "cache"))
    before = await definitions.scenario(FIRST)
    moved = bench.rename(tmp_path / "elsewhere")
    words = f"The folder {bench} is not there, or holds no benchmark any more; put it back"
    for _ in range(2):
        with pytest.raises(Away, match=words):
            await definitions.scenario(FIRST)
        with pytest.raises(Away, match=words):
            await definitions.definitions(identify("bmd", "bench"), EVERY)
        with pytest.raises(Away, match=words):
            await catalog.blueprint(before["environment"]["blueprint_id"])
    with pytest.raises(NotFound):
        await definitions.scenario("scn_never_there")
    bench.mkdir()  # where a disk was mounted an empty folder is left
    with pytest.raises(Away, match=words):
        await definitions.scenario(FIRST)
    bench.rmdir()
    moved.rename(bench)
    assert await definitions.scenario(FIRST) == before
    assert (await definitions.definitions(identify("bmd", "bench"), EVERY))["total_count"] == 1


async def test_one_folder_that_is_away_does_not_take_others_along(scenario: Make, tmp_path: Path) -> None:
    one, two = scenario(benchmark="one").parent, scenario(benchmark="two").parent
    catalog = Catalog([one, two])
    assert len(await catalog.entries()) == 2
    one.rename(tmp_path / "elsewhere")
    assert [each.name for each in await catalog.benchmarks()] == ["two"]
    assert await catalog.scenario(identify("scn", "two/first"))


async def test_a_scenario_that_its_author_removed_is_no_more(scenario: Make, tmp_path: Path) -> None:
    folder = scenario()
    scenario(name="second")
    catalog = Catalog([folder.parent])
    assert await catalog.scenario(FIRST)
    folder.rename(tmp_path / "elsewhere")
    assert await catalog.scenario(FIRST) is None


async def test_a_created_scenario_has_a_digest_of_what_decides_its_score(
    definitions: Definitions,
) -> None:
    scorer = {"type": "custom_scorer", "custom_scorer_type": "own"}
    contract = {"scoring_function_parameters": [{"name": "it", "weight": 1.0, "scorer": scorer}]}
    own = await definitions.create_scorer({"type": "own", "bash_script": "echo score=1"}, None)
    fields = {"name": "x", "input_context": {"problem_statement": "Do it."}, "scoring_contract": contract}
    identity = (await definitions.create_scenario({**fields, "metadata": {"digest": "mine", "a": "b"}}, None))["id"]

    async def now() -> str:
        found = await definitions.scenario(identity)
        (listed,) = (await definitions.scenarios(EVERY)).items
        assert listed["metadata"] == found["metadata"]
        assert found["metadata"]["a"] == "b"
        return str(found["metadata"]["digest"])

    seen = [await now()]
    await definitions.update_scenario(identity, {"name": "another"})
    assert await now() == seen[0], "a name decides nothing"
    changes: list[dict[str, Any]] = [
        {"input_context": {"problem_statement": "Do it otherwise."}},
        {"reference_output": "true"},
        {"scorer_timeout_sec": 7},
        {"environment_parameters": {"working_directory": "/app"}},
    ]
    for change in changes:
        await definitions.update_scenario(identity, change)
        seen.append(await now())
    await definitions.update_scorer(own["id"], {"bash_script": "echo score=0"})
    seen.append(await now())
    assert len(set(seen)) == 6
    assert "mine" not in seen


@pytest.fixture
def definitions(store: Store, tmp_path: Path) -> Definitions:
    return Definitions(store=store, catalog=Catalog([tmp_path]), scoring=Scoring(cache=tmp_path / "cache"))
