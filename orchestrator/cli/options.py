"""Options that several commands share; those of settings are made from the fields of the configuration."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import EnumType
from functools import wraps
from inspect import Parameter, cleandoc, signature
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar, get_args, get_origin

import anyio
import typer
from pydantic.fields import FieldInfo
from typer.core import TyperArgument, TyperCommand, TyperGroup

from orchestrator.core import config
from orchestrator.core.errors import UsageError
from orchestrator.view import formats

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")
_S = TypeVar("_S", bound=config.Settings)

RUNS: Final = config.RUNS
Runs = Annotated[
    Path,
    typer.Option(
        "--runs", metavar="DIR", envvar="SWEEP_RUNS", help="The folder of all sweeps.", rich_help_panel="Where"
    ),
]
EnvFile = Annotated[
    Path | None,
    typer.Option(
        "--env-file",
        metavar="FILE",
        help="Variables for the agents, as KEY=VALUE lines. They win over the environment. They are never stored: a "
        "resume needs the file again, or the environment.",
        rich_help_panel="Agents",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting for the Python agents of --agent. Repeat it for more.",
        rich_help_panel="Agents",
    ),
]
SweepName = Annotated[str | None, typer.Argument(metavar="NAME", help="The sweep's name, or its folder.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting of the configuration as an option. `key` is its place in sweep.toml, such as `timeouts.solve`."""

    key: str
    flag: str
    field: FieldInfo
    option: config.Option

    @property
    def default(self) -> str:
        """The default for the help, as it would be typed."""
        value = self.field.default
        if self.option.otherwise:
            return self.option.otherwise
        if self.option.metavar == config.DURATION and value % 60 == 0:
            return f"{value // 60}m"
        return str(value)

    def parameter(self, name: str, *, is_resume: bool) -> Parameter:
        """Make the parameter that typer makes the option of: text, a list of it, or a flag; None if it is not given.

        For a resume it shows no default, because what is not given stays, and is hidden if it cannot change.
        """
        declared: Any = self.field.annotation
        kind: Any = {bool: bool, tuple[str, ...]: list[str]}.get(declared, str)
        words = get_args(declared) if get_origin(declared) is Literal else ()
        if isinstance(declared, EnumType):
            words = tuple(declared)
        option = typer.Option(
            *filter(None, [self.flag, self.option.short]),
            metavar=self.option.metavar or "|".join(words) or None,
            envvar=self.option.env or None,
            help=self.option.help if is_resume else f"{self.option.help} \\[default: {self.default}]",
            rich_help_panel=self.option.panel,
            hidden=is_resume and self.option.is_fixed,
        )
        return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])


_TABLES: Final[Sequence[tuple[str, str, type[config.Settings]]]] = (
    ("", "", config.SweepConfig),
    ("timeouts.", "timeout_", config.Timeouts),
)
#: By the names of their parameters, such as `timeout_solve`.
SETTINGS: Final = {
    prefix + name: Setting(key=inside + name, flag=f"--{prefix}{name}".replace("_", "-"), field=field, option=option)
    for inside, prefix, table in _TABLES
    for name, field in table.model_fields.items()
    for option in field.metadata
    if isinstance(option, config.Option)
}


def takes_settings(*names: str, is_resume: bool = False) -> Callable[[_F], _F]:
    """Give a command that takes `**settings` an option for each of these settings, or for all.

    typer makes options of the parameters in a function's signature. The signature that it sees is made here: the
    function's own parameters, and one for each setting, in the order of the help's panels.
    """

    def panel(parameter: Parameter) -> int:
        """The number of an option's panel; arguments come first."""
        panels = [getattr(each, "rich_help_panel", None) for each in get_args(parameter.annotation)[1:]]
        return next((get_args(config.Panel).index(each) for each in panels if each), -1)

    def decorate(command: _F) -> _F:
        own = signature(command)
        parameters = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
        for name in names or SETTINGS:
            setting = SETTINGS[name]
            parameters.append(setting.parameter(name, is_resume=is_resume))
        vars(command)["__signature__"] = own.replace(parameters=sorted(parameters, key=panel))
        return command

    return decorate


