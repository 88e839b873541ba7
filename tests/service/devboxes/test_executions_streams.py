"""Following what a command prints."""

import resource
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runloop_api_client import BadRequestError

from orchestrator.service.devboxes.executions import Chunk
from orchestrator.service.devboxes.output import MAX_TAIL_BYTES, Spool, read_tail, whole_characters

if TYPE_CHECKING:
    from pathlib import Path

    from runloop_api_client import AsyncStream
    from runloop_api_client.types.devboxes import ExecutionUpdateChunk

    from tests.service.devboxes.conftest import Served

pytestmark = pytest.mark.anyio


async def gathered(stream: "AsyncStream[ExecutionUpdateChunk]") -> list[tuple[str, int | None]]:
    return [(chunk.output, chunk.offset) async for chunk in stream]


async def test_a_stream_follows_a_command_and_ends_with_it(served: "Served") -> None:
    devbox = await served.devbox()
    begun = await served.client.devboxes.execute_async(
        devbox.id, command="for part in é ü; do read -r; printf $part; done; echo err >&2", attach_stdin=True
    )
    executions = served.client.devboxes.executions
    seen = []
    await executions.send_std_in(begun.execution_id, devbox_id=devbox.id, text="\n")
    async for chunk in await executions.stream_stdout_updates(begun.execution_id, devbox_id=devbox.id):
        seen.append((chunk.output, chunk.offset))
        if len(seen) == 1:
            await executions.send_std_in(begun.execution_id, devbox_id=devbox.id, text="\n")
    assert seen == [("é", 2), ("ü", 4)]
    errors = await executions.stream_stderr_updates(begun.execution_id, devbox_id=devbox.id)
    assert await gathered(errors) == [("err\n", 4)]


async def test_a_character_that_is_printed_in_two_halves_is_sent_whole_and_resumed_behind(served: "Served") -> None:
    devbox = await served.devbox()
    command = r"printf 'a\xe2\x82'; read -r; printf '\xacb'; read -r; printf 'c\xff\xe2'"
    begun = await served.client.devboxes.execute_async(devbox.id, command=command, attach_stdin=True)
    executions = served.client.devboxes.executions
    stream = await executions.stream_stdout_updates(begun.execution_id, devbox_id=devbox.id)
    async for chunk in stream:
        assert (chunk.output, chunk.offset) == ("a", 1)
        break
    await stream.close()
    await executions.send_std_in(begun.execution_id, devbox_id=devbox.id, text="\n\n")
    await executions.await_completed(begun.execution_id, devbox_id=devbox.id)
    rest = await executions.stream_stdout_updates(begun.execution_id, devbox_id=devbox.id, offset="1")
    assert await gathered(rest) == [("€bc\ufffd\ufffd", 8)]
    behind = await executions.stream_stdout_updates(begun.execution_id, devbox_id=devbox.id, offset="8")
    assert await gathered(behind) == []


async def test_a_quiet_stream_is_kept_alive(served: "Served") -> None:
    devbox = await served.devbox()
    begun = await served.client.devboxes.execute_async(devbox.id, command="read -r; echo x", attach_stdin=True)
    chunks = await served.executions.stream(devbox.id, begun.execution_id, "stdout", offset=0, pause=0.05)
    assert await anext(chunks) is None
    assert await anext(chunks) is None
    await served.executions.send(devbox.id, begun.execution_id, text="\n")
    seen = [chunk async for chunk in chunks]
    assert [chunk for chunk in seen if chunk is not None] == [Chunk(output="x\n", offset=2)]


async def test_a_stream_of_a_devbox_that_dies_ends(served: "Served") -> None:
    devbox = await served.devbox()
    begun = await served.client.devboxes.execute_async(devbox.id, command="echo begun; sleep 1000")
    with anyio.fail_after(10):
        seen = []
        stream = await served.client.devboxes.executions.stream_stdout_updates(begun.execution_id, devbox_id=devbox.id)
        async for chunk in stream:
            seen.append(chunk.output)
            with served.fleet.using(devbox.id) as box:
                await box.stop()
    assert seen == ["begun\n"]


@pytest.mark.parametrize("offset", ["-1", "x", "1.5"])
async def test_an_offset_that_is_no_number_is_refused(served: "Served", offset: str) -> None:
    devbox = await served.devbox()
    done = await served.client.devboxes.execute(devbox.id, command="true")
    with pytest.raises(BadRequestError, match="offset: expected a whole number"):
        await served.client.devboxes.executions.stream_stdout_updates(
            done.execution_id, devbox_id=devbox.id, offset=offset
        )


@pytest.mark.slow
async def test_a_flood_is_spooled_to_the_last_byte_and_not_held_in_memory(served: "Served") -> None:
    devbox = await served.devbox()
    size = 200 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = await served.client.devboxes.execute(devbox.id, command=f"head -c {size} /dev/zero | tr '\\0' x")
    assert (done.status, done.stdout_truncated, len(done.stdout or "")) == ("completed", True, MAX_TAIL_BYTES)
    rest = await served.executions.stream(devbox.id, done.execution_id, "stdout", offset=size - 5, pause=1)
    assert [chunk async for chunk in rest] == [Chunk(output="xxxxx", offset=size)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


async def test_output_beyond_the_bound_is_dropped_and_the_file_says_so(tmp_path: "Path") -> None:
    path = tmp_path / "devbox" / "stdout"
    changes: list[int] = []
    spool = Spool(path, on_change=lambda: changes.append(path.stat().st_size), limit=10)
    for chunk in (b"123456", b"7890ab", b"never"):
        await spool.write(chunk)
    assert spool.is_cut
    assert path.read_bytes() == b"1234567890\n[the output beyond 10 bytes was not kept]\n"
    assert len(changes) == 2


async def test_output_that_the_disk_refuses_does_not_stop_the_command(tmp_path: "Path") -> None:
    (tmp_path / "file").touch()
    spool = Spool(tmp_path / "file" / "stdout", on_change=lambda: None)
    await spool.write(b"lost")
    assert spool.is_cut


@pytest.mark.parametrize(
    ("written", "lines", "text", "is_truncated"),
    [
        (b"", 5, "", False),
        (b"a\nb\n", 2, "a\nb\n", False),
        (b"a\nb\nc", 2, "b\nc", True),
        (b"a\n\n\n", 2, "\n\n", True),
        (b"a\nb", 0, "", True),
        (b"a\nb", None, "a\nb", False),
        (b"caf\xc3\xa9 \xff", 1, "caf\xe9 \ufffd", False),
    ],
)
async def test_the_tail_of_a_file_is_its_last_lines(
    tmp_path: "Path", written: bytes, lines: int | None, text: str, is_truncated: object
) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(written)
    tail = read_tail(path, lines=lines)
    assert (tail.text, tail.is_truncated) == (text, is_truncated)


async def test_a_tail_bounded_in_bytes_opens_with_a_whole_character(tmp_path: "Path") -> None:
    path = tmp_path / "stdout"
    path.write_bytes("€€€".encode())
    assert read_tail(path, limit=4).text == "€"


@settings(deadline=None)
@given(st.lists(st.binary(max_size=6) | st.sampled_from(["a", "é", "€", "😀"]).map(str.encode), max_size=12))
def test_however_output_arrives_its_pieces_read_like_the_whole(pieces: list[bytes]) -> None:
    text, held = "", b""
    for piece in pieces:
        held += piece
        size = whole_characters(held)
        text += held[:size].decode(errors="replace")
        held = held[size:]
    assert text + held.decode(errors="replace") == b"".join(pieces).decode(errors="replace")
