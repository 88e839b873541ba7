"""Results as a table: its columns and their types, the same for every library and file that has tables.

What a result has by name, such as stages and rewards, has a column for each name: tables are read by people and by
queries, which find `solve_seconds` and not a map. The columns that every sweep can have are always there, so that the
tables of two sweeps fit together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from orchestrator.agentkit.agent import NUMBERS
from orchestrator.core.printable import printable
from orchestrator.core.stages import Stage


class ColumnType(StrEnum):
    """The type of a column's values, each of which may be None."""

    TEXT = "text"
    TEXTS = "texts"
    """A list of texts."""
    INTEGER = "integer"
    NUMBER = "number"
    MOMENT = "moment"
    """A datetime in UTC, to the millisecond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The cells of one column, one for each result, and their type."""

    type: ColumnType
    cells: Sequence[object]


_TEXT, _NUMBER = ColumnType.TEXT, ColumnType.NUMBER
_STAGES: Final = [stage for stage in Stage if stage is not Stage.RELEASE]  # which comes after the result
#: The columns that are always there.
_TYPES: Final[Mapping[str, ColumnType]] = {
    **dict.fromkeys(("benchmark", "scenario", "scenario_name", "arm", "agent", "version", "model"), _TEXT),
    "trial": ColumnType.INTEGER,
    **dict.fromkeys(("started", "finished"), ColumnType.MOMENT),
    "outcome": _TEXT,
    "score": _NUMBER,
    "scoring": _TEXT,
    "exit_status": ColumnType.INTEGER,
    "exit_reason": _TEXT,
    "flags": ColumnType.TEXTS,
    **dict.fromkeys(("failure_class", "failure_stage", "failure_message"), _TEXT),
    "attempts": ColumnType.INTEGER,
    **{f"{stage}_seconds": _NUMBER for stage in _STAGES},
    **{name: _NUMBER if name == "cost_usd" else ColumnType.INTEGER for name in NUMBERS},
}


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A result with a value for each column, as JSON has values."""
    failure = row["failure"] or {}
    return {
        **{name: row.get(name) for name in _TYPES},
        **{f"failure_{each}": failure.get(each) for each in ("class", "stage", "message")},
        "attempts": len(row["attempts"]),
        **{f"{stage}_seconds": row["stages"].get(stage, {}).get("seconds") for stage in _STAGES},
        **{name: row["usage"].get(name) for name in NUMBERS},
        **{f"reward_{printable(name)}": value for name, value in row["rewards"].items()},
        **{f"{name}_file": path for name, path in row["files"].items()},
    }


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """The columns of results by their names."""
    table = [flat(row) for row in rows]
    return {
        name: Column(type=kind, cells=[_value(row.get(name), kind) for row in table])
        for name in dict.fromkeys([*_TYPES, *(name for row in table for name in row)])
        for kind in [_TYPES.get(name) or (_TEXT if name.endswith("_file") else _NUMBER)]
    }


def _value(value: Any, kind: ColumnType) -> Any:
    return datetime.fromisoformat(value) if kind is ColumnType.MOMENT and value else value