def typed(context: typer.Context, settings: Mapping[str, Any]) -> dict[str, config.Typed]:
    """The settings that were typed or exported, by their keys; `settings` are the values of all options by name."""
    found = {}
    for name, value in settings.items():
        if value not in (None, []):
            setting, source = SETTINGS[name], context.get_parameter_source(name)
            is_exported = source is not None and source.name == "ENVIRONMENT"
            found[setting.key] = config.Typed(name=setting.option.env if is_exported else setting.flag, value=value)
    return found


def settings_of(context: typer.Context, settings: Mapping[str, Any], kind: type[_S]) -> _S:
    """The settings of one `kind`, from the options of a command that takes no sweep.toml. Raises UsageError."""
    given = {key: each for key, each in typed(context, settings).items() if key in kind.model_fields}
    values = {key: each.value for key, each in given.items()}
    return config.validated(kind, values, source=context.command_path, typed=given)


def takes_format(command: Callable[..., _T], *, has_table: bool = False) -> Callable[..., _T]:
    """Give a command that takes `output` a flag for each output format for programs, such as `--json`.

    One that prints a table also takes the formats of tables.
    """
    own = signature(command)
    flags = {
        name: typer.Option(f"--{name}", help=each.help, rich_help_panel="Output")
        for name, each in formats.FORMATS.items()
        if each.encode is not None or (has_table and each.tabulate is not None)
    }

    @wraps(command)
    def run(*arguments: Any, **given: Any) -> _T:
        from orchestrator.common import logging_setup

        chosen = [name for name in flags if given.pop(name)]
        if len(chosen) > 1:
            raise UsageError(f"--{chosen[0]} is not possible with --{chosen[1]}: choose one format.")
        logging_setup.warn_only()
        return command(*arguments, **given, output=formats.find(chosen[0] if chosen else None))

    kept = [each for name, each in own.parameters.items() if name != "output"]
    added = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])
        for name, option in flags.items()
    ]
    vars(run)["__signature__"] = own.replace(parameters=[*kept, *added])
    return run


def takes_table_format(command: Callable[..., _T]) -> Callable[..., _T]:
    """Give a command that prints a table a flag for each output format for programs and of tables."""
    return takes_format(command, has_table=True)


def end_with(run: Callable[[], Awaitable[int | None]], output: formats.Format = formats.LINES) -> NoReturn:
    """Run a command's work and end with its exit code. It does not wait for slow readers of its output."""
    from orchestrator.common.awake import AwakeLoop
    from orchestrator.view.console import write_by_threads

    write_by_threads(output)
    raise typer.Exit(anyio.run(run, backend_options={"loop_factory": AwakeLoop}) or 0)


class _Argument(TyperArgument):
    """An argument that the help calls by its name alone, without braces around it and its type beside it."""

    def get_usage_pieces(self, ctx: Any) -> list[str]:
        del ctx
        name = self.metavar or self.name.upper()
        return [name if self.required else f"[{name}]"]

    def display_type_rich(self, ctx: Any) -> None:
        del ctx


def _plain(parameters: list[Any]) -> list[Any]:
    """Change what the help says about parameters: what can be typed, and no types of Python."""
    for each in parameters:
        if isinstance(each, TyperArgument):
            each.__class__ = _Argument
        elif each.is_flag and each.metavar is None:
            each.metavar = ""
    return parameters


class Command(TyperCommand):
    """A command with a plain help."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands with a plain help."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


def add(app: typer.Typer, command: Callable[..., Any], name: str = "", **settings: Any) -> None:
    """Add a command to an app; its docstring becomes the help text, which wraps at the width of the terminal."""
    app.command(name or command.__name__, cls=Command, help=reflowed(command.__doc__ or ""), **settings)(command)


def reflowed(text: str) -> str:
    """A help text without the line breaks of its source. Indented lines, such as examples, stay as they are."""
    paragraphs = cleandoc(text).split("\n\n")
    return "\n\n".join(
        each if "\n  " in each or each.startswith((" ", "\b")) else " ".join(each.split()) for each in paragraphs
    )
