"""Software that agents need in their devboxes, installed once and shown to every devbox that needs it.

An install is made from the bare machine and its settings, whatever environment asks for it, and all share that layer.
Where it cannot be made so, and an environment brings programs on its PATH, it is made once more with these, for that
environment alone and without the settings: `builder` says why. A build continues when the devbox that asked for it is
gone: the next attempt finds it done. Its failure is that of all that wait for it, and of none that comes later.
"""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import anyio
import structlog
from anyio.to_thread import run_sync

from orchestrator.service.environments.installs.builder import Brought, InstallBuild
from orchestrator.service.environments.installs.request import InstallFailed, InstallRequest
from orchestrator.service.environments.user_cache import UserCache
from orchestrator.service.sandbox.egress.addresses import Resolver
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import Bind, Capability, Provider, Resources

StartSoon = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]
Tell = Callable[[str], Awaitable[None]]

_FAILED: Final = "The install step failed"


class Installs:
    """Layers below `cache`, made in boxes of `provider`.

    `resolve` finds the addresses of names; None stands for the machine's own way.
    """

    def __init__(self, *, cache: Path, provider: Provider, resolve: Resolver | None = None) -> None:
        self._cache = UserCache(cache, "installs", kind="install", tree="files", read=lambda built: built.tree)
        self._provider = provider
        self._resolve = resolve

    @property
    def is_possible(self) -> bool:
        """True where devboxes can be shown files that they cannot change."""
        return {Capability.ISOLATED, Capability.ROOTED, Capability.EGRESS} <= self._provider.capabilities

    async def add(self, request: InstallRequest, prepared: Prepared, *, start_soon: StartSoon, tell: Tell) -> Prepared:
        """Return the environment with the install in it; made now, by a task of `start_soon`, if it never was.

        `tell` is given messages on the progress, for people. Raises InstallFailed.
        """
        brought = await run_sync(Brought.of, prepared)
        builds = [
            InstallBuild(
                request=request,
                brought=each,
                resources=prepared.resources or Resources(),
                provider=self._provider,
                resolve=self._resolve,
            )
            for each in ((None,) if brought is None else (None, brought))
        ]
        layer: Path | None = None
        try:
            for build in builds:
                layer = layer or await run_sync(self._cache.find, await run_sync(build.name))
        except OSError as error:
            raise InstallFailed(f"{_FAILED}: {error}") from error

        if layer is None:
            await tell(f"What belongs at {request.prefix} is being installed, once for all devboxes that need it.")
            failures = []
            for build in builds:
                made = await self._make(build, start_soon)
                if isinstance(made, Path):
                    layer = made
                    break
                with_what = "" if build.brought is None else "With the programs that the environment brings: "
                failures.append(f"{with_what}{made}")
            else:
                raise InstallFailed(f"{_FAILED}: {chr(10).join(failures)}")
        await tell(f"What belongs at {request.prefix} is there.")
        return replace(prepared, binds=(*prepared.binds, Bind(source=layer, target=request.prefix)))

    async def _make(self, build: InstallBuild, start_soon: StartSoon) -> Path | str:
        """Return the layer, or why it was not made."""
        over, log = anyio.Event(), structlog.get_logger()
        made: Path | str = "the service stopped"

        async def make() -> None:
            nonlocal made
            try:
                made = await self._cache.get(await run_sync(build.name), build.carry_out)
            except (InstallFailed, OSError) as error:
                made = str(error)
            except Exception as error:  # one install's trouble is not the service's
                log.exception("install.crashed", install=build.request.key)
                made = repr(error)
            finally:
                over.set()

        start_soon(make)
        await over.wait()
        return made
