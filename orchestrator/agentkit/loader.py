"""From what stands after `--agent` to an agent.

    oracle                    a definition by name: ./agents/oracle.toml of the user, else one of ours
    ./mine.toml               a definition by path
    command:pytest -q         a definition that takes an argument
    ./file.py:MyAgent         a class or function of a Python file
    package.module:MyAgent    … of a module that the user's interpreter can import

Folders of definitions are read as data and nothing of them is ever imported: `agents` is also the import name of a
package our users have installed. What the user can mend is a UsageError here, before anything was spent.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orchestrator
from orchestrator.agentkit.command import CommandAgent
from orchestrator.agentkit.contract import Agent
from orchestrator.agentkit.definition import Definition, Variables, read_definition
from orchestrator.agentkit.python import PythonAgent, Target, digest_of, find_interpreter
from orchestrator.errors import UsageError

_FORMS: Final = "a name, ./file.toml, 'command:SHELL COMMAND', ./file.py:CLASS or package.module:CLASS"


def load(
    reference: str,
    *,
    python: Path | None,
    search: Sequence[Path],
    settings: Mapping[str, Any],
    environ: Mapping[str, str],
) -> Agent:
    """Make the agent that `reference` means, with the user's environment.

    `search` are folders of definitions that win over ours. Reads files, runs nothing; `check` sees whether a Python
    agent can be loaded. Raises UsageError for an unknown agent, a wrong definition, a missing variable or interpreter.
    """
    head, colon, rest = reference.partition(":")
    definition = _definition(head, search)
    if definition is not None and (not colon or definition.argument is not None):
        name = reference if colon else definition.name
        return _command(name, _filled(definition, rest, reference), settings, environ)
    target = _target(reference, search)
    interpreter = find_interpreter(python, environ)
    return PythonAgent(
        name=reference,
        target=target,
        python=interpreter,
        digest=digest_of(target, interpreter, environ),
        environ=environ,
        settings=settings,
    )


async def check(agent: Agent) -> None:
    """See once, before anything is spent, whether an agent can be loaded; only Python agents need that.

    Raises UsageError that names what is near. An agent that nobody checked checks itself in its `prepare`.
    """
    if isinstance(agent, PythonAgent):
        await agent.check()


def available(search: Sequence[Path]) -> list[tuple[str, str, Path]]:
    """The agents that have a name: that, what it says of itself, and its file. A broken file says how it is broken."""
    return [(name, _description(file), file) for name, file in sorted(_files(search).items())]


def builtin_folder() -> Path:
    """Our own definitions: in an installed package below it, in a clone beside it."""
    package = Path(orchestrator.__file__).parent
    inside = package / "agents"
    return inside if inside.is_dir() else package.parent / "agents"


def _files(search: Sequence[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for folder in (*search, builtin_folder()):
        for file in sorted(folder.glob("*.toml")):
            files.setdefault(file.stem, file)
    return files


def _description(file: Path) -> str:
    try:
        return read_definition(file).description
    except UsageError as error:
        return f"cannot be used: {error}"


def _definition(head: str, search: Sequence[Path]) -> Definition | None:
    if head.endswith(".toml"):
        return read_definition(Path(head))
    file = _files(search).get(head)
    return None if file is None else read_definition(file)


def _filled(definition: Definition, argument: str, reference: str) -> Definition:
    if definition.argument is None:
        return definition
    if not argument.strip():
        raise UsageError(
            f"--agent {reference}: say what it is to run: --agent '{definition.name}:{definition.argument}'"
        )
    return definition.with_argument(argument)


def _command(
    name: str, definition: Definition, settings: Mapping[str, Any], environ: Mapping[str, str]
) -> CommandAgent:
    if settings:
        raise UsageError(
            f"agent {name} takes no settings ({', '.join(settings)}): only Python agents do; "
            "a command reads its environment"
        )
    _require(definition.env, name, environ)
    values = {variable: environ[variable] for variable in definition.env.names if environ.get(variable)}
    secrets = {variable: value for variable, value in values.items() if variable in definition.env.secret}
    plain = {variable: value for variable, value in values.items() if variable not in secrets}
    return CommandAgent(name=name, definition=definition, environment=plain, secrets=secrets)


def _require(variables: Variables, name: str, environ: Mapping[str, str]) -> None:
    missing = [variable for variable in variables.required if not environ.get(variable)]
    if missing:
        raise UsageError(
            f"agent {name} needs {' and '.join(missing)} in the environment: export {missing[0]}=… and try again"
        )


def _target(reference: str, search: Sequence[Path]) -> Target:
    """What a reference to Python code means. Raises UsageError, which is also where everything unknown ends."""
    where, _, entry = reference.rpartition(":")
    if not where and entry.endswith(".py"):
        raise UsageError(f"--agent {reference}: say which class or function of it: --agent {reference}:CLASS")
    if not _is_dotted(entry) or not where:
        raise UsageError(_unknown(reference, search))
    if where.endswith(".py"):
        return Target(file=_python_file(Path(where), reference), entry=entry)
    if not _is_dotted(where):
        raise UsageError(_unknown(reference, search))
    return Target(module=where, entry=entry)


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _python_file(path: Path, reference: str) -> Path:
    if path.is_file():
        return path.absolute()
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.py")], n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    raise UsageError(f"--agent {reference}: there is no file {path}{hint}")


def _unknown(reference: str, search: Sequence[Path]) -> str:
    names = sorted(_files(search))
    near = difflib.get_close_matches(reference.partition(":")[0], names, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"By name there are {', '.join(names)}."
    return f"--agent {reference}: there is no such agent. {hint} An agent is {_FORMS}."
