"""`sweep workspace`: the command by which an agent that is a program on this machine works in its devbox.

It is started once for every small thing that an agent does, so it imports the standard library only, and `__main__`
calls it before it loads the command line: that takes a fifth of the time. Its settings are in the agent's environment.
"""

import argparse
import http.client
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import join, quote
from threading import Thread
from typing import IO, Any, Final, NoReturn
from urllib.parse import urlsplit

from orchestrator.agentkit.python.worker.transfers import CommandResult, Transfers, WorkspaceError

MISUSE: Final = 2
#: The exit status of `timeout` when the time is over.
OUT_OF_TIME: Final = 124
LONG_POLL_S: Final = 20
ANSWER_TIMEOUT_S: Final = 60.0
#: An endpoint that is away, or asks us to wait, is asked again for so long.
RETRY_FOR_S: Final = 120.0
_BUSY: Final = frozenset({429, 502, 503, 504})
_CHUNK_BYTES: Final = 1 << 20
#: Before a stream that was cut off is asked for again.
_CUT_PAUSE_S: Final = 0.1


class _Misuse(WorkspaceError):
    """A mistake of the caller, in the command line or the environment."""


class _RequestRefused(WorkspaceError):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Expired(Exception):
    """A long-poll is over and nothing happened."""


class DevboxClient(Transfers):
    """The devbox that the environment names. Paths are absolute there, or relative to the scenario's folder."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Raises WorkspaceError outside of an agent."""
        needed = ("RUNLOOP_BASE_URL", "RUNLOOP_API_KEY", "SWEEP_DEVBOX_ID")
        missing = [name for name in needed if not environ.get(name)]
        if missing:
            raise _Misuse(
                f"{', '.join(missing)} not set: this command is for agents that run on this machine "
                '(where = "host" in the agent\'s file) and works inside of one'
            )
        parts = urlsplit(environ["RUNLOOP_BASE_URL"])
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._key = parts.netloc, environ["RUNLOOP_API_KEY"]
        self._root = f"{parts.path.rstrip('/')}/v1/devboxes/{environ['SWEEP_DEVBOX_ID']}"
        self._folder = environ.get("SWEEP_WORKING_DIRECTORY", "")
        self.scratch = environ.get("SWEEP_SCRATCH", "/tmp/.sweep")  # noqa: S108 - in the devbox

    def exec(self, command: str, *, timeout: float = 600.0) -> CommandResult:
        """Run a shell command to its end; its output may be cut."""
        done = self._wait(self.start(command, cwd=None, environment={}), timeout)
        return CommandResult(done.get("exit_status"), done.get("stdout") or "", done.get("stderr") or "")

    def start(self, command: str, *, cwd: str | None, environment: Mapping[str, str]) -> str:
        """Start a shell command; returns the id of its execution."""
        exports = "".join(f"export {name}={quote(value)}\n" for name, value in environment.items())
        folder = self._absolute(cwd or ".")
        text = f"{exports}cd {quote(folder)} || exit 125\n{command}"
        return str(self._ask("POST", "/execute_async", {"command": text})["execution_id"])

    def follow(self, execution: str, *, timeout: float | None) -> int | None:
        """Pass on a command's output until it ends. Returns its exit status, None if it was killed after `timeout`."""
        streams = [
            Thread(target=self._pass_on, args=(execution, name, out), daemon=True)
            for name, out in (("stdout", sys.stdout.buffer), ("stderr", sys.stderr.buffer))
        ]
        for stream in streams:
            stream.start()
        done = self._wait(execution, timeout)
        for stream in streams:
            stream.join()
        return done.get("exit_status")

    def kill(self, execution: str) -> None:
        with suppress(WorkspaceError, OSError):
            self._ask("POST", f"/executions/{execution}/kill", {"kill_process_group": True})

    def read(self, path: str) -> bytes:
        return b"".join(self.pieces(path))

    def pieces(self, path: str) -> Iterator[bytes]:
        """The content of a file. Raises FileNotFoundError."""
        try:
            answer = self._send("POST", "/download_file", json.dumps({"path": self._absolute(path)}).encode())
        except _RequestRefused as error:
            raise FileNotFoundError(str(error)) if error.status in {400, 404, 409} else error from None
        yield from _content(answer)

    def write(self, path: str, data: bytes) -> None:
        self.write_from(path, iter([data]))

    def write_from(self, path: str, data: Iterator[bytes]) -> None:
        """Write a file from its pieces, with its missing folders."""
        boundary = uuid.uuid4().hex
        field = f'--{boundary}\r\ncontent-disposition: form-data; name="{{}}"{{}}\r\n\r\n'
        head = field.format("path", "") + self._absolute(path) + "\r\n" + field.format("file", '; filename="file"')

        def body() -> Iterator[bytes]:
            yield head.encode(errors="surrogateescape")
            yield from filter(None, data)
            yield f"\r\n--{boundary}--\r\n".encode()

        self._once("POST", "/upload_file", body(), f"multipart/form-data; boundary={boundary}", {}).read()

    def _absolute(self, path: str) -> str:
        return path if path.startswith("/") else f"{self._folder}/{path}".removesuffix("/.")

    def _wait(self, execution: str, timeout: float | None) -> dict[str, Any]:
        ends_at = float("inf") if timeout is None else time.monotonic() + timeout
        while (left := ends_at - time.monotonic()) > 0:
            asked = {"statuses": ["completed"], "timeout_seconds": min(left, LONG_POLL_S)}
            with suppress(_Expired):
                done = self._ask("POST", f"/executions/{execution}/wait_for_status", asked)
                if done.get("status") == "completed":
                    return done
        self.kill(execution)
        return {}

    def _pass_on(self, execution: str, name: str, out: IO[bytes]) -> None:
        offset, ends_at = 0, time.monotonic() + RETRY_FOR_S
        while time.monotonic() < ends_at:
            with suppress(OSError, http.client.HTTPException):
                path = f"/executions/{execution}/stream_{name}_updates?offset={offset}"
                for line in _lines(self._send("GET", path, timeout=None)):
                    ends_at = time.monotonic() + RETRY_FOR_S
                    if not line.startswith(b"data:"):
                        continue
                    chunk = json.loads(line.removeprefix(b"data:"))
                    data = chunk["output"].encode(errors="surrogatepass")
                    offset = max(chunk.get("offset") or 0, offset + len(data))
                    try:
                        out.write(data)
                        out.flush()
                    except BrokenPipeError:  # its reader is gone, and this is not the main thread
                        self.kill(execution)
                        os._exit(128 + signal.SIGPIPE)
                return
            time.sleep(_CUT_PAUSE_S)

    def _ask(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._send(method, path, json.dumps(body).encode()).read() or b"{}")
        return answer

    def _send(
        self, method: str, path: str, body: bytes = b"", timeout: float | None = ANSWER_TIMEOUT_S
    ) -> http.client.HTTPResponse:
        """Repeat a request until it is answered, with one id, so that nothing is done twice. Raises WorkspaceError."""
        headers, pause, ends_at = {"x-request-id": uuid.uuid4().hex}, 0.1, time.monotonic() + RETRY_FOR_S
        while True:
            try:
                return self._once(method, path, body, "application/json", headers, timeout)
            except (_RequestRefused, OSError, http.client.HTTPException) as error:
                is_over = time.monotonic() + pause > ends_at
                if is_over or (isinstance(error, _RequestRefused) and error.status not in _BUSY):
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 5.0)

    def _once(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes],
        kind: str,
        headers: Mapping[str, str],
        timeout: float | None = ANSWER_TIMEOUT_S,
    ) -> http.client.HTTPResponse:
        connection = self._connect(self._host, timeout=timeout)
        sent = {**headers, "authorization": f"Bearer {self._key}", "content-type": kind}
        connection.request(method, self._root + path, body=body or None, headers=sent)
        answer = connection.getresponse()
        if answer.status == http.client.REQUEST_TIMEOUT:
            raise _Expired
        if answer.status >= http.client.BAD_REQUEST:
            text = answer.read().decode(errors="replace")
            message = f"{answer.status} {answer.reason}: {text[:300]}"
            with suppress(ValueError, KeyError, TypeError):
                message = str(json.loads(text)["message"])
            raise _RequestRefused(answer.status, message)
        return answer


