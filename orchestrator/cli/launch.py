"""What `run` and `resume` have in common: a configuration from what was typed, and the sweep that it asks for."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import anyio
import typer

from orchestrator.cli.options import style


def start(
    settings: Mapping[str, Any], typed: Mapping[str, Any], *, source: Path | str, folder: Path | None = None
) -> NoReturn:
    """Run a sweep, dry or detached if asked. Options that are named like a setting override it.

    `source` names the settings in messages; `folder` is where their relative paths mean something. Raises UsageError,
    and Exit with the sweep's exit code.
    """
    from orchestrator.commands import detach, dry_run, run_sweep
    from orchestrator.common.awake import AwakeLoop
    from orchestrator.core.config import resolve
    from orchestrator.core.selection import parse
    from orchestrator.view.console import write_by_threads

    config, again = resolve(_overlay(settings, typed), source=source), parse(typed["retry"] or (), typed["only"] or ())
    runs, json, file = typed["runs"], typed["json"], typed.get("config")
    given = variables_of(typed["env_file"])
    begun = detach.claim(as_json=json)
    if typed["detach"] and not typed["dry_run"] and begun is None:
        raise typer.Exit(detach.start(as_json=json))
    if folder is not None and folder.is_dir() and not folder.samefile("."):
        runs = runs.resolve()
        os.chdir(folder)
    if typed["dry_run"]:
        raise typer.Exit(anyio.run(lambda: dry_run.run(config, runs=runs, again=again, as_json=json, given=given)))
    look = style(as_json=json) if begun is None else "json" if json else "plain"
    write_by_threads(as_json=json)
    raise typer.Exit(
        anyio.run(
            lambda: run_sweep.run(
                config,
                runs=runs,
                style=look,
                file=file,
                again=again,
                given=given,
                begun=begun or (lambda _: None),
            ),
            backend_options={"loop_factory": AwakeLoop},
        )
    )


def variables_of(file: Path | None) -> dict[str, str]:
    """What an --env-file says; nothing without one. Raises UsageError."""
    from orchestrator.commands.envfile import read_variables

    return {} if file is None else read_variables(file)


def _overlay(settings: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    from orchestrator.core.config import SweepConfig

    knobs = {name: value for name, value in typed.items() if name in SweepConfig.model_fields}
    timeouts = {name.removeprefix("timeout_"): value for name, value in typed.items() if name.startswith("timeout_")}
    merged = {**settings, **_given(knobs)}
    before = settings.get("timeouts", {})
    if isinstance(before, Mapping):  # what else it may be, is refused by name
        merged["timeouts"] = {**before, **_given(timeouts)}
    return merged


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and value != []}


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """What `--set KEY=VALUE` says: a value is read as TOML where it is that (3, true, [1, 2], "3"), else as text."""
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"{word!r} is not a setting; write KEY=VALUE", param_hint="--set")
        try:
            settings[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = value
    return settings


def rate_of(text: str) -> float:
    """`20/s`, `20` or `300/min` as requests a second."""
    number, _, unit = text.partition("/")
    seconds = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0}.get(unit.strip())
    try:
        rate = float(number) / seconds if seconds else 0.0
    except ValueError:
        rate = 0.0
    if rate <= 0:
        raise typer.BadParameter(f"{text!r} is not a rate; write for example 20/s or 300/min", param_hint="--rate")
    return rate
