"""`sweep benchmarks`, `check`, `doctor`, `agents` and `docs`: the commands that explain what there is."""

from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import typer

from orchestrator.cli import options
from orchestrator.cli.run import variables_of
from orchestrator.core.config import EndpointConfig, NamesConfig, RegistryConfig
from orchestrator.view.formats import Format


@options.takes_format
@options.takes_settings("endpoint", "isolation", "lock")
def list_benchmarks(
    context: typer.Context,
    *,
    public: Annotated[
        bool, typer.Option("--public", help="List public sets instead, with what is known of them. Nothing is fetched.")
    ] = False,
    runs: options.Runs = options.RUNS,
    output: Format,
    **settings: Any,
) -> None:
    """List the benchmarks: the bundled ones and those that were fetched, or an endpoint's."""
    from orchestrator.commands import benchmarks, fetched

    if public:
        fetched.list_public(output)
        return
    place = dict(options.settings_of(context, settings, EndpointConfig))
    anyio.run(lambda: benchmarks.list_benchmarks(**place, runs=runs, output=output))


@options.takes_format
@options.takes_settings("endpoint", "isolation", "lock", "registry")
def show_benchmark(
    context: typer.Context,
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="A name, an id, a folder of scenarios, or an address.")
    ],
    *,
    runs: options.Runs = options.RUNS,
    output: Format,
    **settings: Any,
) -> None:
    """List a benchmark's scenarios with their ids and time limits."""
    from orchestrator.commands import benchmarks

    place = dict(options.settings_of(context, settings, EndpointConfig))
    registries = options.settings_of(context, settings, NamesConfig).registry
    anyio.run(lambda: benchmarks.show(benchmark, registries, **place, runs=runs, output=output))


def new_benchmark(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The benchmark's folder, new or empty.")],
) -> None:
    """Write a benchmark with one scenario that explains what a scenario may say, and can be run."""
    from orchestrator.commands import new_benchmark

    new_benchmark.new(folder)


def import_benchmark(
    form: Annotated[
        Literal["humaneval", "mbpp", "polyglot", "prompts", "swebench", "terminal-bench"],
        typer.Argument(metavar="FORM", help="One of the forms above."),
    ],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="PATH…", help="A folder, or a file: .jsonl, .json or .csv, also with .gz, or .parquet."),
    ],
    *,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The benchmark's folder, which is made.")],
    skip_unsupported: Annotated[
        bool, typer.Option("--skip-unsupported", help="Leave out scenarios that cannot be had, by name.")
    ] = False,
) -> None:
    """Write a benchmark's folder from another form. A mistake is named by file, line and key, and nothing is written.

    humaneval, mbpp: rows with the published columns.

    swebench: rows with the published columns of SWE-bench and sets like it; needs the package swebench.

    prompts: rows with prompt and test, and if wanted name, solution, timeout.

    terminal-bench: a task's folder of Terminal-Bench 1, with task.yaml, or a folder of them.

    polyglot: an exercise in Exercism's layout, a language's folder of them, or a folder of languages.

    Examples:
      sweep benchmarks import humaneval HumanEval.jsonl.gz --to ./humaneval

      sweep benchmarks import prompts mine.csv --to ./mine

      sweep benchmarks import swebench verified.parquet --to ./verified

      sweep benchmarks import polyglot ./polyglot-benchmark --to ./polyglot

    """
    from orchestrator.commands import import_benchmark

    import_benchmark.run(form, files, to, skip_unsupported=skip_unsupported)


@options.takes_format
@options.takes_settings("registry")
def search_benchmarks(
    context: typer.Context,
    word: Annotated[
        str, typer.Argument(metavar="WORD", help="A part of the name or of the description, or a glob.")
    ] = "",
    *,
    output: Format,
    **settings: Any,
) -> None:
    """Search the registries for benchmarks. `sweep run NAME@VERSION` runs one; nothing is fetched before."""
    from orchestrator.commands import fetched

    registries = options.settings_of(context, settings, NamesConfig).registry
    options.end_with(lambda: fetched.search(word, registries, output), output)


@options.takes_format
@options.takes_settings("registry")
def get_benchmarks(
    context: typer.Context,
    benchmark: Annotated[
        list[str], typer.Argument(metavar="BENCHMARK…", help="NAME@VERSION, git+URL, or an archive; see above.")
    ],
    *,
    output: Format,
    **settings: Any,
) -> None:
    """Fetch benchmarks now, so that a sweep needs no network for them. What was begun before is gone on with.

    Examples:
      sweep benchmarks get terminal-bench@2.0

      sweep benchmarks get git+https://github.com/my-org/tasks@main#hard

      sweep benchmarks get https://github.com/my-org/tasks/tree/main/hard

      sweep benchmarks get ./tasks.tar.gz

    """
    from orchestrator.commands import fetched

    registries = options.settings_of(context, settings, NamesConfig).registry
    options.end_with(lambda: fetched.get(benchmark, registries, output), output)


def remove_benchmarks(
    benchmark: Annotated[
        list[str], typer.Argument(metavar="NAME…", help="A name or an id of `sweep benchmarks list`.")
    ],
) -> None:
    """Remove fetched benchmarks from this machine. One that a running process uses stays.

    A name removes every copy of that name; an id only one. A sweep that is resumed later fetches its own again.
    """
    from orchestrator.commands import fetched

    options.end_with(lambda: fetched.remove(benchmark))


@options.takes_format
@options.takes_settings("registry")
def update_registries(context: typer.Context, *, output: Format, **settings: Any) -> None:
    """Read the registries anew. Sweeps that began stay with what they began with."""
    from orchestrator.commands import fetched

    registries = options.settings_of(context, settings, NamesConfig).registry
    options.end_with(lambda: fetched.update(registries, output), output)


@options.takes_format
@options.takes_settings("isolation", "lock", "registry")
def check(
    context: typer.Context,
    benchmark: Annotated[
        str,
        typer.Argument(metavar="BENCHMARK", help="A benchmark's name, its folder or address, or a scenario's folder."),
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
    registries = options.settings_of(context, settings, NamesConfig).registry
    options.end_with(
        lambda: check.check(benchmark, registries, place, is_static=static, runs=runs, output=output), output
    )


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
