"""`sweep docs`: shows the manual, Markdown files of `orchestrator/docs` and reference pages generated from the code.

Pages that repeat the code become wrong when it changes, so commands, settings, failures and flags have no file.
"""

import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from inspect import cleandoc
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import orjson
from rich.markdown import Markdown

import orchestrator
from orchestrator.agentkit.host import workspace_cli
from orchestrator.core import config, retry_policy
from orchestrator.core.errors import UsageError
from orchestrator.core.records import flags_table
from orchestrator.view.console import Page, put

PAGES: Final = Path(orchestrator.__file__).parent / "docs"
#: The page that lists all topics.
INDEX: Final = "README"
#: Topics without a file.
GENERATED: Final = ("commands", "failures", "flags", "settings")

FAILURES: Final = """\
# Failures

The class of a failure tells whose fault it was, and decides what follows. This table is generated from the code.

{table}

- A back-off is a random time between zero and its limit, and never shorter than the endpoint asked for.
- A back-off holds no worker and no devbox. A new attempt begins with a new devbox. A delayed start has no devbox yet. A
  run that is scored again is scored at once.
- `--retry CLASS,…` runs finished trials again. A class also selects every class below it: `WorldError`, `AgentError`.

See also: `sweep docs troubleshooting`, `sweep docs limits-and-budgets`.
"""
FLAGS: Final = """\
# Flags

A flag is a remark beside a score or a failure. This table is generated from the code.

{table}

`--retry FLAG,…` runs trials with such a flag again. Where every result of an arm is flagged, the exit code is 1;
`scored_live` alone does not count for this.

See also: `sweep docs results`, `sweep docs scoring`.
"""
COMMANDS: Final = """\
# Commands

Every command with its arguments and options, generated from the command line itself.
"""
SETTINGS: Final = """\
# Settings

The keys of a settings file (`--config sweep.toml`), generated from the code. Options, and then
variables of the environment, win over the file.

`benchmark` is the benchmark's name or id, or a folder of scenarios; it is required.

{table}

`[timeouts]` has the time limit of each stage, in seconds or as `90s`, `10m`, `8h`:

{timeouts}

`[[arms]]` has one table for each agent:

| key | is |
|---|---|
| `agent` | the agent, as `--agent` names it; required |
| `name` | the arm's name in results; without it, made from agent and model |
| `model` | the model |
| `settings` | a table of settings for a Python agent |
| `agents` | the most trials of this arm at once |
| `cost` | a budget for this arm in US dollars; the other arms continue when it is spent |

See also: `sweep docs configuration`, `sweep docs commands`.
"""


def show(topic: str | None, *, commands: Any) -> None:
    """Print a topic, or the list of topics: laid out on a terminal, as Markdown elsewhere.

    `commands` is the root command. Raises UsageError for an unknown topic.
    """
    text = page(topic or INDEX, commands=commands)
    if sys.stdout.isatty():
        Page(100).print(
            Markdown(re.sub(r"\[([^]]+)\]\([\w-]+\.md\)", r"\1", text))
        )  # a link to a file leads nowhere there
    else:
        put(text)


def topics() -> list[str]:
    """Return the names of all topics, sorted."""
    return sorted({*GENERATED, *(file.stem for file in PAGES.glob("*.md"))} - {INDEX})


def page(topic: str, *, commands: Any) -> str:
    """Return the Markdown of a topic. Raises UsageError for an unknown topic."""
    match topic:
        case "commands":
            return "\n".join([COMMANDS, *_sections("sweep", commands)])
        case "failures":
            return FAILURES.format(table=retry_policy.table())
        case "flags":
            return FLAGS.format(table=flags_table())
        case "settings":
            tables = {"table": _settings(config.SweepConfig), "timeouts": _settings(config.Timeouts)}
            return SETTINGS.format(**tables)
    known = topics()
    if topic != INDEX and topic not in known:
        near = get_close_matches(topic.lower(), known, 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"{topic}: there is no such topic.{hint} `sweep docs` lists all topics.")
    return (PAGES / f"{topic}.md").read_text(encoding="utf-8")


def _settings(table: type[config.Settings]) -> str:
    """Return a table of settings with their defaults. A setting without words of its own is explained elsewhere."""
    rows = ["| key | default | is |", "|---|---|---|"]
    for name, field in table.model_fields.items():
        for option in field.metadata:
            if isinstance(option, config.Option):
                default = option.otherwise or f"`{orjson.dumps(field.default).decode()}`"
                rows.append(f"| `{name}` | {default} | {option.help} |")
    return "\n".join(rows)


def _sections(name: str, command: Any) -> Iterator[str]:
    """Yield a section for the command and for each command below it, in the order of the help."""
    if name == "sweep workspace":
        for called, parser in workspace_cli.parsers().items():
            yield f"## {called}\n\n```text\n{parser.format_help()}```\n"
        return
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
            says.append(f"Default: `{option.default}`.")
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
    """Remove the escapes of the help screen from a help text."""
    return text.replace("\\[", "[")


def _prose(text: str) -> str:
    """Convert a help text to Markdown: its indented lines are code."""
    parts = []
    lines = _plain(cleandoc(text)).replace("\b\n", "").splitlines()
    for is_code, group in groupby(lines, lambda line: line.startswith(" ") or not line):
        block = list(group)
        if not is_code or not any(block):
            parts.append("\n".join(block).replace("<", "\\<"))
        else:
            parts.append("\n".join(["\n```text", *(line[2:] for line in block if line), "```\n"]))
    return "\n".join(parts) + "\n"
