"""What every test may ask for."""

import anyio
import pytest
from hypothesis import settings

from orchestrator.errors import SandboxUnavailable
from orchestrator.service.devboxes.local import check_sandbox

# Nothing is kept beside the tests, which may be read-only, and a busy machine is no failure.
settings.register_profile("ours", database=None, deadline=None)
settings.load_profile("ours")


@pytest.fixture
def anyio_backend() -> str:
    """The project is anyio on asyncio: one backend."""
    return "asyncio"


@pytest.fixture(scope="session")
def isolation() -> str:
    """Sandboxes where the machine permits them; without isolation whole sweeps must work all the same."""
    try:
        anyio.run(check_sandbox)
    except SandboxUnavailable:
        return "none"
    return "local"
