"""Options that several commands share, and small helpers for all of them."""

import os
import sys
from collections.abc import Callable, Container
from copy import copy
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, get_args

import typer

from orchestrator.common.locks import Kind
from orchestrator.core.protocol import Isolation

if TYPE_CHECKING:
    from orchestrator.view.progress import Style

T = TypeVar("T")

EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        envvar="RUNLOOP_BASE_URL",
        help="A Runloop-compatible service; its key is read from RUNLOOP_API_KEY. Without it, an embedded one is used.",
    ),
]
RunsOption = Annotated[
    Path, typer.Option("--runs", metavar="DIR", envvar="SWEEP_RUNS", help="Where sweeps are kept.", show_default=True)
]
_ISOLATION: Final = typer.Option(
    "--isolation",
    metavar="|".join(Isolation),
    help=f"Where the embedded service's devboxes come from: {', or '.join(each.meaning for each in Isolation)}.",
)
IsolationOption = Annotated[str, _ISOLATION]
#: None where nobody says, so that a settings file may.
IsolationChoice = Annotated[str | None, _ISOLATION]


def _kind_of_lock(text: str) -> Kind:
    if text not in {"file", "none"}:
        raise typer.BadParameter(f"{text!r} is none of file, none", param_hint="--lock")
    return "none" if text == "none" else "file"


_LOCK: Final = typer.Option(
    "--lock",
    metavar="file|none",
    parser=_kind_of_lock,
    envvar="SWEEP_LOCK",
    help="What keeps a second process out of a folder: a lock, or none, for file systems without locks. Then there is "
    "a note only, which is not proof against a second one on another machine: see to it yourself.",
)
LockOption = Annotated[Kind, _LOCK]
#: None where nobody says, so that a settings file may.
LockChoice = Annotated[Kind | None, _LOCK]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON lines on standard output, for programs.")]
RetryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--retry",
        metavar="CLASS,…",
        help="Run finished trials again that failed so (a class such as StageTimeout, or a kind with all its classes: "
        "WorldError, AgentError, ScoringFault), or have such a flag (agent_crashed …). See "
        "`sweep docs failures` and `sweep docs flags`.",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="SCENARIOS|failed|unscored",
        help="Run these only, finished or not: ids, names or globs, comma separated. The others stay owed.",
    ),
]
NetworkOption = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="agent|none|host",
        help="What devboxes reach: the hosts that scenario and agent name, nothing, or all that their host reaches. "
        "\\[agent]",
    ),
]
PythonOption = Annotated[
    Path | None, typer.Option("--python", help="The interpreter for Python agents. \\[the active environment's]")
]
EnvFileOption = Annotated[
    Path | None,
    typer.Option(
        "--env-file",
        metavar="FILE",
        help="Variables for the agents, KEY=VALUE lines; they win over the environment. Kept nowhere: a resume needs "
        "the file again, or the environment.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would run, and why; start nothing, change nothing.")
]
DetachOption = Annotated[
    bool, typer.Option("--detach", help="Return when it runs; `sweep attach` follows it, `sweep stop` ends it.")
]
SweepArgument = Annotated[str | None, typer.Argument(metavar="NAME", help="The sweep's name, or its folder.")]

RUNS: Final = Path("runs")


def style(*, as_json: bool) -> "Style":
    """How to draw: JSON if asked, a screen on a terminal that can be drawn on, lines otherwise."""
    if as_json:
        return "json"
    can_redraw = os.environ.get("TERM", "dumb").lower() not in {"", "dumb", "unknown"}
    return "terminal" if sys.stdout.isatty() and can_redraw else "plain"


def borrowing(
    command: Callable[..., Any], *, but: Container[str], hidden: Container[str] = ()
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a function that takes `**options` the options of another command, all but these; no help shows `hidden`."""

    def borrow(function: Callable[..., T]) -> Callable[..., T]:
        own = signature(function)
        named = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
        borrowed = [
            each.replace(annotation=_hidden(each.annotation)) if name in hidden else each
            for name, each in signature(command).parameters.items()
            if name not in own.parameters and name not in but
        ]
        vars(function)["__signature__"] = own.replace(parameters=[*named, *borrowed])
        return function

    return borrow


def _hidden(annotation: Any) -> Any:
    """The same option, which no help shows."""
    kind, option = get_args(annotation)
    option = copy(option)
    option.hidden = True
    return Annotated[kind, option]
