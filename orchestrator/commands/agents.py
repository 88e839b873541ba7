"""Agents by name: lists them, explains one, and writes the template of a new one."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import indent
from typing import Any, Final

from orchestrator.agentkit import loader
from orchestrator.agentkit.builtin import Builtin
from orchestrator.agentkit.file.definition import OUTPUT, Definition, parse_definition
from orchestrator.agentkit.python.python_agent import find_interpreter, has_module
from orchestrator.commands import AGENTS
from orchestrator.common.plugins import PlugIn
from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import McpTransport
from orchestrator.view.console import print_record, print_rows, say
from orchestrator.view.formats import Format

#: Valid as it stands, and with any of its settings uncommented.
TEMPLATE: Final = """\
# An agent: a command that does what a problem statement asks, in the devbox of a scenario.
#
#   sweep agents show {name}
#   sweep run bugfix-mini --agent {name} --limit 1

description = "One sentence about the agent."

# The agent itself: a bash script that starts in the scenario's working directory. The problem statement is on its
# standard input and in the file $SWEEP_PROBLEM_FILE. Other variables: $SWEEP_SCENARIO, and where they apply
# $SWEEP_MODEL, $SWEEP_AGENT_VERSION and $SWEEP_AGENT_PREFIX. Its output is kept as agent.log.
run = \'\'\'
echo "I have $(wc -c <"$SWEEP_PROBLEM_FILE") bytes to read and do nothing yet."
\'\'\'

# Where it runs: "devbox", or "host" for a command on this machine that uses the devbox (sweep workspace --help).
# where = "devbox"

# Its version. `--agent {name}@2.0` overrides it; the scripts read $SWEEP_AGENT_VERSION.
# version = "1.0.0"

# Installs everything below $SWEEP_AGENT_PREFIX, whose bin is on PATH in `run`. It can reach your package indexes and
# the hosts of [network], and must be safe to run twice. Of [env] it gets `set` only, because many devboxes may share
# the result.
# install = \'\'\'mkdir -p "$SWEEP_AGENT_PREFIX/bin"\'\'\'

# What it does without where a scenario gives it: "mcp_servers", "skills", "trajectory". It is refused otherwise, before
# the start, for its score would not compare.
# ignores = ["trajectory"]

# Seconds for the agent, used if neither the command line nor the scenario sets a limit.
# time_limit = 3600

# Variables it gets from your environment or from --env-file. In `required`, a list means: one of them.
# A `secret` variable is passed to `run` only and stored nowhere. `set` has fixed values.
# [env]
# required = [["HOME", "USER"]]
# optional = ["MY_AGENT_URL"]
# secret = ["MY_AGENT_KEY"]
# set = {{ DISABLE_TELEMETRY = "1" }}

# Another variable for the model of --model, beside $SWEEP_MODEL. `required = true` refuses to run without a model.
# [model]
# default = "small"
# variable = "MY_AGENT_MODEL"

# The only hosts it can reach from the devbox: name, *.name, name:port, or $VARIABLE for the host of a URL.
# [network]
# hosts = ["api.example.com", "$MY_AGENT_URL"]

# Where it reports its usage: in its output ("output"), or in a file of the devbox (~, *, **; the newest file counts).
# Format "jsonl": each line that is JSON is searched as a list with this one element. Format "json": one document.
# The values are JSONPath (RFC 9535). Several numbers are added up, or combined by: sum, last, max, count.
# [usage]
# from = "output"
# format = "jsonl"
# input_tokens = "$[?@.type=='result'].usage.input_tokens"
# output_tokens = "$[?@.type=='result'].usage.output_tokens"
# cached_tokens = "$[?@.type=='result'].usage.cached_tokens"
# cost_usd = {{ path = "$[?@.type=='result'].cost", combine = "last" }}
# turns = {{ path = "$[?@.type=='assistant']", combine = "count" }}
# exit_reason = "$[?@.type=='result'].subtype"

