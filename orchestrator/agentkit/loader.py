"""The agent that a reference after `--agent` means.

    oracle                    a definition by name: ./agents/oracle.toml of the user, else one of ours
    claude-code@2.0.1         … in this version instead of the one that it names
    ./mine.toml               a definition by path
    command:pytest -q         a definition that takes an argument
    predictions:FILE          the patches of a file
    ./file.py:MyAgent         a class or function of a Python file
    package.module:MyAgent    … of a module that the user's interpreter can import
    harbor:terminus-2         an agent that Harbor has
    harbor:module:MyAgent     … one that was written for Harbor
    night-owl                 an agent that an installed package brings: a plug-in

Folders of definitions are read as data and never imported: `agents` is also the import name of a package that our
users have installed. Mistakes that the user can fix are a UsageError here, before anything was spent.
"""

import difflib
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import orchestrator
from orchestrator.agentkit.agent import Agent, Outputs
from orchestrator.agentkit.builtin import BUILTIN, Builtin
from orchestrator.agentkit.file.command import CommandAgent
from orchestrator.agentkit.file.definition import VERSION, Definition, read_definition
from orchestrator.agentkit.host.host_agent import HostCommandAgent
from orchestrator.agentkit.predictions import NAME as PREDICTIONS
from orchestrator.agentkit.predictions import read_predictions
from orchestrator.agentkit.python.harbor_agent import NAME as HARBOR
from orchestrator.agentkit.python.harbor_agent import HarborAgent
from orchestrator.agentkit.python.python_agent import PythonAgent, Target, digest_of, find_interpreter
from orchestrator.common.plugins import PlugIn, PlugInGroup, plug_ins
from orchestrator.core.errors import UsageError

_FORMS: Final = (
    "a name, NAME@VERSION, ./file.toml, 'command:SHELL COMMAND', predictions:FILE, ./file.py:CLASS, "
    "package.module:CLASS or harbor:NAME"
)
_VERSIONED: Final = re.compile(rf"(?P<head>.+)@(?P<version>{VERSION})")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedAgent:
    """An agent that has a name: a definition, or Python that is bundled or plugged in.

    None, with the `problem`, if its file is broken. A plug-in has no file: it is not looked for before it is used.
    """

    name: str
    file: Path | None
    agent: Definition | Builtin | PlugIn | None = None
    problem: str = ""


def load(
    reference: str,
    *,
    python: Path | None,
    search: Sequence[Path],
    settings: Mapping[str, Any],
    environ: Mapping[str, str],
    model: str | None = None,
    secret: Collection[str] = (),
) -> Agent:
    """Make the agent that `reference` means, with the user's environment, for an arm with this model.

    `search` are folders of definitions that win over ours; `secret` names the variables in `environ` that the user
    keeps in a file. Reads files, runs nothing; `check` tries to load a Python agent, `supply` looks for missing
    variables. Raises UsageError for an unknown agent, a wrong definition, a missing model or interpreter.
    """
    head, colon, argument = reference.partition(":")
    definition = _definition(head, search)
    if definition is not None and (not colon or definition.argument is not None):
        name = reference if colon or "@" in head else definition.name
        if definition.argument is not None:
            if not argument.strip():
                example = f"--agent '{definition.name}:{definition.argument}'"
                raise UsageError(f"--agent {reference}: say what it is to run: {example}")
            definition = definition.with_argument(argument)
        return _command(name, definition, settings, environ, model, secret)
    if head == PREDICTIONS and colon:
        if settings or model:
            raise UsageError(f"--agent {reference} takes no settings and no model: its patches are there already.")
        return read_predictions(reference, Path(argument).expanduser())
    if head == HARBOR and colon:
        return HarborAgent.load(
            reference, python=python, settings=settings, environ=environ, model=model, secret=secret
        )
    plug_in = None if reference in BUILTIN or colon else plug_ins(PlugInGroup.AGENTS).get(reference)
    target = (
        Target(module=plug_in.module, entry=plug_in.attribute) if plug_in is not None else _target(reference, search)
    )
    # A plug-in was found beside us; the active environment may not have it.
    interpreter = Path(sys.executable) if plug_in is not None and python is None else find_interpreter(python, environ)
    return PythonAgent(
        name=reference,
        target=target,
        python=interpreter,
        digest=digest_of(target, interpreter, environ),
        environ=environ,
        model=model,
        settings=settings,
        confidential=frozenset(secret),
        leaves=BUILTIN[reference].outputs if reference in BUILTIN else Outputs(),
    )


