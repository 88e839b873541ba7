"""Sandboxes, and installs whose scripts need no network."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

import anyio
import pytest
from anyio.abc import TaskGroup

from orchestrator.service.environments.installs import InstallRequest, Installs
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.commands import Finished, run
from orchestrator.service.sandbox.egress.addresses import Resolver
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import Box, BoxSpec, Provider, shell

PREFIX = "/home/user/.agent"
#: Each making of it differs.
SCRIPT = "mkdir -p $SWEEP_AGENT_PREFIX/bin && cat /proc/sys/kernel/random/uuid > $SWEEP_AGENT_PREFIX/id"


@pytest.fixture(scope="module")
async def provider(tmp_path_factory: pytest.TempPathFactory, sandboxes: None) -> AsyncIterator[BwrapProvider]:
    local = BwrapProvider(tmp_path_factory.mktemp("devboxes"))
    yield local
    await local.close()


@dataclass(frozen=True, kw_only=True)
class Shop:
    """One service's installs, with the tasks that make them."""

    installs: Installs
    provider: Provider
    tasks: TaskGroup
    told: list[str] = field(default_factory=list)

    async def add(self, install: InstallRequest, prepared: Prepared | None = None) -> Prepared:
        async def tell(message: str) -> None:
            self.told.append(message)

        return await self.installs.add(install, prepared or Prepared(), start_soon=self.tasks.start_soon, tell=tell)

    async def made(self, install: InstallRequest, prepared: Prepared | None = None) -> str:
        """The number of the run of SCRIPT whose layer a devbox gets."""
        return (self.layer(await self.add(install, prepared)) / "id").read_text()

    @staticmethod
    def layer(prepared: Prepared) -> Path:
        return prepared.binds[-1].source

    @asynccontextmanager
    async def box(self, prepared: Prepared) -> AsyncIterator[Box]:
        spec = BoxSpec(id=f"box-{token_hex(4)}", environment=prepared.environment, binds=prepared.binds)
        box = await self.provider.start(spec)
        try:
            yield box
        finally:
            await box.stop()

    @staticmethod
    async def said(box: Box, script: str) -> Finished:
        return await run(box, shell(script), timeout=20)


@asynccontextmanager
async def opened(provider: Provider, cache: Path, resolve: Resolver | None = None) -> AsyncIterator[Shop]:
    async with anyio.create_task_group() as tasks:
        installs = Installs(cache=cache, provider=provider, resolve=resolve)
        yield Shop(installs=installs, provider=provider, tasks=tasks)
        tasks.cancel_scope.cancel()


Machine = Callable[..., Path]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A user's home with these files and variables."""

    def make(files: dict[str, str] | None = None, **variables: str) -> Path:
        home = tmp_path / "somebody"
        home.mkdir()
        monkeypatch.setenv("HOME", str(home))
        for name, text in (files or {}).items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(text)
            (home / name).chmod(0o600)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return home

    return make


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
async def shop(provider: BwrapProvider, cache: Path) -> AsyncIterator[Shop]:
    async with opened(provider, cache) as one:
        yield one


def planted(root: Path, name: str, text: str = "") -> Path:
    """A file that an environment brings, which can be run."""
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


def files(folder: Path, pattern: str) -> list[str]:
    """Their names."""
    return [file.name for file in folder.glob(pattern)]


def holding(folder: Path, text: str) -> list[Path]:
    """Files that have a text in them."""
    return [file for file in folder.rglob("*") if file.is_file() and text in file.read_text(errors="replace")]


def texts(folder: Path, pattern: str) -> list[str]:
    """Their content."""
    return [file.read_text() for file in folder.glob(pattern)]


def wanted(script: str = SCRIPT, *, key: str = "k1", hosts: tuple[str, ...] = (), **environment: str) -> InstallRequest:
    return InstallRequest(key=key, script=script, prefix=PREFIX, environment=environment, hosts=hosts)
