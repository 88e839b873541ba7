"""`benchmark.toml`: what a folder of scenarios says of itself, all of it optional.

name = "…"            the folder's name, if not given; ids of scenarios derive from it
description = "…"
attribution = "…"
[metadata]            texts
[custom_scorers]      type = "file of a bash script, relative to this folder"
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from orchestrator.service.catalog.problems import Problem, Report, nearest

FILE: Final = "benchmark.toml"
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
        document = tomllib.loads(path.read_bytes().decode()) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        report.error(FILE, "", f"is not TOML: {error}")
    except OSError as error:
        report.error(FILE, "", f"cannot be read: {error}")
    for key in document:
        if key not in _KEYS:
            meant = nearest(key, _KEYS)
            report.error(
                FILE, key, "unknown key; " + (f"did you mean {meant}?" if meant else f"known: {', '.join(_KEYS)}")
            )
    scorers = _table(document, "custom_scorers", report)
    return BenchmarkFile(
        name=_text(document, "name", report) or folder.resolve().name,
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
    report.error(FILE, key, f"expected a text, got {value!r}")
    return None


def _table(document: Mapping[str, Any], key: str, report: Report) -> dict[str, str]:
    value = document.get(key, {})
    if not isinstance(value, Mapping):
        report.error(FILE, key, f"expected a table, [{key}]")
        return {}
    for name, text in value.items():
        if not isinstance(text, str):
            report.error(FILE, f"{key}.{name}", f"expected a text, got {text!r}")
    return {name: text for name, text in value.items() if isinstance(text, str)}


def _scripts(folder: Path, scorers: Mapping[str, str], report: Report) -> dict[str, str]:
    scripts = {}
    for kind, file in scorers.items():
        path = (folder / file).resolve()
        if not path.is_relative_to(folder.resolve()):
            report.error(FILE, f"custom_scorers.{kind}", f"{file} leaves the benchmark's folder")
            continue
        try:
            scripts[kind] = path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            report.error(FILE, f"custom_scorers.{kind}", f"{file} cannot be read: {error}")
    return scripts