def supply(agent: Agent, secret_names: Collection[str] = ()) -> Agent:
    """Take the variables that the agent lacks from the endpoint's secrets of the same name.

    Raises UsageError for a variable that is in neither.
    """
    if not isinstance(agent, CommandAgent):
        return agent
    groups = lacking(agent)
    if agent.where == "host":  # the endpoint's secrets are for its devboxes
        secret_names = ()
    found = [next((name for name in group if name in secret_names), None) for group in groups]
    missing = [group for group, name in zip(groups, found, strict=True) if name is None]
    if missing:
        export, it = ("them", "them") if len(missing) > 1 else ("it" if len(missing[0]) == 1 else "one of them", "it")
        raise UsageError(
            f"{agent.name} needs {', and '.join(map(' or '.join, missing))}: export {export}, "
            f"or put {it} in a file and give --env-file FILE"
        )
    return replace(agent, endpoint_secrets={name: name for name in found if name}) if found else agent


def lacking(agent: Agent) -> list[tuple[str, ...]]:
    """The groups of variables of which the agent needs one of each and has none."""
    if not isinstance(agent, CommandAgent):
        return []
    here = {*agent.environment, *agent.secrets, *agent.endpoint_secrets}
    return [group for group in agent.definition.env.required if here.isdisjoint(group)]


def tells_cost(agent: Agent) -> bool:
    """True if the agent may report its cost: an agent file says where, other agents may at any time."""
    if not isinstance(agent, CommandAgent):
        return True
    usage = agent.definition.usage
    return usage is not None and usage.cost_usd is not None


async def check(agent: Agent, tell: Callable[[str], None] = lambda _: None) -> None:
    """Try once, before anything is spent, to load a Python agent; others need no check.

    `tell` is called with what takes long.

    Raises UsageError with close names. An agent that was not checked checks itself in its `prepare`.
    """
    if isinstance(agent, PythonAgent):
        await agent.check(tell)


def available(search: Sequence[Path]) -> list[NamedAgent]:
    """List the agents that have a name, those with a broken file too."""
    plugged = plug_ins(PlugInGroup.AGENTS).items()
    named = {name: NamedAgent(name=name, file=None, agent=plug_in) for name, plug_in in plugged}
    named |= {name: NamedAgent(name=name, file=builtin.file, agent=builtin) for name, builtin in BUILTIN.items()}
    for name, file in _files(search).items():
        try:
            named[name] = NamedAgent(name=name, file=file, agent=read_definition(file))
        except UsageError as error:
            named[name] = NamedAgent(name=name, file=file, problem=error.message)
    return [agent for _, agent in sorted(named.items())]


def find(reference: str, search: Sequence[Path]) -> Definition | Builtin | PlugIn:
    """Find the agent with a name or a file that `reference` means. Raises UsageError for an unknown one."""
    agent = (
        _definition(reference.partition(":")[0], search)
        or BUILTIN.get(reference)
        or plug_ins(PlugInGroup.AGENTS).get(reference)
    )
    if agent is None:
        raise UsageError(_unknown(reference, search))
    return agent


def builtin_folder() -> Path:
    """The folder of our own definitions: below an installed package, beside it in a clone."""
    package = Path(orchestrator.__file__).parent
    inside = package / "agents"
    return inside if inside.is_dir() else package.parent / "agents"


