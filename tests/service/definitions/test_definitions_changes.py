"""Creating and changing definitions."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.service.definitions.catalog import Catalog
from orchestrator.service.definitions.definitions import Definitions
from orchestrator.service.errors import BadRequest, NotFound
from orchestrator.service.records import view
from orchestrator.service.scoring.scoring import Scoring
from orchestrator.service.store import ListQuery, Store

pytestmark = pytest.mark.anyio
Make = Callable[..., Path]
Write = Callable[[Path, Mapping[str, str]], Path]

ALL = ListQuery(limit=100, starting_after=None, search="", with_total=True)
SCORER = {"type": "bash_script_scorer", "bash_script": "echo score=1"}
CONTRACT = {"scoring_function_parameters": [{"name": "it", "weight": 1.0, "scorer": SCORER}]}
SCENARIO: Mapping[str, Any] = {
    "name": "one",
    "input_context": {"problem_statement": "Do it."},
    "scoring_contract": CONTRACT,
}


@pytest.fixture
def definitions(scenario: Make, write: Write, store: Store, tmp_path: Path) -> Definitions:
    scenario()
    write(tmp_path / "bench", {"benchmark.toml": '[custom_scorers]\nhalf = "half.sh"\n', "half.sh": "echo score=.5"})
    scoring = Scoring(cache=tmp_path / "cache")
    return Definitions(store=store, catalog=Catalog([tmp_path / "bench"]), scoring=scoring)


async def public_ids(definitions: Definitions) -> tuple[str, str, str]:
    """The folder's benchmark, scenario and scorer."""
    benchmark = (await definitions.benchmarks(ALL)).items[-1]
    return benchmark["id"], benchmark["scenarioIds"][0], (await definitions.scorers(ALL)).items[-1]["id"]


async def test_a_scenario_is_kept_as_the_wire_shows_it(definitions: Definitions) -> None:
    created = await definitions.create_scenario(
        {**SCENARIO, "environment_parameters": {"working_directory": "/app"}, "metadata": {"a": "b"}}, None
    )
    assert created["id"].startswith("scn_")
    assert created["environment"] == {"working_directory": "/app"}
    assert "environment_parameters" not in created
    assert (created["status"], created["is_public"]) == ("active", False)
    assert (created["scorer_timeout_sec"], created["validation_type"]) == (1800, "UNSPECIFIED")
    assert (created["required_environment_variables"], created["required_secret_names"]) == ([], [])
    assert as_given(await definitions.scenario(created["id"])) == created


