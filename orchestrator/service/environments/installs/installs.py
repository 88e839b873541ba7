"""Installs, made once and shown to every devbox that needs them.

An install is made from the bare machine and its settings, whatever environment asks for it, and all share that layer.
Where it cannot be made so, and an environment brings programs on its PATH, it is made once more with these, for that
environment alone and without the settings: `builder` says why. A making goes on when the devbox that asked for it is
gone: the next attempt finds it done. Its failure is that of all who wait for it, and of nobody who comes later.
"""

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import time
from typing import Any, Final

import anyio
import orjson
import structlog
from anyio.to_thread import run_sync

from orchestrator.service.environments.installs.brought import Brought
from orchestrator.service.environments.installs.builder import Building
from orchestrator.service.environments.installs.install import Install, InstallFailed
from orchestrator.service.environments.installs.layers import Layers
from orchestrator.service.sandbox.egress.addresses import Resolver
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import Bind, Capability, Provider, Resources

StartSoon = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]
Tell = Callable[[str], Awaitable[None]]

MAKINGS: Final = 4
CLEAR_TIME: Final = 60
#: Seconds between two looks whether another process has made what we need.
_POLL: Final = 0.25
#: Changes when the same install would be made in another way.
_VERSION: Final = 2
_PROGRAMS: Final = ("bash", "node", "npm", "python3", "uv")
_PROGRAM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_FAILED: Final = "The install step failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One way to make an install: from the bare machine, or with the programs that an environment `brought`."""

    install: Install
    brought: Brought | None
    resources: Resources
    provider: str

    def name(self) -> str:
        """The layer's. Blocking."""
        brought = [self.brought.name, dict(self.brought.environment)] if self.brought is not None else []
        known = [_VERSION, self.install.key, self.install.prefix, brought, self.provider, _machine()]
        return hashlib.sha256(orjson.dumps(known, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


@dataclass(slots=True)
class _Making:
    """A layer that is being made, for all who wait for it."""

    over: anyio.Event = field(default_factory=anyio.Event)
    failure: str = "the service stopped"
    layer: Path | None = None


class Installs:
    """Layers below `cache`, made in boxes of `provider`; `resolve` says where names lead, None the machine's way."""

    def __init__(self, *, cache: Path, provider: Provider, resolve: Resolver | None = None) -> None:
        self._layers = Layers(cache)
        self._provider = provider
        self._resolve = resolve
        self._makings: dict[str, _Making] = {}
        self._seats: anyio.Semaphore | None = None

    @property
    def is_possible(self) -> bool:
        """Whether devboxes here can be shown what others cannot change."""
        return {Capability.ISOLATED, Capability.ROOTED, Capability.EGRESS} <= self._provider.capabilities

    async def add(self, install: Install, prepared: Prepared, *, start_soon: StartSoon, tell: Tell) -> Prepared:
        """The environment with the install in it; made now, by what `start_soon` runs, if it never was.

        `tell` hears, for people, what goes on. Raises InstallFailed.
        """
        brought = await run_sync(Brought.of, prepared)
        plans = [
            _Plan(
                install=install, brought=each, resources=prepared.resources or Resources(), provider=self._provider.name
            )
            for each in ((None,) if brought is None else (None, brought))
        ]
        layer = await self._ready(plans)
        if layer is None:
            await tell(f"What belongs at {install.prefix} is being installed, once for all devboxes that need it.")
            layer = await self._first(plans, start_soon)
        await tell(f"What belongs at {install.prefix} is there.")
        return replace(prepared, binds=(*prepared.binds, Bind(source=layer, target=install.prefix)))

    async def _ready(self, plans: Sequence[_Plan]) -> Path | None:
        """The layer of the first plan that was carried out some time. Raises InstallFailed."""
        try:
            for plan in plans:
                layer = await run_sync(self._layers.use, await run_sync(plan.name))
                if layer is not None:
                    return layer
        except OSError as error:
            raise InstallFailed(f"{_FAILED}: {error}") from error
        return None

    async def _first(self, plans: Sequence[_Plan], start_soon: StartSoon) -> Path:
        """The layer of the first plan that can be carried out. Raises InstallFailed with what was wrong with each."""
        failures = []
        for plan in plans:
            making = await self._made(plan, start_soon)
            if making.layer is not None:
                return making.layer
            with_what = "" if plan.brought is None else "With the programs that the environment brings: "
            failures.append(f"{with_what}{making.failure}")
        raise InstallFailed(f"{_FAILED}: {chr(10).join(failures)}")

    async def _made(self, plan: _Plan, start_soon: StartSoon) -> _Making:
        name = await run_sync(plan.name)
        making = self._makings.get(name)
        if making is None:
            making = _Making()
            start_soon(partial(self._carry_out, making, name, plan))
            self._makings[name] = making
        await making.over.wait()
        return making

    async def _carry_out(self, making: _Making, name: str, plan: _Plan) -> None:
        log, install = structlog.get_logger(), plan.install
        try:
            await run_sync(self._layers.prune)
            making.layer = await self._make(name, plan)
        except (InstallFailed, OSError) as error:
            making.failure = error.message if isinstance(error, InstallFailed) else str(error)
        except Exception as error:  # one install's trouble is not the service's
            log.exception("install.crashed", install=install.key)
            making.failure = repr(error)
        finally:
            del self._makings[name]
            making.over.set()

    async def _make(self, name: str, plan: _Plan) -> Path:
        """The layer, made by us or by another process meanwhile. Raises InstallFailed and OSError."""
        self._seats = self._seats or anyio.Semaphore(MAKINGS)
        async with self._seats:
            while (layer := await run_sync(self._layers.use, name)) is None:
                lock = await run_sync(self._layers.reserve, name)
                if lock is None:
                    await anyio.sleep(_POLL)
                    continue
                try:
                    await self._build(name, plan)
                finally:
                    os.close(lock)
        return layer

    async def _build(self, name: str, plan: _Plan) -> None:
        began, base = anyio.current_time(), "" if plan.brought is None else plan.brought.name
        try:
            folder = await run_sync(self._layers.open, name)
            building = Building(
                install=plan.install,
                brought=plan.brought,
                resources=plan.resources,
                provider=self._provider,
                folder=folder,
                resolve=self._resolve,
            )
            tree = await building.carry_out()
            seconds = round(anyio.current_time() - began, 3)
            facts = {"key": plan.install.key, "base": base, "made_at": round(time(), 3), "seconds": seconds}
            await run_sync(self._layers.keep, name, tree, facts)
        finally:
            with anyio.move_on_after(CLEAR_TIME, shield=True):
                await run_sync(self._layers.clear, name)
        structlog.get_logger().info("install.made", install=plan.install.key, base=base, seconds=seconds)


def _machine() -> list[object]:
    """What may not change under what was installed."""
    found = (shutil.which(program, path=_PROGRAM_PATH) for program in _PROGRAMS)
    programs = [Path(program).resolve() for program in found if program]
    stats = [(os.fspath(program), program.stat().st_size, program.stat().st_mtime_ns) for program in programs]
    system = Path("/etc/os-release")
    release = system.read_text(errors="replace") if system.exists() else platform.platform()
    return [platform.machine(), sys.version, sys.base_prefix, release, stats]