def _files(search: Sequence[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for folder in (*search, builtin_folder()):
        for file in sorted(folder.glob("*.toml")):
            files.setdefault(file.stem, file)
    return files


def _definition(head: str, search: Sequence[Path]) -> Definition | None:
    if head.endswith(".toml"):
        return read_definition(Path(head))
    file = _files(search).get(head)
    if file is not None:
        return read_definition(file)
    versioned = _VERSIONED.fullmatch(head)
    definition = _definition(versioned["head"], search) if versioned else None
    if versioned is None or definition is None:
        return None
    if definition.version is None:
        raise UsageError(f"--agent {head}: {definition.name} has no versions; its file would name one: version = …")
    return definition.with_version(versioned["version"])


def _command(
    name: str,
    definition: Definition,
    settings: Mapping[str, Any],
    environ: Mapping[str, str],
    model: str | None,
    secret: Collection[str],
) -> CommandAgent:
    if settings:
        raise UsageError(
            f"agent {name} takes no settings ({', '.join(settings)}): only Python agents do; "
            "a command reads its environment"
        )
    model = model or definition.model.default
    if model is None and definition.model.required:
        raise UsageError(f"{name} needs a model: --model NAME")
    values = {variable: environ[variable] for variable in definition.env.names if environ.get(variable)}
    secrets = {variable: value for variable, value in values.items() if variable in definition.env.secret}
    plain = {variable: value for variable, value in values.items() if variable not in secrets}
    agent = CommandAgent(
        name=name,
        definition=definition,
        environment=plain,
        secrets=secrets,
        model=model,
        hosts=_hosts(name, definition, values),
    )
    if definition.where == "devbox":
        return agent
    return HostCommandAgent.of(agent, environ, confidential=secret)


def _hosts(name: str, definition: Definition, values: Mapping[str, str]) -> tuple[str, ...]:
    """The hosts of the definition, once each; a variable with a URL gives `host`, or `host:port` if the URL has a port.

    Raises UsageError for a variable that is no URL, without repeating its value.
    """
    known = {**definition.env.constants, **values}
    hosts = []
    for host in definition.network.hosts:
        if not host.startswith("$"):
            hosts.append(host)
        elif url := known.get(host[1:]):
            try:
                parts = urlsplit(url if "//" in url else f"//{url}")
                found, port = parts.hostname, parts.port
            except ValueError:
                found = port = None
            if not found:
                where = f"{name}: {host[1:]}"
                raise UsageError(f"{where} is to be a URL, such as https://api.example.com, and is none")
            found = f"[{found}]" if ":" in found else found
            hosts.append(found if port is None else f"{found}:{port}")
    return tuple(dict.fromkeys(hosts))


def _target(reference: str, search: Sequence[Path]) -> Target:
    """The Python code that a reference means. Raises UsageError, also for every reference that is unknown."""
    if reference in BUILTIN:
        return Target(file=BUILTIN[reference].file, entry=BUILTIN[reference].entry)
    where, _, entry = reference.rpartition(":")
    if not where and entry.endswith(".py"):
        raise UsageError(f"--agent {reference}: say which class or function of it: --agent {reference}:CLASS")
    if not _is_dotted(entry) or not where:
        raise UsageError(_unknown(reference, search))
    if not where.endswith(".py"):
        if not _is_dotted(where):
            raise UsageError(_unknown(reference, search))
        return Target(module=where, entry=entry)
    path = Path(where)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.py")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UsageError(f"--agent {reference}: there is no file {path}{hint}")
    return Target(file=path.absolute(), entry=entry)


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _unknown(reference: str, search: Sequence[Path]) -> str:
    names = sorted({*_files(search), *BUILTIN, *plug_ins(PlugInGroup.AGENTS)})
    near = difflib.get_close_matches(reference.partition(":")[0], names, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"By name there are {', '.join(names)}."
    return f"--agent {reference}: there is no such agent. {hint} An agent is {_FORMS}."