def as_given(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is said of it when it is asked for: its digest, and what is ours."""
    metadata = {name: value for name, value in scenario["metadata"].items() if name != "digest"}
    return {**view(scenario), "metadata": metadata}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": None}, "name: a scenario needs one"),
        ({"name": "  "}, "name: a scenario needs one"),
        ({"input_context": None}, "input_context: a scenario needs one"),
        ({"scoring_contract": None}, "scoring_contract: a scenario needs one"),
        ({"input_context": {"problem_statement": " "}}, r"input_context\.problem_statement"),
        ({"validation_type": "BACKWARD"}, "validation_type: expected one of UNSPECIFIED, FORWARD"),
        ({"scorer_timeout_sec": 0}, "scorer_timeout_sec: expected a number of seconds above 0"),
        (
            {"environment_parameters": {"snapshot_id": "snp_1", "blueprint_id": "bpt_1"}},
            r"environment_parameters\.snapshot_id",
        ),
        ({"scoring_contract": {"scoring_function_parameters": []}}, "scoring_function_parameters"),
    ],
)
async def test_a_wrong_scenario_is_refused_by_its_key(
    definitions: Definitions, change: Mapping[str, Any], why: str
) -> None:
    with pytest.raises(BadRequest, match=why):
        await definitions.create_scenario({**SCENARIO, **change}, None)


async def test_custom_types_of_both_sides_may_be_used(definitions: Definitions) -> None:
    def using(kind: str) -> dict[str, Any]:
        scorer = {"type": "custom_scorer", "custom_scorer_type": kind}
        return {
            **SCENARIO,
            "scoring_contract": {"scoring_function_parameters": [{"name": "it", "weight": 1.0, "scorer": scorer}]},
        }

    assert await definitions.create_scenario(using("half"), None)
    with pytest.raises(BadRequest, match="no scorer of type 'own' is registered"):
        await definitions.create_scenario(using("own"), None)
    await definitions.create_scorer({"type": "own", "bash_script": "echo score=1"}, None)
    assert await definitions.create_scenario(using("own"), None)


async def test_an_update_keeps_what_is_not_given_and_replaces_what_is_even_by_nothing(
    definitions: Definitions,
) -> None:
    created = await definitions.create_scenario({**SCENARIO, "metadata": {"a": "b"}, "reference_output": "x"}, None)
    updated = await definitions.update_scenario(created["id"], {"name": None, "metadata": {}, "scorer_timeout_sec": 60})
    assert updated == {**created, "metadata": {}, "scorer_timeout_sec": 60}
    with pytest.raises(BadRequest, match="name: a scenario needs one"):
        await definitions.update_scenario(created["id"], {"name": ""})
    with pytest.raises(NotFound):
        await definitions.update_scenario("scn_none", {"name": "x"})


async def test_an_archived_scenario_is_in_no_list_and_cannot_be_updated(definitions: Definitions) -> None:
    created = await definitions.create_scenario(SCENARIO, None)
    archived = await definitions.archive_scenario(created["id"])
    assert archived["status"] == "archived"
    assert await definitions.archive_scenario(created["id"]) == archived
    assert created["id"] not in [item["id"] for item in (await definitions.scenarios(ALL)).items]
    assert as_given(await definitions.scenario(created["id"])) == archived
    with pytest.raises(BadRequest, match="is archived"):
        await definitions.update_scenario(created["id"], {"name": "x"})
    assert await definitions.unarchive_scenario(created["id"]) == created
    with pytest.raises(NotFound):
        await definitions.archive_scenario("scn_none")


async def test_a_benchmark_may_hold_scenarios_of_both_sides_but_none_that_do_not_exist(
    definitions: Definitions,
) -> None:
    _, public, _ = await public_ids(definitions)
    own = (await definitions.create_scenario(SCENARIO, None))["id"]
    created = await definitions.create_benchmark(
        {"name": "mine", "scenario_ids": [public, own], "attribution": "us", "description": "d"}, None
    )
    assert created["scenarioIds"] == [public, own]
    assert (created["attribution"], created["description"], created["is_public"]) == ("us", "d", False)
    with pytest.raises(NotFound, match=r"scenario_ids: there is no scenario with id 'scn_1', 'scn_2'\."):
        await definitions.create_benchmark({"name": "mine", "scenario_ids": ["scn_1", own, "scn_2"]}, None)
    with pytest.raises(BadRequest, match="name: a benchmark needs one"):
        await definitions.create_benchmark({"scenario_ids": []}, None)


async def test_a_benchmark_is_updated_field_by_field(definitions: Definitions) -> None:
    own = (await definitions.create_scenario(SCENARIO, None))["id"]
    created = await definitions.create_benchmark({"name": "mine", "scenario_ids": [own], "description": "d"}, None)
    updated = await definitions.update_benchmark(created["id"], {"description": "e", "name": None})
    assert updated == {**created, "description": "e"}
    assert (await definitions.update_benchmark(created["id"], {"scenario_ids": []}))["scenarioIds"] == []
    with pytest.raises(NotFound, match="scn_none"):
        await definitions.update_benchmark(created["id"], {"scenario_ids": ["scn_none"]})


async def test_scenarios_are_added_at_the_end_and_taken_out(definitions: Definitions) -> None:
    first, second, third = [(await definitions.create_scenario(SCENARIO, None))["id"] for _ in range(3)]
    key = (await definitions.create_benchmark({"name": "mine", "scenario_ids": [first, second]}, None))["id"]
    changed = await definitions.update_benchmark_scenarios(key, add=[third, second, third], remove=[first])
    assert changed["scenarioIds"] == [second, third]
    again = await definitions.update_benchmark_scenarios(key, remove=["scn_none"])
    assert again["scenarioIds"] == [second, third]
    with pytest.raises(NotFound, match="scn_none"):
        await definitions.update_benchmark_scenarios(key, add=["scn_none"])


async def test_definitions_from_a_folder_are_read_only(definitions: Definitions) -> None:
    benchmark, scenario, scorer = await public_ids(definitions)
    refused = "comes from a folder and is read-only here"
    with pytest.raises(BadRequest, match=refused):
        await definitions.update_benchmark(benchmark, {"name": "x"})
    with pytest.raises(BadRequest, match=refused):
        await definitions.update_benchmark_scenarios(benchmark, add=[])
    with pytest.raises(BadRequest, match=refused):
        await definitions.update_scenario(scenario, {"name": "x"})
    with pytest.raises(BadRequest, match=refused):
        await definitions.archive_scenario(scenario)
    with pytest.raises(BadRequest, match=refused):
        await definitions.update_scorer(scorer, {"bash_script": "x"})


async def test_a_scorers_type_is_registered_once(definitions: Definitions) -> None:
    created = await definitions.create_scorer({"type": "own", "bash_script": "echo score=1"}, None)
    with pytest.raises(BadRequest, match=f"'own' is registered already, as {created['id']}"):
        await definitions.create_scorer({"type": "own", "bash_script": "echo score=0"}, None)
    with pytest.raises(BadRequest, match="'half' is registered by a benchmark's folder"):
        await definitions.create_scorer({"type": "half", "bash_script": "echo score=0"}, None)
    with pytest.raises(BadRequest, match="a scorer needs both"):
        await definitions.create_scorer({"type": "other"}, None)
    updated = await definitions.update_scorer(created["id"], {"type": "own", "bash_script": "echo score=0"})
    assert updated == {**created, "bash_script": "echo score=0"}
    with pytest.raises(BadRequest, match="'half' is registered by a benchmark's folder"):
        await definitions.update_scorer(created["id"], {"type": "half"})
    with pytest.raises(NotFound):
        await definitions.update_scorer("scs_none", {"type": "x"})


async def test_a_request_repeated_with_its_key_has_its_effect_once(definitions: Definitions) -> None:
    first = await definitions.create_scenario(SCENARIO, "key 1")
    assert await definitions.create_scenario(SCENARIO, "key 1") == first
    assert await definitions.create_scenario(SCENARIO, "key 2") != first
    benchmark = await definitions.create_benchmark({"name": "mine"}, "key 3")
    assert await definitions.create_benchmark({"name": "mine"}, "key 3") == benchmark
    scorer = await definitions.create_scorer({"type": "own", "bash_script": "x"}, "key 4")
    assert await definitions.create_scorer({"type": "own", "bash_script": "x"}, "key 4") == scorer
    assert (await definitions.scenarios(ALL)).total_count == 3
