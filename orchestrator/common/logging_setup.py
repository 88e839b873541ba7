"""structlog, set up once: JSON lines to a file or to standard error. No other module configures logging.

Logging never fails its caller. A line that cannot be written is dropped, and a value that JSON cannot express is
logged as Python prints it. The threads that write a sweep's journal and a service's store log too; an error there
would leave callers waiting for ever.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO, TextIOBase
from pathlib import Path
from typing import Any, TextIO, cast

import orjson
import structlog

from orchestrator.core.printable import json_line


def to_stream(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Log to a stream, by default standard error; nowhere if that was closed before the process began."""
    _configure(_Stream(stream or sys.stderr), level)


def warn_only() -> None:
    """Print warnings to standard error until something else is set up; by default all went to standard output."""
    if not structlog.is_configured():
        to_stream(level=logging.WARNING)


def to_file(path: Path, *, level: int = logging.INFO, mask: Callable[[Any], Any] = lambda value: value) -> None:
    """Append to a log file. `mask` removes secrets from every value before it is written."""
    _configure(_LogFile(path), level, mask)


@contextmanager
def kept() -> Iterator[None]:
    """Log as before again afterwards: a program that a sweep runs in may have set up its own logging."""
    before, was_configured = structlog.get_config(), structlog.is_configured()
    settings = logging.raiseExceptions, logging.lastResort
    try:
        yield
    finally:
        logging.raiseExceptions, logging.lastResort = settings
        if was_configured:
            structlog.configure(**before)
        else:
            structlog.reset_defaults()


class _LogFile(TextIOBase):
    """The end of a file. Each line is written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self.write("")  # the file exists from the start

    def write(self, text: str, /) -> int:
        data = text.encode(errors="replace")
        with suppress(OSError):
            self._file = file = self._file or FileIO(self._path, "a")
            written = file.write(data)
            if written < len(data):
                file.truncate(os.fstat(file.fileno()).st_size - written)
        return len(text)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Stream(TextIOBase):
    """A stream that others write to as well. A torn line cannot be taken back, but the next one begins a new line.

    It bypasses the stream's buffer, which would keep what a full disk refuses and write it torn, later or never.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._raw: FileIO | None = getattr(getattr(stream, "buffer", None), "raw", None)
        self._is_torn = False

    def write(self, text: str, /) -> int:
        with suppress(OSError, ValueError):  # full, without a reader, closed
            if self._raw is not None:
                data = (b"\n" if self._is_torn else b"") + text.encode(errors="replace")
                written = self._raw.write(data) or 0
                self._is_torn = written < len(data) if written else self._is_torn
            elif self._stream is not None:
                self._stream.write(text)
                self._stream.flush()
        return len(text)


def _plain(event: dict[str, Any]) -> dict[str, Any]:
    """Convert to JSON's types before masking, so that no secret hides in an object that becomes text later."""
    try:
        plain: dict[str, Any] = orjson.loads(orjson.dumps(event, default=str))
    except TypeError:  # bytes of a file's name that are no text, a number beyond 64 bits, a structure without end
        plain = {ascii(key)[1:-1]: _plain_value(value) for key, value in event.items()}
    return plain


def _plain_value(value: Any) -> Any:
    try:
        return orjson.loads(orjson.dumps(value, default=str))
    except TypeError:
        with suppress(Exception):
            return ascii(value)
        return f"<{type(value).__name__}>"


def _configure(file: TextIOBase, level: int, mask: Callable[[Any], Any] = lambda value: value) -> None:
    class Harmless(structlog.make_filtering_bound_logger(level)):  # type: ignore[misc]  # created at run time
        """A logger that raises nothing."""

        def _proxy_to_logger(self, method_name: str, event: str | None = None, **kw: Any) -> Any:
            with suppress(Exception):
                return super()._proxy_to_logger(method_name, event, **kw)

    logging.raiseExceptions = False  # logging of libraries must not fail either, nor stay in a buffer
    logging.lastResort = logging.StreamHandler(cast("TextIO", _Stream(sys.stderr)))
    logging.lastResort.setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            lambda _logger, _method, event: mask(_plain(dict(event))),
            structlog.processors.JSONRenderer(serializer=lambda event, **_: json_line(event, str).rstrip("\n")),
        ],
        wrapper_class=Harmless,
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", file)),
        cache_logger_on_first_use=False,
    )
