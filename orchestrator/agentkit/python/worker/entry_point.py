"""Loads the user's class or function, calls it with the arguments that it names, and reports its end."""
# ruff: noqa: PTH109, PTH119, PTH120  # importing pathlib would take longer than all this file does

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback

from . import standard_library
from .workspace_client import WorkspaceClient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from . import Channel, Header

#: The method that runs an agent: the first of these that it has.
ENTRY_POINTS = ("run", "__call__", "solve")
#: The method of an asynchronous agent that gets the devbox ready, before its time begins.
PREPARATION = "prepare_devbox"
#: The names of parameters that an agent may have.
OFFERED = (
    *("prompt", "workspace", "scenario", "model", "settings", "log", "devbox_id"),
    *("time_limit", "mcp_servers", "skills_dir", "trajectory"),
)


class ScenarioName:
    """The id and the name of the scenario, for the agent's author."""

    def __init__(self, scenario_id: str, name: str) -> None:
        self.id = scenario_id
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Scenario(id={self.id!r}, name={self.name!r})"


class Log:
    """`log(...)` writes a line to the attempt's agent.log, as `print` does; the methods add facts after a message.

    `log.info("read %s", name, lines=3)` is the line `info: read x lines=3`.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __call__(self, *values: object) -> None:
        print(*values, flush=True)  # noqa: T201

    def debug(self, message: object, *args: object, **facts: object) -> None:
        self._say("debug", message, args, facts)

    def info(self, message: object, *args: object, **facts: object) -> None:
        self._say("info", message, args, facts)

    def warning(self, message: object, *args: object, **facts: object) -> None:
        self._say("warning", message, args, facts)

    def error(self, message: object, *args: object, **facts: object) -> None:
        self._say("error", message, args, facts)

    def exception(self, message: object, *args: object, **facts: object) -> None:
        """Write an error, with the traceback of the exception that is being handled."""
        self._say("error", message, args, facts)
        self(traceback.format_exc().rstrip())

    def usage(
        self,
        *,
        input_tokens: float = 0,
        output_tokens: float = 0,
        cached_tokens: float = 0,
        cost_usd: float = 0,
        turns: float = 0,
    ) -> None:
        """Add to the usage of this attempt. It counts from now on, however the agent ends."""
        given = {
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cached_tokens": cached_tokens,
            "cost_usd": cost_usd,
            "turns": turns,
        }
        self._channel.send({"op": "note", "usage": {name: float(number) for name, number in given.items() if number}})

    def exit_reason(self, reason: str) -> None:
        """Give the reason why the agent ends, in a word or two; the last one counts."""
        self._channel.send({"op": "note", "exit_reason": str(reason)})

    def _say(self, level: str, message: object, args: tuple[object, ...], facts: dict[str, object]) -> None:
        text = str(message)
        if args:
            try:
                text %= args
            except (TypeError, ValueError):
                text = " ".join([text, *map(str, args)])
        self(f"{level}: {text}", *(f"{name}={value}" for name, value in facts.items()))


class UnusableAgent(Exception):
    """The reference does not lead to an agent that can be run; the message says why."""


def run_agent(channel: Channel, *, file: str | None, module: str | None, entry: str) -> int:
    """Load `entry` of a file or module, report that, and run it on the task that follows, if one does.

    Reports and returns its exit status. An agent that ends itself with a message while it is loaded refuses to be.
    """
    report: Header = {"op": "result"}
    status, is_loaded = 0, False
    message: str | None = None
    try:
        agent = _load(file, module, entry)
        _check(agent, entry)
        prepares = inspect.isclass(agent) and hasattr(agent, PREPARATION)
        channel.send({"op": "loaded", "takes": _takes(agent), "prepares": prepares, **getattr(agent, "FACTS", {})})
        is_loaded = True
        try:
            task, prompt = channel.receive()
        except EOFError:  # this worker was kept ready, and is not needed
            return 0
        os.environ.update(task.pop("environment"))
        report.update(_run(agent, channel, prompt.decode(errors="surrogateescape"), **task))
    except UnusableAgent as refusal:
        report["refused"] = message = str(refusal)
        status = 1
    except SystemExit as end:
        if isinstance(end.code, int):
            status = end.code & 0xFF
        elif end.code is not None:
            status, message = 1, str(end.code)
        if isinstance(end.code, str) and not is_loaded:
            report["refused"] = end.code
    except BaseException as error:  # noqa: BLE001 - whatever the agent raises is its outcome
        _print_traceback(error)
        status = 1
    if message is not None:
        print(message, file=sys.stderr)  # noqa: T201
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    channel.send({**report, "status": status})
    return status


def _print_traceback(error: BaseException) -> None:
    """Print it as Python does, without the frames of this file and of the import system above the agent's own."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in {__file__, importlib.__file__}:
        trace = trace.tb_next
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith("<frozen importlib"):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


