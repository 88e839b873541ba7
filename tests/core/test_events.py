"""Events, to and from the lines of a journal."""

import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import events
from orchestrator.core.errors import JournalError
from orchestrator.core.events import KINDS, Event, StageEntered, StageFinished, Unknown, from_line, to_line
from orchestrator.core.stages import Stage

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
    Stage: st.sampled_from(Stage),
}


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if hint in BY_TYPE:
        return BY_TYPE[hint]
    if get_origin(hint) is tuple:
        return st.lists(_values(get_args(hint)[0]), max_size=3).map(tuple)
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        return st.dictionaries(TEXT, JSON, max_size=3)
    return st.one_of(*(_values(each) for each in get_args(hint)))


def _events(cls: type[Event]) -> st.SearchStrategy[Event]:
    hints = {name: hint for name, hint in get_type_hints(cls).items() if name in cls.__struct_fields__}
    return st.builds(cls, **{name: _values(hint) for name, hint in hints.items()})


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_every_kind_of_event_survives_its_line(kind: str, data: st.DataObject) -> None:
    event = data.draw(_events(KINDS[kind]))
    line = to_line(event)
    assert from_line(line) == event
    assert to_line(from_line(line)) == line
    assert orjson.loads(line)["event"] == event.kind == kind


@given(kind=TEXT.filter(lambda kind: kind not in KINDS), rest=st.dictionaries(TEXT, JSON, max_size=4))
def test_an_event_of_a_later_version_is_kept_word_for_word(kind: str, rest: dict[str, Any]) -> None:
    line = orjson.dumps(rest | {"event": kind}, option=orjson.OPT_APPEND_NEWLINE)
    event = from_line(line)
    assert isinstance(event, Unknown)
    assert to_line(event) == line


ENTERED = {"event": "stage.entered", "at": 3.0, "trial": "s/a/1", "attempt": 1, "stage": "boot"}


def test_a_line_names_the_event_first_and_then_its_fields_in_order() -> None:
    event = StageEntered(trial="s/a/1", attempt=1, stage=Stage.BOOT, at=3.0)
    assert to_line(event) == orjson.dumps(ENTERED) + b"\n"


def test_keys_that_a_later_version_added_to_a_known_kind_are_left_out() -> None:
    event = StageEntered(trial="s/a/1", attempt=1, stage=Stage.BOOT, at=3.0)
    assert from_line(orjson.dumps(ENTERED | {"mood": "good"})) == event


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_kind_without_a_key_it_needs_is_refused_by_name(kind: str) -> None:
    with pytest.raises(JournalError, match=f"event {re.escape(kind)}: .*missing required field"):
        from_line(orjson.dumps({"event": kind}))


@pytest.mark.parametrize(
    ("key", "value"), [("stage", "nowhere"), ("stage", 1), ("attempt", "1"), ("attempt", None), ("at", "noon")]
)
def test_a_key_with_another_type_of_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(JournalError, match=f"event stage.entered: .*{key}"):
        from_line(orjson.dumps(ENTERED | {key: value}))


@pytest.mark.parametrize("data", [{}, {"event": None}, {"event": ["a"]}, {"event": 3}, [], 5, None, "trial.finished"])
def test_a_line_without_a_kind_is_no_event(data: Any) -> None:
    with pytest.raises(JournalError, match="an object with an `event` was expected"):
        from_line(orjson.dumps(data))


RESULT = b'{"event":"trial.finished","trial":"s/a/1","attempt":1,"result":{"x":%s}}'


@pytest.mark.parametrize(
    "line",
    [b"", b"\0\0\n", b"{oops}\n", orjson.dumps(ENTERED) + b" and", orjson.dumps(ENTERED).replace(b"boot", b"b\xff")]
    + [RESULT % value for value in (b"NaN", b"Infinity", b"1e999", b"01", b"[" * 100_000 + b"]" * 100_000)],
)
def test_a_line_that_is_not_json_is_no_event(line: bytes) -> None:
    with pytest.raises(JournalError):
        from_line(line)


@pytest.mark.parametrize("value", [2**64, b"bytes", {1, 2}, {1: 2}, "\ud800"])
def test_a_value_that_json_cannot_express_is_refused_before_it_is_written(value: Any) -> None:
    with pytest.raises(TypeError):
        to_line(StageFinished(trial="s/a/1", attempt=1, stage=Stage.SOLVE, seconds=1.0, facts={"x": value}))


def test_the_table_at_the_top_of_the_file_lists_every_kind() -> None:
    rows = [line.split("|")[1] for line in (events.__doc__ or "").splitlines() if line.startswith("|")][2:]
    listed = set()
    for row in rows:
        first, *others = (name.strip() for name in row.split(","))
        listed |= {first, *(first.split(".")[0] + other for other in others)}
    assert listed == set(KINDS)
