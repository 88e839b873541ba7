"""The results of a sweep as rows and as tables, for a notebook or a program.

`orchestrator.load("runs/my-sweep").rows` has them. So has `load` here, which also reads a results.jsonl that is alone.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import UsageError
from orchestrator.rundir.files import MANIFEST, RESULTS
from orchestrator.rundir.results_file import Row, read_results
from orchestrator.view.columns import Column, ColumnType, columns

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["LoadedResults", "load"]


class LoadedResults(list[Row]):
    """The lines of results.jsonl: dicts as `sweep docs result-schema` has them. Tables have the columns of the CSV."""

    def as_pandas(self) -> "pd.DataFrame":
        """Make a data frame of pandas, a row for each trial. Raises UsageError if pandas is not installed."""
        pandas = _library("pandas")
        types = {
            ColumnType.TEXT: "string",
            ColumnType.TEXTS: "object",
            ColumnType.INTEGER: "Int64",
            ColumnType.NUMBER: "float64",
            ColumnType.MOMENT: "datetime64[ms, UTC]",
        }

        def series(column: Column) -> Any:
            return pandas.Series(column.cells, dtype=types[column.type])

        frame: pd.DataFrame = pandas.DataFrame({name: series(each) for name, each in columns(self).items()})
        return frame

    def as_polars(self) -> "pl.DataFrame":
        """Make a data frame of Polars, a row for each trial. Raises UsageError if Polars is not installed."""
        polars = _library("polars")
        types = {
            ColumnType.TEXT: polars.String,
            ColumnType.TEXTS: polars.List(polars.String),
            ColumnType.INTEGER: polars.Int64,
            ColumnType.NUMBER: polars.Float64,
            ColumnType.MOMENT: polars.Datetime("ms", "UTC"),
        }
        table = columns(self)
        frame: pl.DataFrame = polars.DataFrame(
            {name: each.cells for name, each in table.items()},
            schema={name: types[each.type] for name, each in table.items()},
            strict=False,  # 1 is a number too
        )
        return frame


def load(sweep: str | os.PathLike[str]) -> LoadedResults:
    """Read the results of a sweep that are there by now, in the order in which its trials finished.

    `sweep` is a run folder, or its results.jsonl. Raises UsageError if it is neither, JournalError naming the line of
    a file that is damaged.
    """
    path = Path(sweep)
    folder = path.parent if path.name == RESULTS else path
    if not (folder / RESULTS).is_file() and not (folder / MANIFEST).is_file():
        raise UsageError(f"{path} is no sweep: a run folder, such as runs/my-sweep, or its {RESULTS} was expected.")
    return LoadedResults(read_results(folder))


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise UsageError(f"{name} is not installed: pip install {name}") from None
