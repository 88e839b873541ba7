"""Lists of definitions: what was created, then what folders say, as one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.service.content import Listing
from orchestrator.service.definitions.catalog import Catalog, Choice
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.definitions.task_file import Scenario, ScenarioContext, read_scenario
from orchestrator.service.errors import BadRequest, NotFound
from orchestrator.service.scoring.scoring import Scoring
from orchestrator.service.store import Document, ListQuery, Page, Store

pytestmark = pytest.mark.anyio
Make = Callable[..., Path]
Write = Callable[[Path, Mapping[str, str]], Path]

SCORER = {"type": "bash_script_scorer", "bash_script": "echo score=1"}
CONTRACT = {"scoring_function_parameters": [{"name": "it", "weight": 1.0, "scorer": SCORER}]}


def query(limit: int = 100, after: str | None = None, search: str = "", *, with_total: bool = True) -> ListQuery:
    return ListQuery(limit=limit, starting_after=after, search=search, with_total=with_total)


def fields(name: str, **others: Any) -> dict[str, Any]:
    return {
        "name": name,
        "input_context": {"problem_statement": "Do it."},
        "scoring_contract": CONTRACT,
        **others,
    }


def names(page: Page[Document]) -> list[str]:
    return [item["name"] for item in page.items]


@pytest.fixture
def definitions(scenario: Make, store: Store, tmp_path: Path) -> Definitions:
    """Scenarios a, b and c in a folder."""
    for name in "abc":
        scenario(name=name)
    scoring = Scoring(cache=tmp_path / "cache")
    return Definitions(store=store, catalog=Catalog([tmp_path / "bench"]), scoring=scoring)


async def test_created_ones_come_first_and_newest_first_then_the_catalogs(definitions: Definitions) -> None:
    for name in "xyz":
        await definitions.create_scenario(fields(name), None)
    page = await definitions.scenarios(query())
    assert (names(page), page.has_more, page.total_count) == (["z", "y", "x", "a", "b", "c"], False, 6)
    public = await definitions.scenarios(query(), public_only=True)
    assert (names(public), public.total_count) == (["a", "b", "c"], 3)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 7])
async def test_the_cursor_works_across_the_seam(definitions: Definitions, limit: int) -> None:
    for name in "xyz":
        await definitions.create_scenario(fields(name), None)
    seen: list[str] = []
    after = None
    while True:
        page = await definitions.scenarios(query(limit, after))
        seen += names(page)
        assert page.total_count == 6
        if not page.has_more:
            break
        assert len(page.items) == limit
        after = page.items[-1]["id"]
    assert seen == ["z", "y", "x", "a", "b", "c"]


async def test_a_cursor_that_names_nothing_is_not_found(definitions: Definitions) -> None:
    created = await definitions.create_scenario(fields("x"), None)
    for ask in (definitions.scenarios, definitions.benchmarks, definitions.scorers):
        with pytest.raises(NotFound, match="starting_after"):
            await ask(query(after="scn_none"))
    with pytest.raises(NotFound, match="starting_after"):
        await definitions.scenarios(query(after=created["id"]), public_only=True)


async def test_filters_hold_on_both_sides(definitions: Definitions) -> None:
    x = await definitions.create_scenario(fields("x", validation_type="FORWARD"), None)
    await definitions.create_scenario(fields("a"), None)
    both = await definitions.scenarios(query(), name="a")
    assert (names(both), both.total_count) == (["a", "a"], 2)
    assert names(await definitions.scenarios(query(), validation_type="FORWARD")) == ["x", "a", "b", "c"]
    assert names(await definitions.scenarios(query(search="X"))) == ["x"]
    assert names(await definitions.scenarios(query(search=x["id"][4:12]))) == ["x"]
    assert names(await definitions.scenarios(query(search="B"))) == ["b"]
    after_c = (await definitions.scenarios(query(), name="c")).items[0]["id"]
    assert names(await definitions.scenarios(query(after=after_c), name="a")) == []


async def test_scenarios_of_a_benchmark_come_from_both_sides(definitions: Definitions) -> None:
    x = await definitions.create_scenario(fields("x"), None)
    await definitions.create_scenario(fields("y"), None)
    known = (await definitions.benchmarks(query())).items[0]
    assert names(await definitions.scenarios(query(), benchmark_id=known["id"])) == ["a", "b", "c"]
    mixed = await definitions.create_benchmark(
        {"name": "mixed", "scenario_ids": [known["scenarioIds"][2], x["id"]]}, None
    )
    page = await definitions.scenarios(query(), benchmark_id=mixed["id"])
    assert (names(page), page.total_count) == (["x", "c"], 2)
    with pytest.raises(NotFound):
        await definitions.scenarios(query(), benchmark_id="bmd_none")


async def test_total_counts_are_left_out_when_not_asked_for(definitions: Definitions) -> None:
    assert (await definitions.scenarios(query(with_total=False))).total_count is None
    first = (await definitions.scenarios(query())).items[0]["id"]
    assert (await definitions.scenarios(query(after=first, with_total=False))).total_count is None


async def test_a_benchmark_shows_its_scenarios_and_lists_join(definitions: Definitions) -> None:
    created = await definitions.create_benchmark({"name": "mine"}, None)
    page = await definitions.benchmarks(query())
    assert names(page) == ["mine", "bench"]
    assert [len(item["scenarioIds"]) for item in page.items] == [0, 3]
    assert names(await definitions.benchmarks(query(), public_only=True)) == ["bench"]
    assert names(await definitions.benchmarks(query(), name="mine")) == ["mine"]
    assert await definitions.benchmark(created["id"]) == created
    assert await definitions.benchmark(page.items[1]["id"]) == page.items[1]
    with pytest.raises(NotFound, match="There is no benchmark with id 'bmd_none'"):
        await definitions.benchmark("bmd_none")


async def test_definitions_page_in_the_benchmarks_own_order(definitions: Definitions) -> None:
    x = await definitions.create_scenario(fields("x"), None)
    known = (await definitions.benchmarks(query())).items[0]["scenarioIds"]
    mixed = await definitions.create_benchmark({"name": "mixed", "scenario_ids": [known[1], x["id"], known[0]]}, None)
    first = await definitions.definitions(mixed["id"], query(2))
    assert [each["name"] for each in first["scenarios"]] == ["b", "x"]
    assert (first["has_more"], first["total_count"]) == (True, 3)
    second = await definitions.definitions(mixed["id"], query(2, x["id"]))
    assert ([each["name"] for each in second["scenarios"]], second["has_more"]) == (["a"], False)
    with pytest.raises(NotFound, match="has no scenario 'scn_none'"):
        await definitions.definitions(mixed["id"], query(after="scn_none"))


async def test_a_broken_scenario_breaks_no_list_and_explains_itself(definitions: Definitions, scenario: Make) -> None:
    scenario({"instruction.md": ""}, name="b")
    page = await definitions.scenarios(query(2))
    assert (names(page), page.has_more) == (["a", "c"], False)
    benchmark = (await definitions.benchmarks(query())).items[0]
    found = await definitions.definitions(benchmark["id"], query())
    told = {each["name"]: each["metadata"].get("unsupported") for each in found["scenarios"]}
    assert told == {"a": None, "b": "instruction.md: is empty: agents would be told nothing", "c": None}
    with pytest.raises(BadRequest, match=r"Scenario b is not usable: instruction\.md: is empty"):
        await definitions.scenario(benchmark["scenarioIds"][1])


async def test_a_scenario_that_cannot_be_built_here_is_listed_with_the_reason(
    definitions: Definitions, scenario: Make
) -> None:
    scenario({"task.toml": "[environment]\ngpus = 1\n"}, name="b")
    benchmark = (await definitions.benchmarks(query())).items[0]
    [_, b, _] = (await definitions.definitions(benchmark["id"], query()))["scenarios"]
    why = "task.toml: environment.gpus: devboxes have none: leave it out, or run the task elsewhere"
    assert b["metadata"]["unsupported"] == why
    assert b["input_context"]["problem_statement"] == "Mend it.\n"


async def test_scenarios_that_are_not_chosen_are_named_and_not_read(definitions: Definitions, scenario: Make) -> None:
    for name in "bc":
        scenario({"task.toml": "broken"}, name=name)
    benchmark = (await definitions.benchmarks(query())).items[0]
    ids = benchmark["scenarioIds"]
    for choice in (Choice(include=("a",)), Choice(exclude=("b", ids[2]))):
        found = (await definitions.definitions(benchmark["id"], query(), choice))["scenarios"]
        assert [(each["id"], each["name"]) for each in found] == list(zip(ids, "abc", strict=True))
        told = [each["metadata"].get("unsupported") for each in found]
        assert told == [None, *["it is left out, and so it was not read"] * 2]


async def test_a_folder_that_its_reader_trips_over_costs_that_scenario_alone(
    definitions: Definitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(identity: str, folder: Path, around: ScenarioContext, files: Listing) -> Scenario:
        if folder.name == "b":
            raise RecursionError("too deep")
        return read_scenario(identity, folder, around, files)

    monkeypatch.setattr("orchestrator.service.definitions.catalog.read_scenario", read)
    benchmark = (await definitions.benchmarks(query())).items[0]
    found = (await definitions.definitions(benchmark["id"], query()))["scenarios"]
    assert [each["metadata"].get("unsupported", "") for each in found] == [
        "",
        "It cannot be read: RecursionError('too deep').",
        "",
    ]


async def test_only_the_page_asked_for_is_read(definitions: Definitions, scenario: Make, tmp_path: Path) -> None:
    """The broken ones after the page are not even noticed."""
    for name in "bc":
        scenario({"task.toml": "broken"}, name=name)
    page = await definitions.scenarios(query(1))
    assert (names(page), page.has_more, page.total_count) == (["a"], True, 3)
    rest = await definitions.scenarios(query(1, page.items[0]["id"]))
    assert (rest.items, rest.has_more) == ([], False)


async def test_scorers_of_both_sides_are_listed_and_found(
    definitions: Definitions, write: Write, tmp_path: Path
) -> None:
    write(tmp_path / "bench", {"benchmark.toml": '[custom_scorers]\nhalf = "half.sh"\n', "half.sh": "echo score=.5"})
    created = await definitions.create_scorer({"type": "own", "bash_script": "echo score=1"}, None)
    page = await definitions.scorers(query())
    assert [item["type"] for item in page.items] == ["own", "half"]
    assert await definitions.scorer(created["id"]) == created
    assert (await definitions.scorer(page.items[1]["id"]))["bash_script"] == "echo score=.5"
