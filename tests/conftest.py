"""Fixtures for every test."""

import os
from collections.abc import Iterator

import anyio
import pytest
from hypothesis import settings

from orchestrator.common import logging_setup
from orchestrator.core.errors import SandboxUnavailable
from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.providers import check
from tests.caches import shared_cache

# Nothing is kept beside the tests, which may be read-only, and a busy machine is no failure.
settings.register_profile("ours", database=None, deadline=None)
settings.load_profile("ours")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The project is anyio on asyncio: one backend. Of the session, so that any fixture may be shared."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def user_cache() -> Iterator[None]:
    """What services keep for their user is not kept among the tester's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEP_CACHE", os.environ.get("SWEEP_CACHE") or str(shared_cache()))
        yield


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that runs within a test sets up logging for that test alone."""
    with logging_setup.kept():
        yield


@pytest.fixture(scope="session")
def obstacle() -> str:
    """The reason why this machine permits no sandboxes; empty where it does."""
    try:
        anyio.run(check, Isolation.LOCAL)
    except SandboxUnavailable as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def isolation(obstacle: str) -> str:
    """Sandboxes where the machine permits them; without isolation whole sweeps must work all the same."""
    return "none" if obstacle else "local"


@pytest.fixture(scope="session")
def sandboxes(obstacle: str) -> None:
    """For what works in sandboxes only: skipped where the machine permits none."""
    if obstacle:
        pytest.skip(f"no sandboxes here: {obstacle}")