def _content(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body of an answer, in pieces as they come. Raises IncompleteRead if it was cut off."""
    left = answer.length
    with answer:
        while left != 0 and (piece := answer.read1(_CHUNK_BYTES)):
            left = None if left is None else left - len(piece)
            yield piece
    if left:
        raise http.client.IncompleteRead(b"", left)


def _lines(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """The lines of an answer. Raises IncompleteRead if it was cut off."""
    rest = b""
    for piece in _content(answer):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    yield rest


def main(words: Sequence[str]) -> NoReturn:
    """Run one command, and end the process with its exit status."""
    options = parsers()["sweep workspace"].parse_args(words)
    try:
        status = options.run(DevboxClient(os.environ), options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 128 + signal.SIGPIPE
    except (WorkspaceError, OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"sweep workspace: {error}\n")
        status = MISUSE if isinstance(error, _Misuse) else 125 if options.run is _exec else 1
    sys.exit(status)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Make the parser of the command, and those of the commands below it, by the words that call them."""
    parser = argparse.ArgumentParser(
        prog="sweep workspace",
        description="Work in the devbox of the agent that this is called from. Paths in the devbox are absolute, or "
        "relative to the scenario's folder.",
        epilog=f"Exit status: that of the command, {OUT_OF_TIME} when its time was over, 125 when it could not be run; "
        f"of the others 1 when they failed; {MISUSE} for misuse.",
    )
    commands = parser.add_subparsers(required=True, metavar="exec|read|write|upload|download")
    command = commands.add_parser("exec", help="run a command, pass on what it prints, end with its status")
    command.add_argument("--timeout", type=float, metavar="SECONDS", help="end it then, with all it started")
    command.add_argument("--cwd", metavar="FOLDER", help="where it starts")
    command.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE")
    command.add_argument("-i", "--stdin", action="store_true", help="our standard input is the command's, read first")
    command.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="COMMAND", help="one word for the shell, or several"
    )
    command.set_defaults(run=_exec)
    command = commands.add_parser("read", help="a file to standard output")
    command.add_argument("path")
    command.set_defaults(run=lambda devbox, options: sys.stdout.buffer.writelines(devbox.pieces(options.path)))
    command = commands.add_parser("write", help="standard input to a file")
    command.add_argument("path")
    command.set_defaults(run=lambda devbox, options: devbox.write_from(options.path, _stdin()))
    command = commands.add_parser("upload", help="a file or folder of this machine to the devbox")
    command.add_argument("local", type=Path)
    command.add_argument("path")
    command.set_defaults(run=lambda devbox, options: devbox.upload(options.local, options.path))
    command = commands.add_parser("download", help="a file or folder of the devbox to this machine")
    command.add_argument("path")
    command.add_argument("local", type=Path)
    command.set_defaults(run=lambda devbox, options: devbox.download(options.path, options.local))
    return {each.prog: each for each in (parser, *commands.choices.values())}


def _exec(devbox: DevboxClient, options: argparse.Namespace) -> int:
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    variables = dict(each.partition("=")[::2] for each in options.env)
    if not words:
        raise _Misuse("exec what? sweep workspace exec COMMAND")
    command = words[0] if len(words) == 1 else join(words)
    if options.stdin:
        stdin = f"{devbox.scratch}/stdin-{uuid.uuid4().hex[:12]}"
        devbox.write_from(stdin, _stdin())
        command = f"exec <{quote(stdin)} && rm -f {quote(stdin)}\n{command}"
    execution = devbox.start(command, cwd=options.cwd, environment=variables)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        status = devbox.follow(execution, timeout=options.timeout)
    except SystemExit:
        devbox.kill(execution)
        raise
    return OUT_OF_TIME if status is None else status


def _stdin() -> Iterator[bytes]:
    return iter(lambda: sys.stdin.buffer.read(_CHUNK_BYTES), b"")
