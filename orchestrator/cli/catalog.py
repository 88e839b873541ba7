"""`sweep benchmarks`, `check`, `doctor`, `agents` and `docs`: the commands that explain what there is."""

from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from orchestrator.cli import options
from orchestrator.cli.run import variables_of
from orchestrator.core.config import EndpointConfig, RegistryConfig
from orchestrator.view.formats import Format


@options.takes_format
@options.takes_settings("endpoint", "isolation", "lock")
def list_benchmarks(
    context: typer.Context, *, runs: options.Runs = options.RUNS, output: Format, **settings: Any
) -> None:
    """List the benchmarks: the bundled ones, or an endpoint's."""
    from orchestrator.commands import benchmarks

    place = dict(options.settings_of(context, settings, EndpointConfig))
    anyio.run(lambda: benchmarks.list_benchmarks(**place, runs=runs, output=output))


@options.takes_format
@options.takes_settings("endpoint", "isolation", "lock")
def show_benchmark(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help="A name, an id, or a folder of scenarios.")],
    *,
    runs: options.Runs = options.RUNS,
    output: Format,
    **settings: Any,
) -> None:
    """List a benchmark's scenarios with their ids and time limits."""
    from orchestrator.commands import benchmarks

    place = dict(options.settings_of(context, settings, EndpointConfig))
    anyio.run(lambda: benchmarks.show(benchmark, **place, runs=runs, output=output))


@options.takes_format
@options.takes_settings("isolation", "lock")
def check(
    context: typer.Context,
    benchmark: Annotated[
        str,
        typer.Argument(metavar="BENCHMARK", help="A bundled benchmark's name, a benchmark folder, or a scenario's."),
    ],
    *,
    static: Annotated[bool, typer.Option("--static", help="Only read the definitions; run nothing.")] = False,
    runs: options.Runs = options.RUNS,
    output: Format,
    **settings: Any,
) -> None:
    """Check a benchmark's definitions, then prove it: the reference solution scores 1.0, doing nothing scores less.

    Each mistake is reported with file and key. The exit code is 1 if there is any. The runs are kept like any sweep.
    """
    from orchestrator.commands import check

    place = options.settings_of(context, settings, EndpointConfig)
    options.end_with(lambda: check.check(benchmark, place, is_static=static, runs=runs, output=output), output)


@options.takes_format
@options.takes_settings("registry_mirror")
def doctor(
    context: typer.Context,
    *,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no registry.")] = False,
    runs: options.Runs = options.RUNS,
    output: Format,
    **settings: Any,
) -> None:
    """Try what this machine permits: sandboxes, images, limits, network, room. Each gap is named with its command.

    A check is ok, limited or missing. What can be tried is tried, with the parts that sweeps use, and nothing of it
    stays. The exit code is 1 if no devbox with walls can be had here.
    """
    from orchestrator.commands import doctor

    mirrors = options.settings_of(context, settings, RegistryConfig).registry_mirror
    doctor.be_root(runs)
    options.end_with(lambda: doctor.examine(runs, mirrors, is_offline=offline, output=output), output)


@options.takes_format
def list_agents(*, output: Format) -> None:
    """List the agents that have a name: yours in ./agents, and the built-in ones."""
    from orchestrator.commands import agents

    agents.list_agents(output)


@options.takes_format
@options.takes_settings("python")
def show_agent(
    agent: Annotated[str, typer.Argument(metavar="NAME", help="A name, NAME@VERSION, or the path of a .toml.")],
    *,
    env_file: options.EnvFile = None,
    output: Format,
    **settings: Any,
) -> None:
    """Explain an agent: its command, its needs, and whether this machine has them. No variable's value is shown."""
    from orchestrator.commands import agents

    python = Path(settings["python"]) if settings["python"] else None
    agents.show(agent, python=python, given=variables_of(env_file), output=output)


def new_agent(name: Annotated[str, typer.Argument(metavar="NAME", help="The agent's name.")]) -> None:
    """Write ./agents/NAME.toml, a template that explains what an agent file may contain."""
    from orchestrator.commands import agents

    agents.new(name)


def docs(
    context: typer.Context,
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="A topic. Omit it to list all topics.")] = None,
) -> None:
    """Show the manual: the list of topics, or one topic.

    The text is laid out on a terminal, and is plain Markdown elsewhere.

    Examples:
      sweep docs

      sweep docs getting-started

      sweep docs commands >commands.md

    """
    from orchestrator.commands import docs

    docs.show(topic, commands=context.find_root().command)
