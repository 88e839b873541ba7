"""Rows of the files that people have: values as they are, and a word on where they are and on what is missing."""

import sys
from pathlib import Path

import pytest

from orchestrator.core.errors import UsageError
from orchestrator.service.definitions.importers.rows import SourceRow, read_rows
from orchestrator.service.definitions.importers.swe_bench import read_swebench


def test_parquet_gives_the_same_rows_as_json_lines(tmp_path: Path) -> None:
    """Some hundred of them, which are more than are in memory at a time."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    values = [{"name": f"{number}", "tests": ["a", f"ä{number}"], "empty": None} for number in range(150)]
    parquet.write_table(arrow.Table.from_pylist(values), tmp_path / "rows.parquet")
    rows = list(read_rows(tmp_path / "rows.parquet"))
    assert [row.values for row in rows] == values
    assert str(rows[149].mistake("name", "is odd")) == f"{tmp_path}/rows.parquet: row 150: name: is odd."
    (tmp_path / "bad.parquet").write_text("no Parquet")
    with pytest.raises(UsageError, match=r"bad\.parquet: cannot be read: Parquet"):
        next(read_rows(tmp_path / "bad.parquet"))


@pytest.mark.parametrize("given", [["a", "b"], '["a", "b"]'])
def test_a_list_may_be_a_text_of_json(given: object) -> None:
    assert SourceRow(file=Path("x"), values={"tests": given}, place="line 1").texts("tests") == ["a", "b"]


@pytest.mark.parametrize("given", ["['a', 'b']", '["a", 1]', 7])
def test_what_is_no_list_of_texts_is_refused(given: object) -> None:
    with pytest.raises(UsageError, match="x: line 1: tests: "):
        SourceRow(file=Path("x"), values={"tests": given}, place="line 1").texts("tests")


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "swebench"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"pip install 'sweep-orchestrator\[parquet\]'"):
        next(read_rows(tmp_path / "x.parquet"))
    with pytest.raises(UsageError, match=r"pip install 'sweep-orchestrator\[swebench\]'"):
        list(read_swebench(tmp_path / "x.parquet"))
