"""The list of public sets: what it says can be typed, and every fact says where it is from."""

import pytest

from orchestrator.service.definitions.importers.forms import FORMS
from orchestrator.service.definitions.sets.public_sets import PublicSet, public_sets
from orchestrator.service.definitions.sets.source import GitAddress, RegistryName, parse_source

#: What a reader looks at first, and no fact.
WORDS = {"name", "description", "form", "sources"}


def test_no_set_is_listed_twice() -> None:
    for words in ([each.name for each in public_sets()], [each.get for each in public_sets() if each.get]):
        assert len({*words}) == len(words)


@pytest.mark.parametrize("listed", public_sets(), ids=lambda each: each.name)
def test_a_public_set_can_be_had_and_its_facts_have_sources(listed: PublicSet) -> None:
    if listed.get:
        found = parse_source(listed.get)
        assert isinstance(found, GitAddress | RegistryName)
        assert listed.form == listed.file == ""
    else:
        assert listed.form in FORMS
        assert listed.file.startswith("https://")
    known = {name for name in listed.__struct_fields__ if getattr(listed, name) not in ("", None)}
    assert listed.sources.keys() == known - WORDS
    assert all(listed.sources.values())
    assert listed.tasks is None or listed.tasks > 0
    if checked := listed.checked:
        good = checked.can_run if checked.proved is None else checked.proved
        assert 0 <= good <= checked.can_run <= checked.of == listed.tasks
        assert (good < checked.of) == bool(checked.why)
