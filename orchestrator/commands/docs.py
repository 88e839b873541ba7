"""The manual: Markdown files of `orchestrator/docs`, and reference pages made from the code when they are shown.

A page that repeats the code becomes wrong when the code changes. So commands, failures and flags have no file.
"""

import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from inspect import cleandoc
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from rich.markdown import Markdown

import orchestrator
from orchestrator.core import retry_policy
from orchestrator.core.errors import UsageError
from orchestrator.core.records import flags_table
from orchestrator.view.console import Page, put

PAGES: Final = Path(orchestrator.__file__).parent / "docs"
#: The page that lists all topics.
INDEX: Final = "README"
#: Topics without a file.
GENERATED: Final = ("commands", "failures", "flags")

FAILURES: Final = """\
# Failures

The class of a failure says whose fault it was, and decides what follows. This table is made from the code.

{table}

- A back-off is a random time between zero and its limit, and never shorter than the endpoint asked for.
- A back-off holds no worker and no devbox. A new attempt begins with a new devbox. A delayed start has no devbox yet. A
  run that is scored again is scored at once.
- `--retry CLASS,…` runs finished trials again. A class also selects every class below it: `WorldError`, `AgentError`.

See also: `sweep docs troubleshooting`, `sweep docs limits-and-budgets`.
"""
FLAGS: Final = """\
# Flags

A flag is a note beside a score or a failure. This table is made from the code.

{table}

`--retry FLAG,…` runs trials with such a flag again. Where every result of an arm is flagged, the exit code is 1;
`scored_live` alone does not count for this.

See also: `sweep docs results`, `sweep docs scoring`.
"""
COMMANDS: Final = """\
# Commands

Every command with its arguments and options, made from the command line itself.
"""


def show(topic: str | None, *, commands: Any) -> None:
    """Print a topic, or the list of topics: laid out on a terminal, as Markdown elsewhere.

    `commands` is the root of the command line. Raises UsageError for an unknown topic.
    """
    text = page(topic or INDEX, commands=commands)
    if sys.stdout.isatty():
        Page(100).print(Markdown(re.sub(r"\[([^]]+)\]\([\w-]+\.md\)", r"\1", text)))  # a file name leads nowhere there
    else:
        put(text)


def topics() -> list[str]:
    """The names that `page` knows, sorted."""
    return sorted({*GENERATED, *(file.stem for file in PAGES.glob("*.md"))} - {INDEX})


def page(topic: str, *, commands: Any) -> str:
    """The Markdown of a topic. Raises UsageError for an unknown one."""
    match topic:
        case "commands":
            return "\n".join([COMMANDS, *_sections("sweep", commands)])
        case "failures":
            return FAILURES.format(table=retry_policy.table())
        case "flags":
            return FLAGS.format(table=flags_table())
    known = topics()
    if topic != INDEX and topic not in known:
        near = get_close_matches(topic.lower(), known, 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"{topic}: there is no such topic.{hint} `sweep docs` lists all topics.")
    return (PAGES / f"{topic}.md").read_text(encoding="utf-8")


def _sections(name: str, command: Any) -> Iterator[str]:
    """A section for the command and for each command below it, in the order of the help."""
    parameters = [each for each in command.params if not getattr(each, "hidden", False)]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    options = [each for each in parameters if each.param_type_name == "option"]
    below = getattr(command, "commands", {})

    words = [metavar if each.required else f"[{metavar}]" for each in arguments for metavar in [_metavar(each)]]
    words += ["[OPTIONS]"] if options else []
    words += ["COMMAND"] if below else []
    yield f"## {name}\n\n```text\n{' '.join([name, *words])}\n```\n"
    yield _prose(command.help or "")

    for argument in arguments:
        yield f"- `{_metavar(argument)}`: {_plain(argument.help or '')}"
    for option in options:
        names = ", ".join(f"`{each}`" for each in option.opts)
        value = "" if option.is_flag else f" `{_metavar(option)}`"
        says = [_plain(option.help or "")]
        if not option.is_flag and option.show_default and isinstance(option.default, str | int | float | Path):
            says.append(f"Default: `{str(option.default).replace(str(Path.home()), '~')}`.")
        if option.envvar:
            says.append(f"Environment: `{option.envvar}`.")
        yield f"- {names}{value}: {' '.join(says)}"

    yield ""
    for word, each in below.items():
        if not each.hidden:
            yield from _sections(f"{name} {word}", each)


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _plain(text: str) -> str:
    """A help text without the escapes of the help screen."""
    return text.replace("\\[", "[")


def _prose(text: str) -> str:
    """A help text as Markdown: its indented lines are code."""
    parts = []
    lines = _plain(cleandoc(text)).replace("\b\n", "").splitlines()
    for is_code, group in groupby(lines, lambda line: line.startswith(" ") or not line):
        block = list(group)
        if not is_code or not any(block):
            parts.append("\n".join(block).replace("<", "\\<"))
        else:
            parts.append("\n".join(["\n```text", *(line[2:] for line in block if line), "```\n"]))
    return "\n".join(parts) + "\n"
