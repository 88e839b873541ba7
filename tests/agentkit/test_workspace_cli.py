"""`sweep workspace` on a connection that is cut off."""

import http.client
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from orchestrator.agentkit.host.workspace_cli import DevboxClient

_CHUNKED: Final = b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(text: str, offset: int) -> bytes:
    return chunk(b"data: " + json.dumps({"output": text, "offset": offset}).encode() + b"\n\n")


def whole(data: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(data), data)


@contextmanager
def devbox(answers: dict[str, list[bytes]]) -> Iterator[DevboxClient]:
    """A devbox that gives the bytes of `answers` in their order to the requests whose path contains the key."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            path, size = self.rfile.readline().decode(), 0
            while (line := self.rfile.readline().strip().lower()) != b"":
                size = int(line.partition(b":")[2]) if line.startswith(b"content-length") else size
            self.rfile.read(size)
            self.wfile.write(next(each.pop(0) for key, each in answers.items() if key in path))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        yield DevboxClient({"RUNLOOP_BASE_URL": address, "RUNLOOP_API_KEY": "k", "SWEEP_DEVBOX_ID": "dbx_1"})
        server.shutdown()


@pytest.mark.parametrize("cut", [whole(b"0123456789")[:-1], _CHUNKED + chunk(b"0123456789")])
def test_a_file_that_is_cut_off_is_not_taken_for_the_file(cut: bytes) -> None:
    with devbox({"download": [cut, whole(b"0123456789"), whole(b"")]}) as client:
        with pytest.raises(http.client.IncompleteRead):
            client.read("/x")
        assert client.read("/x") == b"0123456789"
        assert client.read("/x") == b""


def test_output_that_is_cut_off_goes_on_where_it_was(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    done = whole(b'{"status": "completed", "exit_status": 3}')
    answers = {
        "wait_for_status": [done],
        "stream_stdout_updates?offset=0": [_CHUNKED + event("one ", 4) + event("two ", 8)[:-9]],
        "stream_stdout_updates?offset=4": [_CHUNKED + event("two ", 8)],
        "stream_stdout_updates?offset=8": [_CHUNKED + event("three", 13) + chunk(b"")],
        "stream_stderr_updates": [_CHUNKED + chunk(b"")],
    }
    with devbox(answers) as client:
        assert client.follow("exec_1", timeout=60) == 3
    assert capfdbinary.readouterr().out == b"one two three"
