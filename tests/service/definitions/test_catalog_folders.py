"""Benchmarks and scenarios in a set of folders."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import UsageError
from orchestrator.service.definitions.catalog import Catalog
from orchestrator.service.errors import BadRequest

pytestmark = pytest.mark.anyio
Make = Callable[..., Path]
Write = Callable[[Path, Mapping[str, str]], Path]


def identity(prefix: str, name: str) -> str:
    return f"{prefix}_{hashlib.sha256(name.encode()).hexdigest()[:20]}"


async def names(catalog: Catalog) -> dict[str, list[str]]:
    """Scenario names by benchmark name."""
    entries = await catalog.entries()
    return {
        each.name: [entry.name for entry in entries if entry.benchmark_id == each.id]
        for each in await catalog.benchmarks()
    }


async def test_a_folder_of_scenarios_is_a_benchmark_named_after_it(scenario: Make, tmp_path: Path) -> None:
    scenario(name="b")
    scenario(name="a")
    (tmp_path / "bench" / "notes").mkdir()
    benchmark = (await Catalog([tmp_path / "bench"]).benchmarks())[0]
    assert benchmark.id == identity("bmd", "bench")
    assert benchmark.scenario_ids == [identity("scn", "bench/a"), identity("scn", "bench/b")]
    document = benchmark.document()
    assert (document["status"], document["is_public"]) == ("active", True)


async def test_benchmark_toml_names_the_benchmark_and_with_it_the_ids(
    scenario: Make, write: Write, tmp_path: Path
) -> None:
    scenario()
    write(tmp_path / "bench", {"benchmark.toml": 'name = "Night"\ndescription = "d"\nattribution = "us"\n'})
    benchmark = (await Catalog([tmp_path / "bench"]).benchmarks())[0].document()
    assert (benchmark["name"], benchmark["description"], benchmark["attribution"]) == ("Night", "d", "us")
    assert benchmark["id"] == identity("bmd", "Night")
    assert benchmark["scenarioIds"] == [identity("scn", "Night/first")]


async def test_a_folder_of_benchmarks_stands_for_all_of_them(scenario: Make, tmp_path: Path) -> None:
    scenario(benchmark="one")
    scenario(benchmark="two", name="x")
    assert await names(Catalog([tmp_path])) == {"one": ["first"], "two": ["x"]}


async def test_a_scenario_folder_is_a_benchmark_of_one_with_the_scorers_around_it(
    scenario: Make, write: Write, tmp_path: Path
) -> None:
    folder = scenario()
    scenario(name="second")
    write(tmp_path / "bench", {"benchmark.toml": '[custom_scorers]\nhalf = "half.sh"\n', "half.sh": "echo score=.5"})
    catalog = Catalog([folder])
    assert await names(catalog) == {"first": ["first"]}
    assert await catalog.custom_scorers() == {"half": "echo score=.5"}


async def test_a_folder_given_twice_counts_once(scenario: Make, tmp_path: Path) -> None:
    scenario()
    assert await names(Catalog([tmp_path / "bench", tmp_path])) == {"bench": ["first"]}


async def test_the_second_benchmark_of_a_name_is_left_out(scenario: Make, write: Write, tmp_path: Path) -> None:
    scenario(benchmark="one")
    scenario(benchmark="two", name="other")
    write(tmp_path / "two", {"benchmark.toml": 'name = "one"\n'})
    assert await names(Catalog([tmp_path])) == {"one": ["first"]}


def test_a_folder_that_does_not_exist_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no folder .*nowhere"):
        Catalog([tmp_path / "nowhere"])


async def test_new_scenarios_and_benchmarks_are_seen_while_the_service_runs(scenario: Make, tmp_path: Path) -> None:
    scenario()
    empty = tmp_path / "bench" / "second"
    empty.mkdir()
    catalog = Catalog([tmp_path])
    assert await names(catalog) == {"bench": ["first"]}
    scenario(name="second")
    assert await names(catalog) == {"bench": ["first", "second"]}
    scenario(benchmark="later")
    assert await names(catalog) == {"bench": ["first", "second"], "later": ["first"]}


async def test_a_changed_scenario_is_read_again(scenario: Make, write: Write) -> None:
    folder = scenario()
    catalog = Catalog([folder.parent])
    key = identity("scn", "bench/first")
    before = await catalog.scenario(key)
    write(folder, {"instruction.md": "Mend another thing.\n"})
    after = await catalog.scenario(key)
    assert before is not None
    assert after is not None
    assert after["input_context"]["problem_statement"] == "Mend another thing.\n"
    assert before["metadata"]["digest"] != after["metadata"]["digest"]


async def test_a_change_that_keeps_size_and_time_is_noticed_all_the_same(scenario: Make) -> None:
    folder = scenario()
    catalog = Catalog([folder.parent])
    key = identity("scn", "bench/first")
    before = await catalog.scenario(key)
    file = folder / "environment" / "main.py"
    status = file.stat()
    file.write_text("print('jello')\n")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = await catalog.scenario(key)
    assert before != after


async def test_returned_definitions_are_copies(scenario: Make) -> None:
    catalog = Catalog([scenario().parent])
    key = identity("scn", "bench/first")
    first: Any = await catalog.scenario(key)
    first["metadata"]["digest"] = "changed"
    second: Any = await catalog.scenario(key)
    assert second["metadata"]["digest"] != "changed"


async def test_a_broken_scenario_is_left_out_of_many_and_explained_alone(scenario: Make) -> None:
    folder = scenario()
    scenario({"task.toml": "version = "}, name="broken")
    catalog = Catalog([folder.parent])
    good, bad = identity("scn", "bench/first"), identity("scn", "bench/broken")
    assert list(await catalog.scenarios([bad, good, "scn_other"])) == [good]
    with pytest.raises(BadRequest, match=r"Scenario broken is not usable: task\.toml: is not TOML"):
        await catalog.scenario(bad)
    assert await catalog.scenario("scn_other") is None


async def test_a_scenario_that_is_a_link_out_of_its_benchmark_is_refused(scenario: Make, tmp_path: Path) -> None:
    outside = scenario(benchmark="elsewhere", name="secret")
    inside = scenario()
    (inside.parent / "borrowed").symlink_to(outside)
    catalog = Catalog([inside.parent])
    with pytest.raises(BadRequest, match="borrowed: leads out of bench/"):
        await catalog.scenario(identity("scn", "bench/borrowed"))


async def test_custom_scorers_have_ids_and_belong_to_the_catalog(scenario: Make, write: Write, tmp_path: Path) -> None:
    scenario()
    write(tmp_path / "bench", {"benchmark.toml": '[custom_scorers]\nhalf = "half.sh"\n', "half.sh": "echo score=.5"})
    catalog = Catalog([tmp_path / "bench"])
    scorer = (await catalog.scorers())[0]
    assert scorer.id == identity("scs", "half")
    assert (scorer.name, scorer.script) == ("half", "echo score=.5")
    assert await catalog.owns(scorer.id)
    assert await catalog.owns(identity("scn", "bench/first"))
    assert await catalog.owns(identity("bmd", "bench"))
    assert not await catalog.owns("scn_other")


async def test_names_alone_are_read_of_many_folders(tmp_path: Path) -> None:
    """Listing touches no file of a scenario: they could not even be read."""
    for number in range(200):
        folder = tmp_path / "bench" / f"s{number:03}"
        folder.mkdir(parents=True)
        (folder / "task.toml").mkdir() if number == 0 else (folder / "task.toml").write_bytes(b"\xff")
    benchmark = (await Catalog([tmp_path / "bench"]).benchmarks())[0]
    assert len(benchmark.scenario_ids) == 199
