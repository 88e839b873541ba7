"""The results of a sweep in the forms that other tools read. Each form is one entry of `EXPORTS`."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import orjson

from orchestrator.core.errors import UsageError
from orchestrator.core.printable import printable

#: A line of results.jsonl.
Row = Mapping[str, Any]
_COLUMNS: Final = (
    *("benchmark", "scenario", "scenario_name", "arm", "agent", "version", "model", "trial", "started", "finished"),
    *("outcome", "score", "scoring", "exit_status", "exit_reason"),
)


def _csv(rows: Sequence[Row], _: Path) -> Iterator[bytes]:
    """Yield a table, a line a trial. What has several values by name has a column for each."""
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns or _COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(flat)
    yield text.getvalue().encode()


def _flat(row: Row) -> dict[str, object]:
    failure = row["failure"] or {}
    return {
        **{column: row[column] for column in _COLUMNS},
        "flags": " ".join(row["flags"]),
        "failure_class": failure.get("class"),
        "failure_stage": failure.get("stage"),
        "failure_message": failure.get("message"),
        "attempts": len(row["attempts"]),
        **{f"{stage}_seconds": spent["seconds"] for stage, spent in row["stages"].items()},
        **row["usage"],
        **{f"reward_{name}": value for name, value in row["rewards"].items()},
        **{f"{name}_file": path for name, path in row["files"].items()},
    }


def _jsonl(rows: Sequence[Row], _: Path) -> Iterator[bytes]:
    yield from (orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def _junit(rows: Sequence[Row], _: Path) -> Iterator[bytes]:
    """Yield an XML document with a suite for each arm: less than the whole score is a failure, no score an error."""
    suites = ET.Element("testsuites")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        ours = [row for row in rows if row["arm"] == arm]
        suite = ET.SubElement(suites, "testsuite", name=arm, tests=str(len(ours)))
        suite.set("failures", str(sum(row["score"] is not None and row["score"] < 1 for row in ours)))
        suite.set("errors", str(sum(row["score"] is None for row in ours)))
        for row in ours:
            solve = row["stages"].get("solve", {}).get("seconds", 0)
            name = row["scenario_name"] if row["trial"] == 1 else f"{row['scenario_name']} (trial {row['trial']})"
            case = ET.SubElement(
                suite, "testcase", classname=f"{row['benchmark']}.{arm}", name=name, time=f"{solve:.3f}"
            )
            if row["score"] is None:
                why = row["failure"]
                ET.SubElement(case, "error", type=why["class"], message=printable(why["message"]))
            elif row["score"] < 1:
                ET.SubElement(case, "failure", message=f"score {row['score']:g}")
            if row["flags"]:
                ET.SubElement(case, "system-out").text = f"flags: {', '.join(row['flags'])}"
    ET.indent(suites)
    yield ET.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n"


def _swebench(rows: Sequence[Row], folder: Path) -> Iterator[bytes]:
    """Yield predictions: the patch of each scenario, empty where there is none. An arm is a model there."""
    seen = set[tuple[str, str]]()
    for row in rows:
        key = row["scenario_name"], row["arm"]
        if key in seen:
            raise UsageError(f"{row['scenario_name']} has several trials, and predictions have one: give --trial N.")
        seen.add(key)
        patch = row["files"].get("patch")
        text = (folder / patch).read_text("utf-8", "replace") if patch else ""
        prediction = {
            "instance_id": row["scenario_name"],
            "model_name_or_path": row["arm"],
            "model_patch": text,
        }
        yield orjson.dumps(prediction, option=orjson.OPT_APPEND_NEWLINE)


#: What yields the bytes of a form, given the rows and the run folder. It raises UsageError and OSError.
EXPORTS: Final[Mapping[str, Callable[[Sequence[Row], Path], Iterator[bytes]]]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "junit": _junit,
    "swebench": _swebench,
}
