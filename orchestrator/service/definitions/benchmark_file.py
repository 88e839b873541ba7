"""`benchmark.toml`: what a folder of scenarios says of itself, all of it optional.

name = "…"            the folder's name, if not given; ids of scenarios derive from it
description = "…"
attribution = "…"
[metadata]            texts
[custom_scorers]      type = "file of a bash script, relative to this folder"
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from orchestrator.service.content import complaint, read_file
from orchestrator.service.definitions.toml_file import MAX_SIZE, TomlError, parse
from orchestrator.service.diagnostics import Problem, Report, nearest, printable, shown

FILE: Final = "benchmark.toml"
#: Bytes of a custom scorer's script.
MAX_SCRIPT: Final = 8 << 20
_KEYS: Final = ("name", "description", "attribution", "metadata", "custom_scorers")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkFile:
    """`custom_scorers` are scripts by type. `stamp` changes when the file or a script does."""

    name: str
    description: str | None = None
    attribution: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    custom_scorers: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    sources: tuple[Path, ...] = ()


def read_benchmark(folder: Path) -> BenchmarkFile:
    """Read a folder's benchmark.toml, if it has one; what is wrong is in `problems`, and has its default."""
    report, path = Report(), folder / FILE
    document: dict[str, Any] = {}
    try:
        document = parse(read_file(path, MAX_SIZE)) if os.path.lexists(path) else {}
    except TomlError as error:
        report.error(FILE, error.key, str(error))
    except OSError as error:
        report.error(FILE, "", complaint(error))
    for key in document:
        if key not in _KEYS:
            meant = nearest(key, _KEYS)
            report.error(
                FILE, key, "unknown key; " + (f"did you mean {meant}?" if meant else f"known: {', '.join(_KEYS)}")
            )
    scorers = _table(document, "custom_scorers", report)
    own = folder.resolve().name
    name = _text(document, "name", report) or printable(own)
    if name != own and "name" not in document:
        report.error(FILE, "name", f"the folder's name {name} cannot stand for it: give the benchmark another here")
    return BenchmarkFile(
        name=name,
        description=_text(document, "description", report),
        attribution=_text(document, "attribution", report),
        metadata=_table(document, "metadata", report),
        custom_scorers=_scripts(folder, scorers, report),
        problems=tuple(report.problems),
        sources=(path, *(folder / file for file in scorers.values())),
    )


def _text(document: Mapping[str, Any], key: str, report: Report) -> str | None:
    value = document.get(key)
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    report.error(FILE, key, f"expected a text, got {shown(value)}")
    return None


def _table(document: Mapping[str, Any], key: str, report: Report) -> dict[str, str]:
    value = document.get(key, {})
    if not isinstance(value, Mapping):
        report.error(FILE, key, f"expected a table, [{key}]")
        return {}
    for name, text in value.items():
        if not isinstance(text, str):
            report.error(FILE, f"{key}.{name}", f"expected a text, got {shown(text)}")
    return {name: text for name, text in value.items() if isinstance(text, str)}


def _scripts(folder: Path, scorers: Mapping[str, str], report: Report) -> dict[str, str]:
    scripts = {}
    for kind, file in scorers.items():
        key = f"custom_scorers.{kind}"
        path = Path(os.path.realpath(folder / file))  # unlike `resolve`, it survives links that go round in circles
        if not path.is_relative_to(os.path.realpath(folder)):
            report.error(FILE, key, f"{shown(file)} leaves the benchmark's folder")
            continue
        try:
            scripts[kind] = read_file(path, MAX_SCRIPT).decode()
        except UnicodeDecodeError as error:
            report.error(FILE, key, f"{shown(file)} is not UTF-8 text: {error.reason} at byte {error.start}")
        except OSError as error:
            report.error(FILE, key, f"{shown(file)} {complaint(error)}")
    return scripts
