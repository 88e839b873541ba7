"""Installs, made once for each environment they differ in and shown to every devbox that needs them.

What an install is made of, beside its script, are the machine's programs and those that an environment brings, which
are on its PATH or come with a login; whatever else is in it (the project an agent works on) makes no difference, so
most environments share the layer that was made from none. A making goes on when the devbox that asked for it is gone:
the next attempt finds it done. Its failure is that of all who wait for it, and of nobody who comes later.
"""

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import time
from typing import Any, Final

import anyio
import orjson
import structlog
from anyio.to_thread import run_sync

from orchestrator.service.devboxes.contract import Bind, Capability, Provider
from orchestrator.service.devboxes.prepared import Prepared
from orchestrator.service.installs.builder import Building
from orchestrator.service.installs.install import Install, InstallFailed
from orchestrator.service.installs.layers import Layers

StartSoon = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]
Tell = Callable[[str], Awaitable[None]]

MAKINGS: Final = 4
CLEAR_TIME: Final = 60
#: Seconds between two looks whether another process has made what we need.
_POLL: Final = 0.25
#: By these an environment brings programs of its own.
_TOOLS: Final = ("PATH", "LD_LIBRARY_PATH")
_LOGIN_FILES: Final = (".bash_profile", ".bash_login", ".profile")
_PROGRAMS: Final = ("bash", "node", "npm", "python3", "uv")
_PROGRAM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_FAILED: Final = "The install step failed"


@dataclass(slots=True)
class _Making:
    """A layer that is being made, for all who wait for it."""

    over: anyio.Event = field(default_factory=anyio.Event)
    failure: str = "the service stopped"
    layer: Path | None = None


class Installs:
    """Layers below `cache`, made in boxes of `provider`."""

    def __init__(self, *, cache: Path, provider: Provider) -> None:
        self._layers = Layers(cache)
        self._provider = provider
        self._makings: dict[str, _Making] = {}
        self._seats: anyio.Semaphore | None = None

    @property
    def is_possible(self) -> bool:
        """Whether devboxes here can be shown what others cannot change."""
        return {Capability.ISOLATED, Capability.ROOTED, Capability.NETWORK_ON} <= self._provider.capabilities

    async def add(self, install: Install, prepared: Prepared, *, start_soon: StartSoon, tell: Tell) -> Prepared:
        """The environment with the install in it; made now, by what `start_soon` runs, if it never was.

        `tell` hears, for people, what goes on. Raises InstallFailed.
        """
        base = await run_sync(_base, prepared)
        name = await run_sync(_name, install, base, self._provider.name)
        try:
            layer = await run_sync(self._layers.use, name)
        except OSError as error:
            raise InstallFailed(f"{_FAILED}: {error}") from error
        if layer is None:
            await tell(f"What belongs at {install.prefix} is being installed, once for all devboxes that need it.")
            layer = await self._made(name, install, base, start_soon)
        await tell(f"What belongs at {install.prefix} is there.")
        return replace(prepared, binds=(*prepared.binds, Bind(source=layer, target=install.prefix)))

    async def _made(self, name: str, install: Install, base: Prepared, start_soon: StartSoon) -> Path:
        making = self._makings.get(name)
        if making is None:
            making = _Making()
            start_soon(partial(self._carry_out, making, name, install, base))
            self._makings[name] = making
        await making.over.wait()
        if making.layer is None:
            raise InstallFailed(f"{_FAILED}: {making.failure}")
        return making.layer

    async def _carry_out(self, making: _Making, name: str, install: Install, base: Prepared) -> None:
        log = structlog.get_logger()
        try:
            await run_sync(self._layers.prune)
            making.layer = await self._make(name, install, base)
        except (InstallFailed, OSError) as error:
            making.failure = error.message if isinstance(error, InstallFailed) else str(error)
        except Exception as error:  # one install's trouble is not the service's
            log.exception("install.crashed", install=install.key)
            making.failure = repr(error)
        finally:
            del self._makings[name]
            making.over.set()

    async def _make(self, name: str, install: Install, base: Prepared) -> Path:
        """The layer, made by us or by another process meanwhile. Raises InstallFailed and OSError."""
        self._seats = self._seats or anyio.Semaphore(MAKINGS)
        async with self._seats:
            while (layer := await run_sync(self._layers.use, name)) is None:
                lock = await run_sync(self._layers.reserve, name)
                if lock is None:
                    await anyio.sleep(_POLL)
                    continue
                try:
                    await self._build(name, install, base)
                finally:
                    os.close(lock)
        return layer

    async def _build(self, name: str, install: Install, base: Prepared) -> None:
        began = anyio.current_time()
        try:
            folder = await run_sync(self._layers.open, name)
            building = Building(install=install, base=base, provider=self._provider, folder=folder)
            tree = await building.carry_out()
            seconds = round(anyio.current_time() - began, 3)
            facts = {"key": install.key, "base": base.name, "made_at": round(time(), 3), "seconds": seconds}
            await run_sync(self._layers.keep, name, tree, facts)
        finally:
            with anyio.move_on_after(CLEAR_TIME, shield=True):
                await run_sync(self._layers.clear, name)
        structlog.get_logger().info("install.made", install=install.key, base=base.name, seconds=seconds)


def _base(prepared: Prepared) -> Prepared:
    """What of an environment an install can depend on; nothing of most."""
    tools = {name: prepared.environment[name] for name in _TOOLS if name in prepared.environment}
    home = prepared.root / "home" / "user" if prepared.root is not None else None
    is_bringing = bool(tools) or (home is not None and any((home / name).exists() for name in _LOGIN_FILES))
    if not is_bringing:
        return Prepared(resources=prepared.resources)
    name = prepared.name or str(prepared.root)
    return Prepared(name=name, root=prepared.root, environment=tools, resources=prepared.resources)


def _name(install: Install, base: Prepared, provider: str) -> str:
    known = [install.key, install.prefix, base.name, dict(base.environment), provider, _machine()]
    return hashlib.sha256(orjson.dumps(known, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def _machine() -> list[object]:
    """What may not change under what was installed."""
    found = (shutil.which(program, path=_PROGRAM_PATH) for program in _PROGRAMS)
    programs = [Path(program).resolve() for program in found if program]
    stats = [(os.fspath(program), program.stat().st_size, program.stat().st_mtime_ns) for program in programs]
    system = Path("/etc/os-release")
    release = system.read_text(errors="replace") if system.exists() else platform.platform()
    return [platform.machine(), sys.version, sys.base_prefix, release, stats]
