"""The gateway's part for devboxes: `protocols.Devboxes` and `protocols.Executions` behind the published client."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, Final, TypeVar, cast

import anyio
from runloop_api_client import AsyncAPIResponse
from runloop_api_client.types import DevboxView
from runloop_api_client.types.devbox_async_execution_detail_view import DevboxAsyncExecutionDetailView

from orchestrator.core.errors import (
    AgentSetupFailed,
    Conflicted,
    DevboxFailed,
    DevboxLost,
    EnvironmentFailed,
    Missing,
    Unavailable,
)
from orchestrator.core.protocol import DEVBOX_ALIVE, DEVBOX_BOOTING, DEVBOX_DEAD
from orchestrator.core.records import Devbox, Execution
from orchestrator.endpoint import parsing
from orchestrator.endpoint.calls import HOLD_S, Backoff, Calls, hold, patiently
from orchestrator.endpoint.errors import translated

T = TypeVar("T")
V = TypeVar("V")

_TRANSFER_TIMEOUT_S: Final = 600.0
#: Seconds until the first look at what a devbox waits for.
_FIRST_HOLD_S: Final = 4.0


class DevboxesApi(Calls):
    """Implements `protocols.Devboxes` and `protocols.Executions`."""

    async def wait_running(self, devbox_id: str, *, preparing: Callable[[str], None] = lambda _: None) -> Devbox:
        path, statuses = f"/v1/devboxes/{devbox_id}/wait_for_status", ["running", "failure", "shutdown", "suspended"]
        held = _FIRST_HOLD_S

        async def ask() -> Devbox | None:
            nonlocal held
            devbox = await self._ask(
                f"waiting for devbox {devbox_id}",
                lambda: self._long_poll(path, statuses, DevboxView, held),
                parsing.perhaps(parsing.devbox),
            )
            held = HOLD_S
            if devbox is None and await self.features():
                devbox = await self.devbox(devbox_id)
                if devbox.preparing:
                    preparing(devbox.preparing)
            return None if devbox is None or devbox.status in DEVBOX_BOOTING else devbox

        devbox = await hold(ask)
        if devbox.status == "running":
            return devbox
        reason = devbox.failure or devbox.status
        if devbox.failed_install is not None:  # it would fail in every devbox
            raise AgentSetupFailed(reason)
        if devbox.has_failed_environment:
            raise EnvironmentFailed(reason)
        raise DevboxFailed(f"devbox {devbox_id} never ran: {reason}")

    async def devbox(self, devbox_id: str) -> Devbox:
        return await self._ask(
            f"reading devbox {devbox_id}", lambda: self._client.devboxes.retrieve(devbox_id), parsing.devbox
        )

    async def list_devboxes(self) -> list[Devbox]:
        found = []
        for status in DEVBOX_ALIVE:
            lister = partial(self._client.devboxes.list, status=cast("Any", status.value))
            found += await self._all(f"listing the devboxes that are {status}", lister, parsing.devbox)
        return list({devbox.id: devbox for devbox in found}.values())

    async def shutdown(self, devbox_id: str) -> None:
        with suppress(Conflicted, Missing):
            await self._ask(
                f"shutting down devbox {devbox_id}",
                lambda: self._client.devboxes.shutdown(devbox_id),
                parsing.of(devbox_id, parsing.devbox),
            )

    async def devbox_log(self, devbox_id: str) -> str:
        async def read() -> list[str]:
            # Not as the client's records, which it would make of ten thousand lines in the loop's thread.
            answer = await self._client.devboxes.logs.with_raw_response.list(devbox_id)
            return await anyio.to_thread.run_sync(parsing.log_lines, await answer.read())

        return await self._ask(f"reading the log of {devbox_id}", read, "".join)

    async def execute(self, devbox_id: str, command: str, *, key: str) -> Execution:
        return await self._in_devbox(
            devbox_id,
            "running a command",
            lambda: self._client.devboxes.execute_async(devbox_id, command=command, idempotency_key=key),
            parsing.execution,
        )

    async def wait_completed(self, devbox_id: str, execution_id: str) -> Execution:
        path = f"/v1/devboxes/{devbox_id}/executions/{execution_id}/wait_for_status"

        async def ask() -> Execution | None:
            execution = await self._in_devbox(
                devbox_id,
                f"waiting for {execution_id}",
                lambda: self._long_poll(path, ["completed"], DevboxAsyncExecutionDetailView),
                parsing.perhaps(parsing.execution),
            )
            return None if execution is None or not execution.is_completed else execution

        execution = await hold(ask)
        if execution.exit_status is None or execution.exit_status > 128:
            await self._check_alive(devbox_id)
        return execution

    async def output(self, devbox_id: str, execution_id: str, offset: int = 0) -> AsyncGenerator[tuple[str, int], None]:
        what = f"reading the output of {execution_id}"

        async def connect() -> Any:
            return await self._client.devboxes.executions.stream_stdout_updates(
                execution_id, devbox_id=devbox_id, offset=str(offset)
            )

        backoff = Backoff()
        while True:
            stream = await patiently(what, connect)
            try:
                with translated(what), parsing.shaped(what):
                    async with stream:
                        parsing.check_stream(stream.response.headers.get("content-type", ""))
                        async for chunk in stream:
                            self._answered_at = anyio.current_time()
                            offset = parsing.offset_behind(chunk, offset)
                            backoff.reset()
                            yield chunk.output, offset
            except Unavailable:
                await anyio.sleep(backoff.next())
            else:
                return

    async def kill(self, devbox_id: str, execution_id: str) -> None:
        await self._in_devbox(
            devbox_id,
            f"killing {execution_id}",
            lambda: self._client.devboxes.executions.kill(execution_id, devbox_id=devbox_id, kill_process_group=True),
            parsing.of(execution_id, parsing.execution),
        )

    async def read_file(self, devbox_id: str, path: str) -> AsyncGenerator[bytes, None]:
        what = f"reading {path}"
        download = self._client.devboxes.with_streaming_response.download_file
        given, backoff = 0, Backoff()
        while True:
            async with AsyncExitStack() as opened:

                def connect(opened: AsyncExitStack = opened) -> Awaitable[AsyncAPIResponse[Any]]:
                    return opened.enter_async_context(download(devbox_id, path=path, timeout=_TRANSFER_TIMEOUT_S))

                answer = await self._in_devbox(devbox_id, what, connect, lambda answer: answer)
                at = 0
                try:
                    with translated(what), parsing.shaped(what):
                        parsing.check_file(answer.status_code, answer.headers.get("content-type", ""))
                        async for piece in answer.iter_bytes():
                            self._answered_at = anyio.current_time()
                            at += len(piece)
                            if at > given:  # a repeated answer begins at the first byte again
                                new, given = piece[given - at :], at
                                backoff.reset()
                                yield new
                except Unavailable:
                    pass
                else:
                    return
            await anyio.sleep(backoff.next())

    async def write_file(self, devbox_id: str, path: str, data: bytes) -> None:
        await self._in_devbox(
            devbox_id,
            f"writing {path}",
            lambda: self._client.devboxes.upload_file(devbox_id, path=path, file=data, timeout=_TRANSFER_TIMEOUT_S),
            parsing.receipt,
        )

    async def _in_devbox(
        self, devbox_id: str, doing: str, call: Callable[[], Awaitable[V]], read: Callable[[V], T]
    ) -> T:
        """Ask something that needs a living devbox. Raises DevboxLost when it is refused because the devbox died."""
        try:
            return await self._ask(f"{doing} in devbox {devbox_id}", call, read)
        except (Conflicted, Missing):
            await self._check_alive(devbox_id)
            raise

    async def _check_alive(self, devbox_id: str) -> None:
        try:
            devbox = await self.devbox(devbox_id)
        except Missing:
            raise DevboxLost(f"devbox {devbox_id} is unknown to the endpoint now") from None
        if devbox.status in DEVBOX_DEAD:
            raise DevboxLost(f"devbox {devbox_id} is gone: {devbox.failure or devbox.status}")