def _load(file: str | None, module: str | None, entry: str) -> Any:
    """Load the file or module, and return the class, function or object in it that `entry` names.

    A file is loaded as `python FILE` would, under a name that no import finds. A module is imported as `python -m`
    would, which sees the current folder.
    """
    sys.argv = [file or module or ""]
    if file is not None:
        sys.path.insert(0, os.path.dirname(file))
        name = "_sweep_agent_" + "".join(c if c.isalnum() else "_" for c in os.path.basename(file)[:-3])
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise UnusableAgent(f"{file}: not a Python file")
        found: Any = importlib.util.module_from_spec(spec)
        sys.modules[name] = found
        spec.loader.exec_module(found)
    else:
        assert module is not None
        sys.path.insert(0, os.getcwd())
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module}.".startswith(f"{error.name}."):
                where = f"for {sys.executable} in {os.getcwd()}"
                raise UnusableAgent(f"there is no module {error.name!r} {where}") from None
            raise

    for part in entry.split("."):
        if not hasattr(found, part):
            raise UnusableAgent(f"{file or f'module {module}'} has no {part!r}{_hint(part, found)}")
        found = getattr(found, part)
    return found


def _hint(name: str, owner: object) -> str:
    """Suggest names close to the missing one, else the names that could have been meant."""
    with standard_library():
        import difflib  # only to explain a mistake

    mine = getattr(owner, "__name__", None)
    candidates = [
        key
        for key, value in getattr(owner, "__dict__", {}).items()
        if callable(value) and getattr(value, "__module__", mine) == mine
    ]
    near = (
        difflib.get_close_matches(name, candidates, n=3) or [key for key in candidates if not key.startswith("_")][:5]
    )
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _check(entry: Any, name: str) -> None:
    """Check that `_run` will be able to call it, without doing so. Raises UnusableAgent."""
    if inspect.isclass(entry):
        _choose(entry, dict.fromkeys(OFFERED, ""), name)
        method = _method_of_class(entry)
        if method is None and _find(entry, "__getattr__") is None:
            raise UnusableAgent(f"class {name} has no method to run: none of {', '.join(ENTRY_POINTS)}")
    elif inspect.isroutine(entry):
        _choose(entry, dict.fromkeys(OFFERED, ""), name)
    elif not callable(entry) and not any(callable(getattr(entry, method, None)) for method in ENTRY_POINTS):
        raise UnusableAgent(f"{name} is neither a class nor a function, and has none of {', '.join(ENTRY_POINTS)}")


def _takes(entry: Any) -> list[str]:
    """The names of the parameters of a function, or of a class and its method."""
    callables = [entry, _method_of_class(entry)] if inspect.isclass(entry) else [entry]
    names = set()
    for each in callables:
        with contextlib.suppress(TypeError, ValueError):  # written in C, or only there once it is an instance
            names |= set(inspect.signature(each).parameters)
    return sorted(names.intersection(OFFERED))


def _method_of_class(entry: type) -> Any:
    return next((found for found in (_find(entry, method) for method in ENTRY_POINTS) if callable(found)), None)


def _find(entry: type, name: str) -> Any:
    """The attribute of the class itself or a base; `getattr` would find `type.__call__`, which every class has."""
    return next((base.__dict__[name] for base in entry.__mro__ if name in base.__dict__), None)


