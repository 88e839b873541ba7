"""Loads the user's class or function, calls it with what it asks for by name, and reports how that ended."""
# ruff: noqa: PTH109, PTH119, PTH120  # importing pathlib would take longer than all this file does

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback

from .log import Log
from .standard import standard_library
from .workspace import Workspace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from .frames import Channel, Header

#: How an agent is run: the first of these that it has.
ENTRY_POINTS = ("run", "__call__", "solve")
#: What an agent may ask for by the name of a parameter.
OFFERED = ("prompt", "workspace", "scenario", "model", "settings", "log", "devbox_id")


class Scenario:
    """Which scenario this is."""

    def __init__(self, scenario_id: str, name: str) -> None:
        self.id = scenario_id
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Scenario(id={self.id!r}, name={self.name!r})"


class Refused(Exception):
    """The reference does not lead to an agent that can be run; the message says why."""


def work(job: Header, channel: Channel) -> int:
    """Load an agent, say so, and run it on the task that follows, if one does; report, and return the exit status.

    An agent that ends itself with words while it is loaded refuses to be.
    """
    report: Header = {"op": "result"}
    status, is_loaded = 0, False
    try:
        entry = _load(job)
        _check(entry, job["entry"])
        channel.send({"op": "loaded"})
        is_loaded = True
        given = _receive(channel)
        if given is None:
            return 0
        task, prompt = given
        os.environ.update(task["environment"])
        report.update(_reported(_run(entry, _offers(task, prompt, channel))))
    except Refused as refusal:
        report["refused"] = str(refusal)
        status = _failed(str(refusal))
    except SystemExit as end:
        if isinstance(end.code, str) and not is_loaded:
            report["refused"] = end.code
        status = _exit_status(end.code)
    except BaseException as error:  # noqa: BLE001 - whatever the agent raises is its outcome
        _print_traceback(error)
        status = 1
    _flush()
    channel.send({**report, "status": status})
    return status


def _receive(channel: Channel) -> tuple[Header, bytes] | None:
    """None for a worker that was kept ready and is not needed."""
    try:
        return channel.receive()
    except EOFError:
        return None


def _failed(message: str) -> int:
    print(message, file=sys.stderr)  # noqa: T201
    return 1


def _exit_status(code: object) -> int:
    """The meaning of what `sys.exit` was given."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else _failed(str(code))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _print_traceback(error: BaseException) -> None:
    """As Python prints it, without the frames of this file and of the import system above the agent's own."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in {__file__, importlib.__file__}:
        trace = trace.tb_next
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith("<frozen importlib"):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


def _load(job: Header) -> Any:
    """The class, function or object that the job names."""
    module = _load_file(job["file"]) if job["file"] is not None else _load_module(job["module"])
    entry: Any = module
    for part in job["entry"].split("."):
        if not hasattr(entry, part):
            raise Refused(f"{_name(job)} has no {part!r}{_hint(part, entry)}")
        entry = getattr(entry, part)
    return entry


def _name(job: Header) -> str:
    return str(job["file"] or f"module {job['module']}")


def _load_file(path: str) -> ModuleType:
    """Load a file as `python FILE` would, under a name nothing else imports."""
    sys.argv = [path]
    sys.path.insert(0, os.path.dirname(path))
    name = "_sweep_agent_" + "".join(c if c.isalnum() else "_" for c in os.path.basename(path)[:-3])
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Refused(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    """Import a module as `python -m` would, which sees the current folder."""
    sys.argv = [name]
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise Refused(f"there is no module {error.name!r} for {sys.executable} in {os.getcwd()}") from None
        raise


def _hint(name: str, owner: object) -> str:
    """Names near to one that is not there, else the names of everything that could have been meant."""
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
    """See whether `_run` will be able to call it, without doing so. Raises Refused."""
    if inspect.isclass(entry):
        _choose(entry, dict.fromkeys(OFFERED, ""), name)
        method = _method_of_class(entry)
        if method is None and _find(entry, "__getattr__") is None:
            raise Refused(f"class {name} has no method to run: none of {', '.join(ENTRY_POINTS)}")
    elif inspect.isroutine(entry):
        _choose(entry, dict.fromkeys(OFFERED, ""), name)
    elif not callable(entry) and not any(callable(getattr(entry, method, None)) for method in ENTRY_POINTS):
        raise Refused(f"{name} is neither a class nor a function, and has none of {', '.join(ENTRY_POINTS)}")


def _method_of_class(entry: type) -> Any:
    return next((found for found in (_find(entry, method) for method in ENTRY_POINTS) if callable(found)), None)


def _find(entry: type, name: str) -> Any:
    """What the class itself or a base defines; `getattr` would find `type.__call__`, which every class has."""
    return next((base.__dict__[name] for base in entry.__mro__ if name in base.__dict__), None)


def _offers(job: Header, prompt: bytes, channel: Channel) -> Header:
    return {
        "prompt": prompt.decode(errors="surrogateescape"),
        "workspace": Workspace(channel, working_directory=job["working_directory"], scratch=job["scratch"]),
        "scenario": Scenario(job["scenario_id"], job["scenario_name"]),
        "model": job["model"],
        "settings": job["settings"],
        "log": Log(channel),
        "devbox_id": job["devbox_id"],
    }


def _run(entry: Any, offers: Header) -> Any:
    """Call the agent; an asynchronous one is built and run inside one event loop."""
    method = _method_of_class(entry) if inspect.isclass(entry) else entry
    if inspect.iscoroutinefunction(method) or inspect.iscoroutinefunction(getattr(method, "__call__", None)):  # noqa: B004
        return _in_loop(lambda: _call(entry, offers))
    value = _call(entry, offers)
    return _in_loop(lambda: value) if inspect.isawaitable(value) else value


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
            return function(**_choose(function, offers, f"{name}.{method}", is_method=inspect.isclass(entry)))
    raise Refused(f"{name} has no method to run: none of {', '.join(ENTRY_POINTS)}")


def _choose(function: Any, offers: Header, name: str, *, is_method: bool = False) -> Header:
    """The arguments that a callable asks for by name. What we have no value for leaves a default as it is."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C
        return {} if is_method else {"prompt": offers["prompt"]}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    chosen = {
        p.name: offers[p.name]
        for p in named
        if p.name in offers and (p.default is p.empty or offers[p.name] not in (None, {}))
    }
    lacking = [
        p.name
        for p in parameters
        if p.default is p.empty and p.name not in chosen and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if lacking:
        raise Refused(f"{name} asks for {', '.join(lacking)}; what it can ask for by name is {', '.join(OFFERED)}")
    if not is_method and "prompt" not in chosen and any(p.kind is p.VAR_KEYWORD for p in parameters):
        chosen["prompt"] = offers["prompt"]
    return chosen


def _reported(value: Any) -> Header:
    """What an agent returned as `usage` and `exit_reason`; anything else it returned is its own affair."""
    if not isinstance(value, dict):
        return {}
    usage, reason = value.get("usage"), value.get("exit_reason")
    numbers = {
        str(key): number
        for key, number in (usage.items() if isinstance(usage, dict) else ())
        if isinstance(number, (int, float)) and not isinstance(number, bool)
    }
    return {"usage": numbers, "exit_reason": reason if isinstance(reason, str) else ""}
