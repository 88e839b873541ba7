r"""Completes the names of sweeps, scenarios, arms and agents at a shell's prompt, without loading the command line.

The shell calls the program at each press of Tab, with the words typed so far in its environment, and waits. Names are
looked up here in some hundredths of a second; commands and options take a few tenths, and are left to typer. Whatever
goes wrong, nothing is printed at the prompt.

A shell executes what it completes: zsh at once, others when the line is entered. So only names of plain characters are
offered; the others can be typed.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson

import orchestrator

#: Set by the scripts that typer installs: what to do, and for which shell.
VARIABLE: Final = "_SWEEP_COMPLETE"
RUN, SCENARIO, AGENT, TOPIC = "run", "scenario", "agent", "topic"
#: The arguments of commands that are names.
ARGUMENTS: Final[Mapping[str, Sequence[str]]] = {
    **dict.fromkeys(("show", "logs", "cancel", "requeue"), (RUN, SCENARIO)),
    **dict.fromkeys(("failures", "status", "attach", "stop", "resume", "rescore", "export", "report"), (RUN,)),
    **dict.fromkeys(("set", "pause", "unpause"), (RUN,)),
    "compare": (RUN,) * 9,
    "agents show": (AGENT,),
    "docs": (TOPIC,),
}
#: Options whose values are names.
ARM_OPTIONS: Final = frozenset({"--arm"})
AGENT_OPTIONS: Final = frozenset({"--agent", "-a"})
#: Commands that are followed by others.
GROUPS: Final = frozenset({"agents", "benchmarks", "images", "scenario"})
#: Options of these commands that have no value.
FLAGS: Final = frozenset(
    {"--json", "--csv", "--md", "--follow", "-f", "--raw", "--now", "--dry-run", "--detach", "--help", "-h"}
    | {"--anyway", "--rebuild", "--skip-unsupported", "--without-processes"}
)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@/,=-]*")
_MANIFEST: Final = "manifest.json"
_RUNS: Final = "runs"


def complete(load: Callable[[], object]) -> None:
    """Print what may stand in place of the last word, and end; `load` does it for what is no name."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with suppress(Exception):
        shell = os.environ[VARIABLE].removeprefix("complete_")
        words, begun = typed(shell)
        found = None if begun.startswith("-") else names(words)
        if found is not None:
            fitting = {name for name in found if name.startswith(begun) and _PLAIN.fullmatch(name)}
            written, status = answer(shell, sorted(fitting))
            os.write(1, written.encode())
            os._exit(status)
        load()
    os._exit(1)


def typed(shell: str) -> tuple[list[str], str]:
    """The words before the one to complete, without the program's name, and that word."""
    if shell == "bash":
        words, number = _split(os.environ["COMP_WORDS"]), int(os.environ["COMP_CWORD"])
        return words[1:number], words[number] if number < len(words) else ""
    line = os.environ.get("_TYPER_COMPLETE_ARGS", "")
    words = _split(line)[1:]
    if words and not line.endswith(" "):
        return words[:-1], words[-1]
    return words, ""


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quote is open
        return line.split()


def names(words: Sequence[str]) -> Iterable[str] | None:
    """The names that may follow these words; None if no name is expected, or nothing is known of the command."""
    command, *rest = words or [""]
    if command in GROUPS:
        command, rest = " ".join([command, *rest[:1]]), rest[1:]
    if rest and rest[-1] in AGENT_OPTIONS:
        return agents()
    if command not in ARGUMENTS:
        return None
    arguments, option, runs = list[str](), "", os.environ.get("SWEEP_RUNS") or _RUNS
    for word in rest:
        if option:
            runs, option = word if option == "--runs" else runs, ""
        elif word.startswith("-"):
            option = "" if "=" in word or word in FLAGS else word
            runs = word.removeprefix("--runs=") if word.startswith("--runs=") else runs
        else:
            arguments.append(word)
    if option:
        return arms(Path(runs), arguments) if option in ARM_OPTIONS else None
    expected = ARGUMENTS[command][len(arguments) :][:1]
    if expected == (RUN,):
        return sweeps(Path(runs))
    if expected == (SCENARIO,):
        return scenarios(Path(runs), arguments)
    if expected == (TOPIC,):
        return topics()
    return agents() if expected == (AGENT,) else None


def sweeps(runs: Path) -> Iterator[str]:
    """The names of the sweeps in a folder."""
    return (path.parent.name for path in runs.glob(f"*/{_MANIFEST}"))


def scenarios(runs: Path, arguments: Sequence[str]) -> Iterator[str]:
    """The names of the scenarios of the sweep that was typed."""
    return (str(each.get("name") or "") for each in _manifest(runs, arguments)["scenarios"].values())


def arms(runs: Path, arguments: Sequence[str]) -> Iterator[str]:
    """The names of the arms of the sweep that was typed, or of the newest."""
    return (str(each.get("name") or "") for each in _manifest(runs, arguments)["config"]["arms"])


def _manifest(runs: Path, arguments: Sequence[str]) -> Any:
    places = [runs / arguments[0], Path(arguments[0]).expanduser()] if arguments else [*runs.glob("*")]
    there = [path for path in (place / _MANIFEST for place in places) if path.is_file()]
    newest = there[0] if arguments else max(there, key=lambda path: path.stat().st_mtime_ns)
    return orjson.loads(newest.read_bytes())


def agents() -> Iterator[str]:
    """The names of agents: the user's, and those that come with the program."""
    package = Path(orchestrator.__file__).parent
    yield "mini"  # has no file
    for folder in (Path("agents"), package / "agents", package.parent / "agents"):
        yield from (path.stem for path in folder.glob("*.toml"))


def topics() -> Iterator[str]:
    """The topics of the manual: its pages, and those that are made of the code."""
    yield from ("commands", "failures", "flags", "settings")
    yield from (
        path.stem for path in (Path(orchestrator.__file__).parent / "docs").glob("*.md") if path.stem != "README"
    )


def answer(shell: str, found: Sequence[str]) -> tuple[str, int]:
    """What a shell's script expects, and the exit status that it looks at. Without names it completes files."""
    if shell == "zsh":
        listed = "\n".join(f'"{name}"' for name in found)
        return (f"_arguments '*: :(({listed}))'" if found else "_files"), 0
    if shell == "fish" and os.environ.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        return "", 0 if found else 1
    if shell in {"powershell", "pwsh"}:
        return "".join(f"{name}::: \n" for name in found), 0
    return "".join(f"{name}\n" for name in found), 0
