"""structlog, set up once: JSON lines to a file or to standard error. Nobody else configures logging."""

import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import FileIO, TextIOBase
from pathlib import Path
from typing import Any, TextIO, cast

import structlog

from orchestrator.printable import json_line


def to_stream(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Log to a stream, standard error unless told otherwise."""
    _configure(structlog.WriteLoggerFactory(file=stream or sys.stderr), level)


def to_file(path: Path, *, level: int = logging.INFO, mask: Callable[[Any], Any] = lambda value: value) -> None:
    """Log to the end of a file. A line that the disk does not take is dropped: nothing fails because of it.

    `mask` takes what must not be written out of everything that a line will say.
    """
    _configure(structlog.WriteLoggerFactory(file=cast("TextIO", _LogFile(path))), level, mask)


class _LogFile(TextIOBase):
    """The end of a file, line by line: each is there as a whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self.write("")  # it is there from the start

    def write(self, text: str, /) -> int:
        data = text.encode(errors="replace")
        with suppress(OSError):
            self._file = file = self._file or FileIO(self._path, "a")
            written = file.write(data)
            if written < len(data):
                file.truncate(os.fstat(file.fileno()).st_size - written)
        return len(text)


def _plain(value: Any) -> Any:
    """As JSON will have it, so that nothing hides in an object that is only made words when it is written."""
    return json.loads(json_line(value, str))


def _configure(
    factory: structlog.WriteLoggerFactory, level: int, mask: Callable[[Any], Any] = lambda value: value
) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            lambda _logger, _method, event: mask(_plain(event)),
            structlog.processors.JSONRenderer(serializer=lambda event, **_: json_line(event, str).rstrip("\n")),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )
