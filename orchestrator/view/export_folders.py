"""The results of a sweep as a folder that other tools read. Each form is one entry of `FOLDERS`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

import orjson

from orchestrator import __version__
from orchestrator.core.errors import UsageError
from orchestrator.rundir.manifest import read_manifest
from orchestrator.rundir.results_file import Row
from orchestrator.view.columns import Column, ColumnType, columns
from orchestrator.view.exports import parquet, text_of
from orchestrator.view.harbor_job import trial_name, write_job


def _atif(rows: Sequence[Row], run: Path, folder: Path) -> None:
    """Write the trajectories, and index.jsonl, which says of which trial and step each is, and the trial's score."""
    kept = [
        (row, part.get("name"), text)
        for row in rows
        for part in row.get("steps") or [row]
        if (text := text_of(part, "trajectory_atif", run)) is not None
    ]
    if not kept:
        raise UsageError("No agent here left a trajectory: see `trajectory` in `sweep docs agents`.")
    index = []
    for row, step, text in kept:
        name = f"{trial_name(row)}{f'.{step}' if step else ''}.json"
        (folder / name).write_text(text, "utf-8")
        facts = {key: row[key] for key in ("benchmark", "scenario_name", "arm", "model", "trial", "score")}
        index.append(orjson.dumps({"file": name, **facts, "step": step}, option=orjson.OPT_APPEND_NEWLINE))
    (folder / "index.jsonl").write_bytes(b"".join(index))


def _huggingface(rows: Sequence[Row], run: Path, folder: Path) -> None:
    """Write a Parquet file and a card. Patch and trajectory stand in the table: their files are not here."""
    table = {name: each for name, each in columns(rows).items() if not name.endswith("_file")}
    for name, label in (("patch", "patch"), ("trajectory", "trajectory_atif")):
        texts = [text_of(row, label, run) for row in rows]
        table[name] = Column(type=ColumnType.TEXT, cells=texts)
    (folder / "data").mkdir()
    (folder / "data/results.parquet").write_bytes(parquet(table))
    (folder / "README.md").write_text(_card(rows, run, table), "utf-8")


def _card(rows: Sequence[Row], run: Path, table: Mapping[str, Column]) -> str:
    """The card of a data set: what Hugging Face reads at its head, what people read below."""
    manifest = read_manifest(run)
    benchmark = rows[0]["benchmark"]
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        ours = [row for row in rows if row["arm"] == arm]
        scores = [row["score"] for row in ours if row["score"] is not None]
        model = next(row["model"] for row in ours) or ""
        lines.append(f"| {arm} | {model} | {len(ours)} | {len(scores)} | {f'{fmean(scores):.3f}' if scores else ''} |")
    return f"""---
pretty_name: {orjson.dumps(f"{benchmark}: {manifest.name}").decode()}
tags:
- agents
- benchmark-results
configs:
- config_name: default
  data_files:
  - split: train
    path: data/results.parquet
---

# {benchmark}: {manifest.name}

{len(rows)} trials of coding agents, written by sweep {__version__}.

A row is a trial. `patch` is what the agent changed, `trajectory` its work as an ATIF document in JSON; both are null
where there is none. A trial without a score is a failure of the infrastructure, not a score of 0.

| arm | model | trials | scored | mean |
|---|---|---|---|---|
{chr(10).join(lines)}

Sweep {manifest.sweep}, begun {manifest.created}. Columns: {", ".join(f"`{name}`" for name in table)}.
"""


#: What writes a form into an empty folder, given the rows and the run folder. It raises SweepError and OSError.
FOLDERS: Final[Mapping[str, Callable[[Sequence[Row], Path, Path], None]]] = {
    "atif": _atif,
    "harbor": write_job,
    "huggingface-folder": _huggingface,
}