# Its trajectory: "output", or a path in the devbox, in the format of a known agent.
# [trajectory]
# from = "~/.my-agent/**/*.jsonl"
# format = "codex"

# Files to collect from the devbox.
# [gather]
# files = ["~/report.md"]

# How it reads the MCP servers of a scenario, in JSON (which is YAML too) or "toml": a table at the key `servers`, and
# in it a form for each transport that it knows. `file` is where it looks; `run` finds a copy in $SWEEP_MCP_FILE.
# [mcp]
# file = "~/.my-agent/mcp.json"
# format = "json"
# servers = "mcpServers"
# stdio = {{ command = "{{command}}", args = "{{args}}" }}
# sse = {{ type = "sse", url = "{{url}}", headers = "{{headers}}" }}
# streamable-http = {{ type = "http", url = "{{url}}", headers = "{{headers}}" }}

# Where it looks for skills: those of a scenario are copied there.
# [skills]
# folder = "~/.my-agent/skills"
"""


def list_agents(output: Format) -> None:
    """List the agents that have a name. An agent in ./agents wins over a built-in one."""
    rows = []
    for named in loader.available(AGENTS):
        agent, where, version, needs = named.agent, None, None, None
        if agent is None:
            description = f"CANNOT BE USED: {named.problem}"
        elif isinstance(agent, Builtin):
            where, description, needs = "host", agent.description, f"--model, the package {agent.package}"
        elif isinstance(agent, PlugIn):
            where, description = "host", agent.description
        else:
            argument = [] if agent.argument is None else [f":{agent.argument}"]
            model = ["--model"] if agent.model.required and not agent.model.default else []
            where, description, version = agent.where, agent.description, agent.version
            needs = ", ".join([*argument, *model, *map(" or ".join, agent.env.required)]) or None
        row = {"name": named.name, "version": version, "where": where, "description": description, "needs": needs}
        rows.append(row | ({"file": str(named.file) if named.file else None} if output.is_for_programs else {}))
    print_rows(rows, output)


def show(reference: str, *, python: Path | None, given: Mapping[str, str], output: Format) -> None:
    """Explain an agent, and whether this environment has what it needs. Raises UsageError for an unknown agent.

    `python` is the interpreter for a Python agent; `given` are variables beside those of the environment.
    """
    agent, environ = loader.find(reference, AGENTS), {**os.environ, **given}
    if isinstance(agent, Builtin):
        program = find_interpreter(python, environ)
        record: dict[str, Any] = {
            "name": reference,
            "description": agent.description,
            "where": "host",
            "file": str(agent.file),
            "model": agent.model,
            "python": str(program),
            "package": agent.package,
            "install": shlex.join([str(program), "-m", "pip", "install", agent.package]),
            "missing": [] if has_module(program, agent.module, environ) else [[agent.package]],
        }
        lines = _explain_python(record)
    elif isinstance(agent, PlugIn):
        record = {
            "name": reference,
            "where": "host",
            "entry": f"{agent.module}:{agent.attribute}",
            "package": agent.package,
            "python": str(python or sys.executable),
        }
        lines = iter([f"{reference}: {agent.description} It runs on this machine, with {record['python']}."])
    else:
        record = {
            **agent.model_dump(mode="json", by_alias=True, exclude_none=True),
            "digest": agent.digest,
            "given": {name: bool(environ.get(name)) for name in agent.env.names},
            "missing": _missing(agent, environ),
        }
        lines = _explain(agent, environ)
    if output.is_for_programs:
        print_record(record, output)
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
        raise UsageError(f"{file} exists already: choose another name, or edit it") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}") from None
    wins = f" It wins over the built-in {name}." if is_builtin else ""
    say(f"Wrote {file}.{wins} Write in it what to run; `sweep agents show {name}` explains it.")


def _missing(definition: Definition, environ: Mapping[str, str]) -> list[tuple[str, ...]]:
    return [group for group in definition.env.required if not any(environ.get(name) for name in group)]


def _explain(definition: Definition, environ: Mapping[str, str]) -> Iterator[str]:
    env, model, steps = definition.env, definition.model, definition.trajectory
    title = f"{definition.name} {definition.version or ''}".rstrip()
    yield f"{title}: {definition.description}" if definition.description else title

    def state(name: str) -> str:
        """A variable, and whether it has a value; never the value, which may be a secret whatever the file says."""
        is_secret = "secret, " if name in env.secret else ""
        return f"{name} ({is_secret}{'set' if environ.get(name) else 'not set'})"

    words = f"{model.default} unless --model names another" if model.default else "--model is optional"
    words = "--model is required" if model.required and not model.default else words
    variables = " and ".join(filter(None, ("$SWEEP_MODEL", model.variable and f"${model.variable}")))
    required = {name for group in env.required for name in group}
    facts = {
        "Works": "in the devbox" if definition.where == "devbox" else "on this machine",
        "Model": f"{words}, passed as {variables}",
        "Needs": "; ".join(" or ".join(map(state, group)) for group in env.required),
        "Uses": ", ".join(state(name) for name in env.names if name not in required),
        "Sets": ", ".join(f"{name}={value}" for name, value in env.constants.items()),
        "Reaches": ", ".join(definition.network.hosts) or "nothing beyond its devbox",
        "Time limit": "" if definition.time_limit is None else f"{definition.time_limit:g} s, unless set elsewhere",
        "Usage": _usage(definition),
        "Trajectory": f"from {_source(steps.source)} in the format of {steps.format}" if steps else "",
        "Collects": ", ".join(definition.gather.files),
        "Takes": ", ".join(_taken(definition)),
        "Ignores": ", ".join(definition.ignores),
    }
    yield from _table(facts)
    for title, script in {"Install": definition.install, "Run": definition.run}.items():
        if script is not None:
            yield f"{title}:"
            yield from indent(script.strip("\n"), "    ").split("\n")
    if definition.argument is not None:
        yield f"Run:         the words after the colon: --agent '{definition.name}:{definition.argument}'"
    missing = _missing(definition, environ)
    yield f"Missing:     {', and '.join(map(' or '.join, missing))}" if missing else "Missing:     nothing"


def _taken(definition: Definition) -> Iterator[str]:
    """What it takes of a scenario beside the problem statement."""
    if mcp := definition.mcp:
        yield f"MCP servers ({', '.join(kind for kind in McpTransport if mcp.form(kind) is not None)})"
    if definition.skills:
        yield "skills"


def _usage(definition: Definition) -> str:
    if (usage := definition.usage) is None:
        return ""
    numbers = [
        f"{name} {reading.path}" + (f" ({reading.combine})" if reading.combine != "sum" else "")
        for name, reading in usage.numbers.items()
    ]
    reason = [] if usage.exit_reason is None else [f"exit_reason {usage.exit_reason}"]
    return f"from {_source(usage.source)} as {usage.format}: {', '.join([*numbers, *reason])}"


def _source(source: str) -> str:
    return "its output" if source == OUTPUT else source


def _explain_python(record: Mapping[str, Any]) -> Iterator[str]:
    yield f"{record['name']}: {record['description']}"
    yield from _table(
        {
            "Works": f"on this machine: {record['file']}",
            "Model": f"--model is required: {record['model']}",
            "Needs": f"the package {record['package']} for {record['python']} "
            f"({'missing' if record['missing'] else 'installed'})",
            "Install": record["install"],
            "Missing": ", and ".join(map(" or ".join, record["missing"])) or "nothing",
        }
    )


def _table(facts: Mapping[str, str]) -> Iterator[str]:
    yield from (f"{name + ':':<12} {words}" for name, words in facts.items() if words)
