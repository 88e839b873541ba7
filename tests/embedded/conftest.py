"""A runs folder whose services are gone when the test is, and what tests ask about them."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.commands import BUNDLED
from orchestrator.core.protocol import Isolation
from orchestrator.endpoint.embedded_service import Service, state_folder
from tests.waiting import wait_until


@dataclass(frozen=True, slots=True)
class Place:
    """A runs folder, and the service of one sweep in it, which needs no sandbox."""

    runs: Path

    @property
    def state(self) -> Path:
        return state_folder(self.runs, [BUNDLED], Isolation.NONE)

    @property
    def address(self) -> Path:
        """The address file, which may not be there."""
        return self.state / "address.json"

    @property
    def pid(self) -> int:
        """The service's, as it says itself."""
        pid: int = json.loads(self.address.read_bytes())["pid"]
        return pid

    def open(self) -> AbstractAsyncContextManager[Service]:
        return Service.open(self.runs, benchmarks=[BUNDLED], isolation=Isolation.NONE)

    def services(self) -> list[int]:
        """The processes that serve, or are about to."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if b"serve" in words and os.fsencode(self.state) in words:
                    found.append(int(folder.name))
        return found

    def kill(self) -> int:
        """Kill the services; returns how many there were."""
        victims = self.services()
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(victims)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "runs")
    yield place
    wait_until(lambda: not place.kill(), "services are left")
