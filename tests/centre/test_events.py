"""What can happen, to and from the lines of a journal."""

import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import events
from orchestrator.errors import JournalError
from orchestrator.events import KINDS, Event, StageEntered, Unknown, from_dict, to_dict

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: st.integers(0, 2**53),
    float: NUMBERS,
    bool: st.booleans(),
    type(None): st.none(),
}


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if hint in BY_TYPE:
        return BY_TYPE[hint]
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        return st.dictionaries(TEXT, JSON, max_size=3)
    return st.one_of(*(_values(each) for each in get_args(hint)))


def _events(cls: type[Event]) -> st.SearchStrategy[Event]:
    hints = {name: hint for name, hint in get_type_hints(cls).items() if name != "kind"}
    return st.builds(cls, **{name: _values(hint) for name, hint in hints.items()})


def _through_json(event: Event) -> Event:
    return from_dict(orjson.loads(orjson.dumps(to_dict(event))))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_every_kind_of_event_survives_its_line(kind: str, data: st.DataObject) -> None:
    event = data.draw(_events(KINDS[kind]))
    assert _through_json(event) == event


@given(kind=TEXT.filter(lambda kind: kind not in KINDS), rest=st.dictionaries(TEXT, JSON, max_size=4))
def test_an_event_of_a_later_version_is_kept_word_for_word(kind: str, rest: dict[str, Any]) -> None:
    line = orjson.dumps(rest | {"event": kind})
    event = from_dict(orjson.loads(line))
    assert isinstance(event, Unknown)
    assert orjson.dumps(to_dict(event)) == line


def test_keys_that_a_later_version_added_to_a_known_kind_are_left_out() -> None:
    event = StageEntered(trial="s/a/1", attempt=1, stage="boot", at=3.0)
    assert from_dict(to_dict(event) | {"mood": "good"}) == event


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_kind_without_a_key_it_needs_is_refused_by_name(kind: str) -> None:
    with pytest.raises(JournalError, match=f"event {re.escape(kind)}: .*missing"):
        from_dict({"event": kind})


@pytest.mark.parametrize("data", [{}, {"event": None}, {"event": ["a"]}, {"event": 3}, [], 5, None, "trial.finished"])
def test_what_names_no_kind_is_no_event(data: Any) -> None:
    with pytest.raises(JournalError):
        from_dict(data)


def test_the_table_at_the_top_of_the_file_lists_every_kind() -> None:
    rows = [line.split("|")[1] for line in (events.__doc__ or "").splitlines() if line.startswith("|")][2:]
    listed = set()
    for row in rows:
        first, *others = (name.strip() for name in row.split(","))
        listed |= {first, *(first.split(".")[0] + other for other in others)}
    assert listed == set(KINDS)
