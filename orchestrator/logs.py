"""structlog, set up once: JSON lines to a file or to standard error. Nobody else configures logging."""

import logging
import sys
from pathlib import Path
from typing import TextIO

import orjson
import structlog


def to_stream(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Log to a stream, standard error unless told otherwise."""
    _configure(structlog.WriteLoggerFactory(file=stream or sys.stderr), level)


def to_file(path: Path, *, level: int = logging.INFO) -> None:
    """Log to the end of a file."""
    _configure(structlog.WriteLoggerFactory(file=path.open("a", encoding="utf-8", buffering=1)), level)


def _configure(factory: structlog.WriteLoggerFactory, level: int) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=lambda event, **_: orjson.dumps(event, default=str).decode()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )
