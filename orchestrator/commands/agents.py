"""Agents that have a name: listed, explained, and begun from a template."""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import indent
from typing import Any, Final

from orchestrator.agentkit import loader
from orchestrator.agentkit.builtin import Builtin
from orchestrator.agentkit.file.definition import OUTPUT, Definition, Usage, parse_definition
from orchestrator.agentkit.python.python_agent import find_interpreter, has_module
from orchestrator.commands import AGENTS
from orchestrator.commands.listing import print_rows
from orchestrator.core.errors import UsageError
from orchestrator.view.console import say, say_json

#: Works as it stands, and with any of its comments taken away.
TEMPLATE: Final = """\
# An agent: a command that mends what a problem statement says, in the devbox of a scenario.
#
#   sweep agents show {name}
#   sweep run bugfix-mini --agent {name} --limit 1

description = "What it is, in a sentence."

# The agent itself: a script for bash, in the scenario's working directory. The problem statement is its standard input
# and the file $SWEEP_PROBLEM_FILE. There are also $SWEEP_SCENARIO, and where they apply $SWEEP_MODEL,
# $SWEEP_AGENT_VERSION and $SWEEP_AGENT_PREFIX. What it prints is kept as agent.log.
run = \'\'\'
echo "I have $(wc -c <"$SWEEP_PROBLEM_FILE") bytes to read and do nothing yet."
\'\'\'

# "devbox", or "host" for a command on this machine that works on the devbox from outside (sweep workspace --help).
# where = "devbox"

# Which version of it; `--agent {name}@2.0` overrides it, and the scripts see $SWEEP_AGENT_VERSION.
# version = "1.0.0"

# Puts all that it needs below $SWEEP_AGENT_PREFIX, whose bin is on PATH in `run`. It reaches your package indexes and
# what [network] names, and must do no harm when it runs again. It sees nothing of [env] but `set`, for what it makes
# may be shared by many devboxes.
# install = \'\'\'mkdir -p "$SWEEP_AGENT_PREFIX/bin"\'\'\'

# Seconds, where neither the command line nor the scenario says.
# time_limit = 3600

# Variables of yours that it gets, from the environment or --env-file. In `required` a list means: one of them.
# What is `secret` is passed to `run` only and written nowhere. `set` is the same for everybody.
# [env]
# required = [["HOME", "USER"]]
# optional = ["MY_AGENT_URL"]
# secret = ["MY_AGENT_KEY"]
# set = {{ DISABLE_TELEMETRY = "1" }}

# How it is told the model of --model, beside $SWEEP_MODEL. `required = true` refuses to run without one.
# [model]
# default = "small"
# variable = "MY_AGENT_MODEL"

# What it must reach from the devbox, and nothing else: name, *.name, name:port, or $VARIABLE for the host of a URL.
# [network]
# hosts = ["api.example.com", "$MY_AGENT_URL"]

# Where it says what it used: what it printed ("output"), or a path in the devbox (~, *, **; the newest). With "jsonl"
# each line that is JSON is looked at by itself, as the only element of a list; with "json" there is one document.
# The values are JSONPath (RFC 9535). Several numbers are added up, or combined as said: sum, last, max, count.
# [usage]
# from = "output"
# format = "jsonl"
# input_tokens = "$[?@.type=='result'].usage.input_tokens"
# output_tokens = "$[?@.type=='result'].usage.output_tokens"
# cached_tokens = "$[?@.type=='result'].usage.cached_tokens"
# cost_usd = {{ path = "$[?@.type=='result'].cost", combine = "last" }}
# turns = {{ path = "$[?@.type=='assistant']", combine = "count" }}
# exit_reason = "$[?@.type=='result'].subtype"

# What it did, step by step: "output", or a path in the devbox, in the format of a known agent.
# [trajectory]
# from = "~/.my-agent/**/*.jsonl"
# format = "codex"

# Files that come home.
# [gather]
# files = ["~/report.md"]
"""


def list_agents(*, as_json: bool) -> None:
    """List the agents that have a name; ./agents wins over what is built in."""
    print_rows([_row(each, as_json=as_json) for each in loader.available(AGENTS)], as_json=as_json)


def show(reference: str, *, python: Path | None, given: Mapping[str, str], as_json: bool) -> None:
    """Explain an agent, and whether this environment has what it needs. Raises UsageError for an unknown one.

    `python` is the interpreter that a Python agent is to be run by.
    """
    agent, environ = loader.find(reference, AGENTS), {**os.environ, **given}
    if isinstance(agent, Builtin):
        document = _as_python_document(reference, agent, find_interpreter(python, environ), environ)
        lines = _python_explained(document)
    else:
        document, lines = _as_document(agent, environ), _explained(agent, environ)
    if as_json:
        say_json(document)
        return
    for line in lines:
        say(line)


def new(name: str) -> None:
    """Write the template of an agent to ./agents. Raises UsageError for a wrong or taken name."""
    folder, text = AGENTS[0], TEMPLATE.format(name=name)
    file = folder / f"{name}.toml"
    parse_definition(text, name=name, file=f"sweep agents new {name}")
    is_builtin = (loader.builtin_folder() / file.name).exists()
    try:
        folder.mkdir(exist_ok=True)
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise UsageError(f"{file} is there already: choose another name, or edit it") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}") from None
    wins = f" It wins over the built-in {name}." if is_builtin else ""
    say(f"Wrote {file}.{wins} Say in it what to run; `sweep agents show {name}` explains it.")


