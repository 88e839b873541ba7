"""A workspace on this machine: real bash processes in a temporary folder, no sandbox, no endpoint."""

import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import anyio
import pytest

from orchestrator.agentkit.agent import ExecResult, OnOutput, Task, Workspace, whole
from orchestrator.core.protocol import AdditionalContext


@dataclass(slots=True, kw_only=True)
class LocalWorkspace:
    """Implements `Workspace`. `fault` is raised by every call, if it is set; `log` is what the agent's run printed."""

    root: Path
    installed: frozenset[str] = frozenset()
    fault: Exception | None = None
    log: bytes = b""
    runs: list[Mapping[str, str]] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    @property
    def working_directory(self) -> str:
        return str(self.root)

    @property
    def home(self) -> str:
        return str(self.root)

    @property
    def scratch(self) -> str:
        return str(self.root.with_name(self.root.name + "-scratch"))

    async def exec(
        self,
        command: str,
        *,
        timeout: float = 600.0,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
        on_output: OnOutput | None = None,
    ) -> ExecResult:
        if self.fault is not None:
            raise self.fault
        folder, stdin = self.root / (cwd or "."), Path(os.devnull)
        return await self._bash(command, timeout, environment or {}, folder, stdin, on_output)

    async def run(
        self,
        command: str,
        *,
        time_limit: float,
        environment: Mapping[str, str] | None = None,
        stdin_file: str | None = None,
    ) -> ExecResult:
        self.runs.append(dict(environment or {}))
        stdin = self.root / (stdin_file or os.devnull)
        result = await self._bash(command, time_limit, environment or {}, self.root, stdin)
        self.log += (result.stdout + result.stderr).encode()
        return result

    async def read(self, path: str, *, at_most: int) -> bytes:
        return await whole(self.pieces(path), path, at_most)

    async def pieces(self, path: str) -> AsyncGenerator[bytes, None]:
        if self.fault is not None:
            raise self.fault
        async with await anyio.open_file(self.root / path, "rb") as file:
            while piece := await file.read(1 << 16):
                yield piece

    async def write(self, path: str, data: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        file = anyio.Path(self.root / path)
        await file.parent.mkdir(parents=True, exist_ok=True)
        await file.write_bytes(data)
        self.written.append(path)

    async def _bash(
        self,
        command: str,
        timeout: float,
        environment: Mapping[str, str],
        cwd: Path,
        stdin_file: Path,
        on_output: OnOutput | None = None,
    ) -> ExecResult:
        # The program may run before `open_process` returns: canceled in between, nobody would know what to end.
        with stdin_file.open("rb") as stdin, anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                ["bash", "-c", command],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env={"PATH": os.environ["PATH"], "HOME": str(self.root), **environment},
                start_new_session=True,
            )
        out, err = bytearray(), bytearray()
        status: int | None = None
        async with process:
            try:
                with anyio.move_on_after(timeout):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(_drain, process.stdout, out, on_output)
                        tasks.start_soon(_drain, process.stderr, err)
                        status = await process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if status is not None and status < 0:
            status = 128 - status
        return ExecResult(exit_status=status, stdout=out.decode(errors="replace"), stderr=err.decode(errors="replace"))


async def _drain(
    stream: anyio.abc.ByteReceiveStream | None, into: bytearray, on_output: OnOutput | None = None
) -> None:
    assert stream is not None
    async for chunk in stream:
        into += chunk
        if on_output is not None:
            await on_output(chunk.decode(errors="replace"))


@pytest.fixture
def make_workspace(tmp_path: Path) -> Callable[[], LocalWorkspace]:
    numbers = itertools.count()

    def make() -> LocalWorkspace:
        root = tmp_path / f"work-{next(numbers)}"
        root.mkdir()
        return LocalWorkspace(root=root)

    return make


@pytest.fixture
def workspace(make_workspace: Callable[[], LocalWorkspace]) -> LocalWorkspace:
    return make_workspace()


class MakeTask(Protocol):
    def __call__(
        self,
        prompt: str = "Mend it.",
        *,
        time_limit: float = 60.0,
        model: str | None = None,
        reference_output: str | None = None,
        settings: Mapping[str, object] | None = None,
        context: AdditionalContext | None = None,
    ) -> Task: ...


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    numbers = itertools.count()

    def make(
        prompt: str = "Mend it.",
        *,
        time_limit: float = 60.0,
        model: str | None = None,
        reference_output: str | None = None,
        settings: Mapping[str, object] | None = None,
        context: AdditionalContext | None = None,
    ) -> Task:
        folder = tmp_path / f"attempt-{next(numbers)}"
        folder.mkdir()
        return Task(
            scenario_id="scn_1",
            scenario_name="csv-quoted-newlines",
            prompt=prompt,
            time_limit=time_limit,
            folder=folder,
            log=folder / "agent.log",
            devbox_id="dbx_1",
            endpoint="http://127.0.0.1:9",
            model=model,
            settings=settings or {},
            reference_output=reference_output,
            context=context or AdditionalContext(),
        )

    return make


_: type[Workspace] = LocalWorkspace
