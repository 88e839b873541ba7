"""What every test may ask for."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The project is anyio on asyncio: one backend."""
    return "asyncio"
