"""The source of benchmarks: an endpoint elsewhere, or the embedded service over folders of this machine.

The published client takes as long to import as the embedded service takes to start, so the two are done side by side.
"""

import importlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from textwrap import shorten
from threading import Thread
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import anyio

from orchestrator.commands import BUNDLED
from orchestrator.commands.fetched import fetch
from orchestrator.common import logging_setup
from orchestrator.core.config import RegistryConfig, SweepConfig
from orchestrator.core.errors import Unauthorized, UsageError, WorldError
from orchestrator.core.protocol import DiskLimit, Isolation, LockKind
from orchestrator.core.records import Benchmark
from orchestrator.endpoint.embedded_service import Service
from orchestrator.endpoint.protocols import Definitions
from orchestrator.rundir.files import MANIFEST
from orchestrator.rundir.manifest import read_manifest

if TYPE_CHECKING:
    from orchestrator.endpoint.gateway import Gateway

#: The time in which an endpoint must answer the first requests.
GREETING_S: Final = 10.0
DEFAULT_RATE: Final = 20.0
#: Images from their own registries, and as many as the disk has room for.
NO_IMAGES: Final = RegistryConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The source of benchmarks: folders for the embedded service, or an endpoint elsewhere."""

    endpoint: str | None
    folders: tuple[Path, ...]
    isolation: Isolation
    runs: Path
    lock: LockKind = "file"
    disk_limit: DiskLimit = DiskLimit.WATCHED
    #: Devboxes of the embedded service may have this machine's network.
    lends_network: bool = False
    images: RegistryConfig = NO_IMAGES
    #: What the benchmark was made from, where it was fetched.
    origin: Mapping[str, Any] | None = None


def where(
    benchmark: str,
    *,
    endpoint: str | None,
    isolation: Isolation,
    runs: Path,
    lock: LockKind = "file",
    lends_network: bool = False,
    disk_limit: DiskLimit = DiskLimit.WATCHED,
    images: RegistryConfig = NO_IMAGES,
    origin: Mapping[str, Any] | None = None,
) -> tuple[Where, str]:
    """Find the source of a benchmark, and its name there: for a path, the embedded service.

    `origin` is what it was made from, where it was fetched.
    Raises UsageError, also for a folder without a benchmark, with several, and with a broken one.
    """
    make = partial(
        Where,
        isolation=isolation,
        runs=runs,
        lock=lock,
        lends_network=lends_network,
        disk_limit=disk_limit,
        images=images,
        origin=origin,
    )
    path = Path(benchmark)
    is_path = path.is_dir() or benchmark.startswith((".", "/", "~"))
    if not is_path:
        return make(endpoint=endpoint, folders=(BUNDLED,)), benchmark
    if endpoint:
        raise UsageError(
            f"{benchmark} is a folder that {endpoint} cannot see: leave out --endpoint and RUNLOOP_BASE_URL "
            "to serve it here."
        )
    from orchestrator.service.definitions.index import benchmark_folders, read_benchmark
    from orchestrator.service.diagnostics import printable, text

    folder = path.expanduser().resolve()
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder.")
    if printable(folder) != str(folder):
        raise UsageError(f"{printable(folder)}: the path is not UTF-8, as what is written of a sweep is: rename it.")
    found = benchmark_folders(folder)
    if not found:
        raise UsageError(
            f"{folder} holds no scenario: a scenario is a folder with a task.toml. `sweep check` says more."
        )
    if len(found) > 1:
        raise UsageError(f"{folder} holds several benchmarks; name one: {', '.join(str(each) for each in found)}.")
    file = read_benchmark(found[0])
    if file.errors:
        raise UsageError(f"{file.boundary}: {text(file.errors)}. Fix it; `sweep check` says more.")
    return make(endpoint=None, folders=(folder,)), file.name


async def where_of(config: SweepConfig, runs: Path, tell: Callable[[str], None] = lambda _: None) -> tuple[Where, str]:
    """Find the source of a sweep's benchmark, and its name there; one from elsewhere is fetched.

    A sweep that is there goes on with what its benchmark was made from. Raises UsageError as `where` does, and
    WorldError.
    """
    origin: Mapping[str, Any] | None = None
    if config.name and (runs / config.name / MANIFEST).exists():
        manifest = await anyio.to_thread.run_sync(read_manifest, runs / config.name)
        origin = manifest.origin if manifest.config.get("benchmark") == config.benchmark else None
    benchmark, origin = await fetch(
        config.benchmark, config.registry, endpoint=config.endpoint, origin=origin, tell=tell
    )
    return where(
        benchmark,
        endpoint=config.endpoint,
        isolation=config.isolation,
        runs=runs,
        lock=config.lock,
        lends_network=config.network == "host",
        disk_limit=config.disk_limit,
        images=config,
        origin=origin,
    )


@asynccontextmanager
async def open_endpoint(
    place: Where,
    *,
    rate: float | None = None,
    on_push_back: Callable[[], None] = lambda: None,
    hidden: Collection[str] = (),
) -> AsyncIterator["Gateway"]:
    """Connect to the endpoint, or to the embedded service. Raises UsageError where a key is missing.

    An embedded service that is started for it does not get the `hidden` variables of our environment.
    """
    logging_setup.warn_only()
    Thread(target=_import_gateway, daemon=True).start()
    async with AsyncExitStack() as stack:
        service = None
        if place.endpoint is None:
            service = await stack.enter_async_context(
                Service.open(
                    place.runs,
                    benchmarks=place.folders,
                    isolation=place.isolation,
                    hidden=hidden,
                    lock=place.lock,
                    lends_network=place.lends_network,
                    disk_limit=place.disk_limit,
                    images=place.images,
                )
            )
            url, token = service.address.url, service.address.token
        else:
            url, token = place.endpoint, os.environ.get("RUNLOOP_API_KEY", "")
            if not token:
                raise UsageError(f"{url} needs a key: set RUNLOOP_API_KEY. Without --endpoint no key is needed.")
            host = urlsplit(url).hostname or ""
            is_loopback = host in {"localhost", "::1"} or host.startswith("127.")
            rate = rate or (None if is_loopback else DEFAULT_RATE)
        gateway = await anyio.to_thread.run_sync(_import_gateway)
        endpoint = await stack.enter_async_context(gateway.open(url, token, rate=rate, on_push_back=on_push_back))
        if service is not None:
            service.follow(endpoint.move)
        yield endpoint


def _import_gateway() -> "type[Gateway]":
    gateway: type[Gateway] = importlib.import_module("orchestrator.endpoint.gateway").Gateway
    return gateway


async def list_benchmarks(endpoint: Definitions, patience: float = GREETING_S) -> list[Benchmark]:
    """The endpoint's benchmarks. Raises UsageError with the fix when it refuses the key or has no benchmark routes.

    `patience` is how many seconds it may take to answer.
    """
    try:
        with anyio.fail_after(patience):
            return await endpoint.benchmarks()
    except Unauthorized as error:
        raise UsageError(f"{endpoint.url} refuses the key in RUNLOOP_API_KEY: {error}") from None
    except TimeoutError:
        raise UsageError(f"{endpoint.url} did not answer for {patience:g} s. Is the address right?") from None
    except WorldError as error:
        words = shorten(error.message, 300, placeholder=" …")  # other web servers answer with a page
        raise UsageError(
            f"{endpoint.url} does not serve benchmarks: {words}. Runloop's hosted API was retired: "
            "leave out --endpoint to run on the embedded service, or name one that serves them (sweep serve)."
        ) from None


async def find_benchmark(endpoint: Definitions, name: str, patience: float = GREETING_S) -> Benchmark:
    """The benchmark with this name or id. Raises UsageError suggesting near names, and as `list_benchmarks` does."""
    known = await list_benchmarks(endpoint, patience)
    found = [benchmark for benchmark in known if name in {benchmark.id, benchmark.name}]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"Several benchmarks are called {name!r}; give an id: {', '.join(b.id for b in found)}.")
    names = sorted(benchmark.name for benchmark in known)
    near = get_close_matches(name, names, 3)
    hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(names) or 'none'}."
    raise UsageError(f"There is no benchmark {name!r}. {hint} `sweep benchmarks list` shows them all.")