def _row(named: loader.NamedAgent, *, as_json: bool) -> dict[str, object]:
    version, where, description, needs = _facts(named)
    file = {"file": str(named.file)} if as_json else {}
    return {"name": named.name, "version": version, "where": where, "description": description, "needs": needs, **file}


def _facts(named: loader.NamedAgent) -> tuple[str | None, ...]:
    agent = named.agent
    if agent is None:
        return None, None, f"CANNOT BE USED: {named.problem}", None
    if isinstance(agent, Builtin):
        return None, "host", agent.description, f"--model, the package {agent.package}"
    return agent.version, agent.where, agent.description, ", ".join(_needs(agent)) or None


def _needs(definition: Definition) -> Iterator[str]:
    if definition.argument is not None:
        yield f":{definition.argument}"
    if definition.model.required and not definition.model.default:
        yield "--model"
    yield from map(" or ".join, definition.env.required)


def _missing(definition: Definition, environ: Mapping[str, str]) -> list[tuple[str, ...]]:
    return [group for group in definition.env.required if not any(environ.get(name) for name in group)]


def _as_document(definition: Definition, environ: Mapping[str, str]) -> dict[str, Any]:
    """The definition as its file says it, and which of its variables have a value here; no value of any."""
    return {
        **definition.model_dump(mode="json", by_alias=True, exclude_none=True),
        "digest": definition.digest,
        "given": {name: bool(environ.get(name)) for name in definition.env.names},
        "missing": _missing(definition, environ),
    }


def _explained(definition: Definition, environ: Mapping[str, str]) -> Iterator[str]:
    title = f"{definition.name} {definition.version or ''}".rstrip()
    yield f"{title}: {definition.description}" if definition.description else title
    facts = {
        "Works": "in the devbox" if definition.where == "devbox" else "on this machine",
        "Model": _model(definition),
        "Needs": "; ".join(_group(group, definition, environ) for group in definition.env.required),
        "Uses": ", ".join(_variable(name, definition, environ) for name in _optional(definition)),
        "Sets": ", ".join(f"{name}={value}" for name, value in definition.env.constants.items()),
        "Reaches": ", ".join(definition.network.hosts) or "nothing beyond its devbox",
        "Time limit": "" if definition.time_limit is None else f"{definition.time_limit:g} s, where nobody says",
        "Usage": "" if definition.usage is None else _usage(definition.usage),
        "Trajectory": _trajectory(definition),
        "Brings home": ", ".join(definition.gather.files),
    }
    yield from _table(facts)
    for title, script in {"Install": definition.install, "Run": definition.run}.items():
        if script is not None:
            yield f"{title}:"
            yield from indent(script.strip("\n"), "    ").split("\n")
    if definition.argument is not None:
        yield f"Run:         what stands after the colon: --agent '{definition.name}:{definition.argument}'"
    missing = _missing(definition, environ)
    yield f"Missing:     {', and '.join(map(' or '.join, missing))}" if missing else "Missing:     nothing"


def _as_python_document(name: str, agent: Builtin, python: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "description": agent.description,
        "where": "host",
        "file": str(agent.file),
        "model": agent.model,
        "python": str(python),
        "package": agent.package,
        "install": shlex.join([str(python), "-m", "pip", "install", agent.package]),
        "missing": [] if has_module(python, agent.module, environ) else [[agent.package]],
    }


def _python_explained(document: Mapping[str, Any]) -> Iterator[str]:
    is_there = "missing" if document["missing"] else "there"
    yield f"{document['name']}: {document['description']}"
    yield from _table(
        {
            "Works": f"on this machine: {document['file']}",
            "Model": f"--model is required: {document['model']}",
            "Needs": f"the package {document['package']} for {document['python']} ({is_there})",
            "Install": document["install"],
            "Missing": ", and ".join(map(" or ".join, document["missing"])) or "nothing",
        }
    )


def _table(facts: Mapping[str, str]) -> Iterator[str]:
    yield from (f"{name + ':':<12} {words}" for name, words in facts.items() if words)


def _model(definition: Definition) -> str:
    model = definition.model
    told = " and ".join(filter(None, ("$SWEEP_MODEL", model.variable and f"${model.variable}")))
    if model.default:
        return f"{model.default} unless --model says another, as {told}"
    return f"--model is required, as {told}" if model.required else f"--model may say one, as {told}"


def _optional(definition: Definition) -> list[str]:
    required = {name for group in definition.env.required for name in group}
    return [name for name in definition.env.names if name not in required]


def _group(group: tuple[str, ...], definition: Definition, environ: Mapping[str, str]) -> str:
    return " or ".join(_variable(name, definition, environ) for name in group)


def _variable(name: str, definition: Definition, environ: Mapping[str, str]) -> str:
    """A variable and whether it has a value; never the value, which may be a secret whatever the file says."""
    is_secret = "secret, " if name in definition.env.secret else ""
    return f"{name} ({is_secret}{'set' if environ.get(name) else 'not set'})"


def _usage(usage: Usage) -> str:
    numbers = [
        f"{name} {reading.path}" + (f" ({reading.combine})" if reading.combine != "sum" else "")
        for name, reading in usage.numbers.items()
    ]
    reason = [] if usage.exit_reason is None else [f"exit_reason {usage.exit_reason}"]
    return f"from {_source(usage.source)} as {usage.format}: {', '.join([*numbers, *reason])}"


def _trajectory(definition: Definition) -> str:
    trajectory = definition.trajectory
    return "" if trajectory is None else f"from {_source(trajectory.source)} in the format of {trajectory.format}"


def _source(source: str) -> str:
    return "what it prints" if source == OUTPUT else source