def _run(
    agent: Any,
    channel: Channel,
    prompt: str,
    *,
    scenario_id: str,
    scenario_name: str,
    model: str | None,
    settings: dict[str, Any],
    devbox_id: str,
    working_directory: str,
    scratch: str,
    time_limit: float,
    mcp_servers: list[dict[str, Any]],
    skills_dir: str,
    trajectory: str,
) -> Header:
    """Call the agent; an asynchronous one is built and run inside one event loop.

    Returns the `usage` and `exit_reason` that it returned, its `version`, and whether it `is_timed_out`; anything else
    that it returned is ignored.
    """
    offers = {
        "prompt": prompt,
        "workspace": WorkspaceClient(channel, working_directory=working_directory, scratch=scratch),
        "scenario": ScenarioName(scenario_id, scenario_name),
        "model": model,
        "settings": settings,
        "log": Log(channel),
        "devbox_id": devbox_id,
        "time_limit": time_limit,
        "mcp_servers": mcp_servers,
        "skills_dir": skills_dir,
        "trajectory": trajectory,
    }
    method = _method_of_class(agent) if inspect.isclass(agent) else agent
    if inspect.iscoroutinefunction(method) or inspect.iscoroutinefunction(getattr(method, "__call__", None)):  # noqa: B004
        value = _in_loop(lambda: _call(agent, offers))
    else:
        value = _call(agent, offers)
        if inspect.isawaitable(value):
            awaitable = value
            value = _in_loop(lambda: awaitable)
    if not isinstance(value, dict):
        return {}
    usage, reason = value.get("usage"), value.get("exit_reason")
    numbers = {
        str(key): number
        for key, number in (usage.items() if isinstance(usage, dict) else ())
        if isinstance(number, (int, float)) and not isinstance(number, bool)
    }
    facts = {"version": str(value.get("version") or ""), "is_timed_out": value.get("is_timed_out") is True}
    return {"usage": numbers, "exit_reason": reason if isinstance(reason, str) else "", **facts}


def _in_loop(make: Callable[[], Any]) -> Any:
    with standard_library():
        import asyncio  # slow to import, and most agents do without

    async def inside() -> Any:
        value = make()
        return await value if inspect.isawaitable(value) else value

    return asyncio.run(inside())


def _call(entry: Any, offers: Header) -> Any:
    """Build a class and call its first entry point; call a function."""
    name = getattr(entry, "__qualname__", type(entry).__name__)
    if inspect.isroutine(entry):
        return entry(**_choose(entry, offers, name))
    agent = entry
    if inspect.isclass(entry):
        agent = entry(**_choose(entry, offers, name))
    for method in ENTRY_POINTS:
        if callable(getattr(agent, method, None)):
            function = getattr(agent, method)
            if inspect.isclass(entry) and hasattr(agent, PREPARATION):
                return _prepared(agent, function, offers, name)
            return function(**_choose(function, offers, f"{name}.{method}", is_method=inspect.isclass(entry)))
    raise UnusableAgent(f"{name} has no method to run: none of {', '.join(ENTRY_POINTS)}")


async def _prepared(agent: Any, function: Any, offers: Header, name: str) -> Any:
    """Let the agent prepare its devbox, wait for its turn, and run it."""
    prepare = getattr(agent, PREPARATION)
    await prepare(**_choose(prepare, offers, f"{name}.{PREPARATION}", is_method=True))
    await offers["workspace"].wait_turn()
    return await function(**_choose(function, offers, f"{name}.{function.__name__}", is_method=True))


def _choose(function: Any, offers: Header, name: str, *, is_method: bool = False) -> Header:
    """The arguments that a callable names. A default stays as it is where we have no value."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C
        return {} if is_method else {"prompt": offers["prompt"]}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    chosen = {
        p.name: offers[p.name]
        for p in named
        if p.name in offers and (p.default is p.empty or offers[p.name] not in (None, {}, [], ""))
    }
    lacking = [
        p.name
        for p in parameters
        if p.default is p.empty and p.name not in chosen and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if lacking:
        raise UnusableAgent(
            f"{name} asks for {', '.join(lacking)}; what it can ask for by name is {', '.join(OFFERED)}"
        )
    if not is_method and "prompt" not in chosen and any(p.kind is p.VAR_KEYWORD for p in parameters):
        chosen["prompt"] = offers["prompt"]
    return chosen
