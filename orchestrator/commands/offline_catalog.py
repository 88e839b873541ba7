"""The benchmarks of folders, read as the embedded service reads them but without one: enough to make a plan."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from orchestrator.core.errors import Refused
from orchestrator.core.records import Benchmark, Scenario, ScenarioSummary
from orchestrator.service.definitions.catalog import Catalog, Choice
from orchestrator.service.errors import BadRequest

#: Scenarios read at a time: they carry whole scripts.
_AT_A_TIME: Final = 200


class Shelf:
    """Answers the first questions to an endpoint."""

    url = "the embedded service"

    def __init__(self, folders: Sequence[Path]) -> None:
        self._catalog = Catalog(folders)

    async def benchmarks(self) -> list[Benchmark]:
        return [
            Benchmark(id=each.id, name=each.name, scenario_ids=tuple(each.scenario_ids))
            for each in await self._catalog.benchmarks()
        ]

    async def summaries(
        self,
        benchmark: Benchmark,
        at_most: int | None = None,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> list[ScenarioSummary]:
        choice = Choice(include=tuple(include), exclude=tuple(exclude))
        ids, found = benchmark.scenario_ids, list[ScenarioSummary]()
        for start in range(0, len(ids), _AT_A_TIME):
            if at_most is None or len(found) < at_most:
                listed = await self._catalog.listed(ids[start : start + _AT_A_TIME], choice)
                found += [_summary(each) for each in listed.values()]
        return found[:at_most]

    async def scenario(self, scenario_id: str) -> Scenario:
        """Raises Refused with what is wrong with it."""
        try:
            document = await self._catalog.scenario(scenario_id)
        except BadRequest as error:
            raise Refused(error.message) from None
        if document is None:
            raise Refused(f"there is no scenario {scenario_id}")
        return Scenario(id=scenario_id, name=document["name"], prompt=document["input_context"]["problem_statement"])

    async def secret_names(self) -> frozenset[str]:
        """A service of ours keeps none but those that this environment has."""
        return frozenset()


def _summary(document: dict[str, Any]) -> ScenarioSummary:
    metadata = document["metadata"]
    agent, scorer = metadata.get("agent_timeout_sec"), document.get("scorer_timeout_sec")
    return ScenarioSummary(
        id=document["id"],
        name=document["name"],
        digest=metadata.get("digest", ""),
        agent_timeout=float(agent) if agent else None,
        scorer_timeout=float(scorer) if scorer else None,
        network=tuple(filter(None, metadata.get("reaches", "").split(","))),
        unsupported=metadata.get("unsupported", ""),
        notes=tuple(filter(None, metadata.get("notes", "").split("\n"))),
    )
