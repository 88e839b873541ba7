"""The results of a sweep as one file that other tools read. Each form is one entry of `EXPORTS`."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import orjson

from orchestrator.core.errors import JournalError, UsageError
from orchestrator.core.printable import printable
from orchestrator.rundir.results_file import Row
from orchestrator.view.columns import Column, ColumnType, columns, flat


def _csv(rows: Sequence[Row], _: Path) -> Iterator[bytes]:
    """Yield a table, a line a trial."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(columns(rows)), restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({**values, "flags": " ".join(values["flags"])} for values in map(flat, rows))
    yield text.getvalue().encode()


def _parquet(rows: Sequence[Row], _: Path) -> Iterator[bytes]:
    """Yield a Parquet file with the columns of the CSV, and their types."""
    yield parquet(columns(rows))


def parquet(table: Mapping[str, Column]) -> bytes:
    """Make a Parquet file of columns. Raises UsageError if pyarrow is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UsageError(
            "Parquet needs pyarrow, which is not installed: pip install 'sweep-orchestrator[parquet]'"
        ) from None
    types = {
        ColumnType.TEXT: pa.string(),
        ColumnType.TEXTS: pa.list_(pa.string()),
        ColumnType.INTEGER: pa.int64(),
        ColumnType.NUMBER: pa.float64(),
        ColumnType.MOMENT: pa.timestamp("ms", tz="UTC"),
    }
    arrays = {name: pa.array(each.cells, type=types[each.type]) for name, each in table.items()}
    written = io.BytesIO()
    pq.write_table(pa.table(arrays), written)
    return written.getvalue()


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
        prediction = {
            "instance_id": row["scenario_name"],
            "model_name_or_path": row["arm"],
            "model_patch": text_of(row, "patch", folder) or "",
        }
        yield orjson.dumps(prediction, option=orjson.OPT_APPEND_NEWLINE)


def text_of(row: Row, label: str, folder: Path) -> str | None:
    """Read a file that a result names; None if it names none. Raises JournalError if it is gone."""
    if label not in row["files"]:
        return None
    path = folder / str(row["files"][label])
    try:
        return path.read_text("utf-8", "replace")
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}.") from None


#: What yields the bytes of a form, given the rows and the run folder. It raises UsageError and OSError.
EXPORTS: Final[Mapping[str, Callable[[Sequence[Row], Path], Iterator[bytes]]]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "junit": _junit,
    "parquet": _parquet,
    "swebench": _swebench,
}
