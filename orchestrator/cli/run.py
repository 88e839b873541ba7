"""`sweep run`, `sweep resume` and `sweep scenario run`: the commands that run agents."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import anyio
import typer

from orchestrator.cli import options
from orchestrator.core.config import BarsConfig, SweepConfig, Typed, load_file, resolve
from orchestrator.core.errors import UsageError
from orchestrator.view.formats import LINES, Format

AgentsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--agent",
        "-a",
        metavar="AGENT",
        help="A name (sweep agents list), NAME@VERSION, a .toml, 'command:SHELL COMMAND', file.py:Class or "
        "module:Class. Repeat it to compare agents: each agent with each model is an arm.",
        rich_help_panel="Agents",
    ),
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model", metavar="MODEL", help="The agents' model. Repeat it to compare models.", rich_help_panel="Agents"
    ),
]
RetryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--retry",
        metavar="CLASS,…",
        help="Run finished trials again that have this failure or flag: a class such as StageTimeout, a group of "
        "classes (WorldError, AgentError, ScoringFault), or a flag such as agent_crashed. `sweep docs failures` and "
        "`sweep docs flags` list them.",
        rich_help_panel="Resume",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="SCENARIOS|failed|unscored",
        help="Run only these, finished or not: ids, names or globs, separated by commas. The others stay pending.",
        rich_help_panel="Resume",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would run, and why. Start nothing, change nothing.")
]
DetachOption = Annotated[
    bool,
    typer.Option(
        "--detach", help="Return once it runs, and leave it running. `sweep attach` follows it, `sweep stop` ends it."
    ),
]
#: Options that change nothing about a finished sweep: a variable may give them, or they change its exit code only.
IDLE: Final = {"notify", "endpoint", "lock", "registry", "registry_mirror", "image_cache", *BarsConfig.model_fields}


@options.takes_format
@options.takes_settings()
def run(
    context: typer.Context,
    benchmark: Annotated[
        str | None,
        typer.Argument(
            metavar="BENCHMARK", help="A benchmark's name or id, or a folder of scenarios. Bundled: bugfix-mini."
        ),
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="Settings from a file, a sweep.toml. Options win.", rich_help_panel="What"
        ),
    ] = None,
    agent: AgentsOption = None,
    model: ModelsOption = None,
    setting: options.Set = None,
    env_file: options.EnvFile = None,
    retry: RetryOption = None,
    only: OnlyOption = None,
    runs: options.Runs = options.RUNS,
    dry_run: DryRunOption = False,
    detach: DetachOption = False,
    output: Format,
    **settings: Any,
) -> None:
    """Run agents over a benchmark and score every scenario.

    Results stream to runs/<sweep>/results.jsonl. Run the same command again, or one for more of the same, to continue
    an unfinished sweep. A command for less, or after a finished sweep, starts a new sweep.

    Ctrl-C starts no new trials and lets running trials finish. A second Ctrl-C ends them within 10 s. A third one
    leaves at once. Stopping never fails a trial: run the same command to continue.

    A used-up budget (--deadline, --max-...) stops like one Ctrl-C, with exit code 1. Run the sweep again with a larger
    budget to continue.

    Examples:
      sweep run bugfix-mini --agent oracle

      sweep run bugfix-mini -k 3 -a 'command:my-agent "$SWEEP_PROBLEM_FILE"'

      sweep run ./my-benchmark --agent ./my_agent.py:MyAgent --devboxes 20

    """
    given = _typed(context, settings)
    if benchmark is not None:
        given["benchmark"] = Typed(name="BENCHMARK", value=benchmark)
    if agent:
        models: list[str | None] = [*model] if model else [None]
        chosen = settings_of(setting or ())
        arms = [{"agent": each, "model": which, "settings": chosen} for each in agent for which in models]
        given["arms"] = Typed(name="--agent", value=arms)
    elif setting:
        raise UsageError("--set: is for agents named with --agent. Others have their settings in the file.")
    resolved = resolve(load_file(config) if config else {}, source=config or "sweep run", typed=given)
    _start(
        resolved,
        runs=runs,
        file=config,
        retry=retry,
        only=only,
        env_file=env_file,
        is_dry=dry_run,
        is_detached=detach,
        output=output,
    )


@options.takes_format
@options.takes_settings(is_resume=True)
def resume(
    context: typer.Context,
    sweep: options.SweepName = None,
    *,
    agent: Annotated[list[str] | None, typer.Option("--agent", "-a", hidden=True)] = None,
    model: Annotated[list[str] | None, typer.Option("--model", hidden=True)] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", hidden=True)] = None,
    env_file: options.EnvFile = None,
    retry: RetryOption = None,
    only: OnlyOption = None,
    runs: options.Runs = options.RUNS,
    dry_run: DryRunOption = False,
    detach: DetachOption = False,
    output: Format,
    **settings: Any,
) -> None:
    """Continue a sweep: by default the newest unfinished one.

    Options that are not given stay as its manifest says, and keys are read from the environment as before. Options
    given here apply from now on, but agents, models and scoring cannot change: results of two kinds do not belong
    together. A finished sweep prints its summary.

    Examples:
      sweep resume

      sweep resume my-sweep --devboxes 40 --trials 5

      sweep resume my-sweep --retry DevboxLost,StageTimeout --dry-run

      sweep resume my-sweep --only failed

    """
    from orchestrator.commands import attach, rescore
    from orchestrator.rundir.manifest import read_manifest
    from orchestrator.rundir.sweep_index import find, find_unfinished, is_finished

    given = _typed(context, settings)
    refused = [flag for flag, value in {"--agent": agent, "--model": model, "--set": setting}.items() if value]
    refused += [each.flag for each in options.SETTINGS.values() if each.option.is_fixed and each.key in given]
    for flag in refused:
        raise UsageError(
            f"{flag} is part of what a sweep is, and a resume does not change it. "
            f"Leave it out, or start another sweep with `sweep run … {flag} …`."
        )
    folder = find(runs, sweep) if sweep else find_unfinished(runs)
    manifest = read_manifest(folder)
    is_plain = not (given.keys() - IDLE or retry or only or dry_run or detach)
    if is_plain and rescore.is_all_that_is_owed(folder, manifest):
        config = resolve(manifest.config | {"name": folder.name}, source=f"sweep resume {folder.name}")
        folder = folder.resolve()
        if Path(manifest.started_in).is_dir():
            os.chdir(manifest.started_in)
        options.end_with(lambda: rescore.finish(folder, config, output), output)
    if is_finished(folder, manifest) and not (given.keys() - IDLE or retry or only or dry_run):
        options.end_with(lambda: attach.run(folder, given=given, output=output), output)
    _start(
        resolve(manifest.config | {"name": folder.name}, source=f"sweep resume {folder.name}", typed=given),
        runs=folder.parent,
        started_in=Path(manifest.started_in),
        retry=retry,
        only=only,
        env_file=env_file,
        is_dry=dry_run,
        is_detached=detach,
        output=output,
    )


@options.takes_format
@options.takes_settings("devboxes", "rate")
def rescore(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="RUN", help="The sweep's name, or its folder.")],
    *,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="SCENARIOS", help="Only these: ids, names or globs, separated by commas. \\[default: all]"
        ),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option("--benchmark", metavar="BENCHMARK", help="A newer version. \\[default: that of the sweep]"),
    ] = None,
    without_processes: Annotated[
        bool,
        typer.Option(
            "--without-processes", help="Also trials that were scored live: without what their agents left running."
        ),
    ] = False,
    runs: options.Runs = options.RUNS,
    output: Format,
    **settings: Any,
) -> None:
    """Score finished trials of a sweep again, without their agents: nothing is paid for.

    The patch that each trial left, or the artifacts that its scorers were given, are put into a fresh devbox and judged
    by the scorers as they are now. The new scores take the place of the old ones, which stay in the journal; what
    changed is listed. What else an agent changed, and what it left running, was not kept, and the list says of how many
    that is so. A trial that cannot be scored again keeps its result.

    With --benchmark, scenarios may be other than they were when the sweep began, such as with mended tests.

    Examples:
      sweep rescore my-sweep

      sweep rescore my-sweep --only 'billing-*' --benchmark ./my-benchmark

    """
    from orchestrator.commands import rescore as scoring_again
    from orchestrator.core.selection import parse
    from orchestrator.rundir.manifest import read_manifest
    from orchestrator.rundir.sweep_index import find

    given = options.typed(context, settings)
    folder = find(runs, name)
    manifest = read_manifest(folder)
    if benchmark is not None:
        place = Path(benchmark).expanduser()
        given["benchmark"] = Typed(name="--benchmark", value=str(place.resolve()) if place.exists() else benchmark)
    config = resolve(manifest.config | {"name": folder.name}, source=f"sweep rescore {folder.name}", typed=given)
    chosen = parse((), only or ()).only
    if Path(manifest.started_in).is_dir():
        folder = folder.resolve()
        os.chdir(manifest.started_in)
    options.end_with(lambda: scoring_again.run(folder, config, chosen, output, is_live_taken=without_processes), output)


def _typed(context: typer.Context, settings: Mapping[str, Any]) -> dict[str, Typed]:
    """Return the settings that were typed or exported. Raises UsageError for an address: it is a secret."""
    from orchestrator.view.notify import refuse_typed

    given = options.typed(context, settings)
    if "notify" in given:
        refuse_typed(given["notify"].value, given["notify"].name)
    return given


def _start(
    config: SweepConfig,
    *,
    runs: Path,
    file: Path | None = None,
    started_in: Path | None = None,
    retry: Sequence[str] | None,
    only: Sequence[str] | None,
    env_file: Path | None,
    is_dry: bool,
    is_detached: bool,
    output: Format,
) -> NoReturn:
    """Run a sweep, dry or detached if asked, and end with its exit code. Raises UsageError.

    `file` is the sweep.toml that the configuration is from. Its relative paths are below `started_in`.
    """
    from orchestrator.commands import detach, dry_run, run_sweep
    from orchestrator.core.selection import parse

    again, given = parse(retry or (), only or ()), variables_of(env_file)
    begun = detach.claim(output)
    if is_detached and not is_dry and begun is None:
        raise typer.Exit(detach.start(output))
    if started_in is not None and started_in.is_dir() and not started_in.samefile("."):
        runs = runs.resolve()
        os.chdir(started_in)
    if is_dry:
        raise typer.Exit(anyio.run(lambda: dry_run.run(config, runs=runs, again=again, output=output, given=given)))
    if begun is not None and output.is_redrawn:
        output = LINES
    options.end_with(
        lambda: run_sweep.run(
            config, runs=runs, output=output, file=file, again=again, given=given, begun=begun or (lambda _: None)
        ),
        output,
    )


@options.takes_settings("python", "network", "endpoint", "isolation", "disk_limit", "lock")
def run_scenario(
    context: typer.Context,
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="A scenario's id, or its name in --benchmark.")],
    *,
    benchmark: Annotated[
        str,
        typer.Option(
            "--benchmark",
            "-b",
            metavar="BENCHMARK",
            help="The scenario's benchmark: a name, an id, or a folder.",
            rich_help_panel="What",
        ),
    ] = "bugfix-mini",
    agent: Annotated[
        str, typer.Option("--agent", "-a", metavar="AGENT", help="As for `sweep run`.", rich_help_panel="Agents")
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The agent's model.", rich_help_panel="Agents")
    ] = None,
    setting: options.Set = None,
    env_file: options.EnvFile = None,
    runs: options.Runs = options.RUNS,
    **settings: Any,
) -> None:
    """Run one scenario by itself and report every step: start, boot, solve, score, complete."""
    from orchestrator.commands import run_scenario

    arm = {"agent": agent, "model": model, "settings": settings_of(setting or ())}
    config = resolve(
        {"benchmark": benchmark, "arms": [arm], "attempts": 1},
        source="sweep scenario run",
        typed=options.typed(context, settings),
    )
    given = variables_of(env_file)
    options.end_with(lambda: run_scenario.run(scenario, config, runs=runs, given=given))


def variables_of(file: Path | None) -> dict[str, str]:
    """Read the variables of an --env-file; none without one. Raises UsageError."""
    from orchestrator.commands.envfile import read_variables

    return {} if file is None else read_variables(file)


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """Read `--set KEY=VALUE`: a value that is TOML is read as such (3, true, [1, 2], "3"), others are text."""
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--set {word}: is not a setting. Write KEY=VALUE.")
        try:
            settings[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = value
    return settings
