"""What every test may ask for."""

import pytest
from hypothesis import settings

# Nothing is kept beside the tests, which may be read-only, and a busy machine is no failure.
settings.register_profile("ours", database=None, deadline=None)
settings.load_profile("ours")


@pytest.fixture
def anyio_backend() -> str:
    """The project is anyio on asyncio: one backend."""
    return "asyncio"
