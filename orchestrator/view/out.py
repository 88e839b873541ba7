"""Where people read: a console whose reader may go away, as `| head -1` does, and whose terminal may be closed.

What rich does at the end of a pipe, SystemExit, would tear the event loop down with everything in flight; an error ends
it in order. A terminal that is gone is no reason to end: the signal that comes with it says what is to be done.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console


class Out(Console):
    """Raises BrokenPipeError when nobody reads any more; standard output leads nowhere from then on."""

    @property  # type: ignore[misc]  # nobody sets it
    def file(self) -> IO[str]:
        return cast("IO[str]", _Lasting(super().file))

    def on_broken_pipe(self) -> None:
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise BrokenPipeError


class _Lasting:
    """A file that leads nowhere once its terminal is gone."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with self._outliving():
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with self._outliving():
            self._file.flush()

    @contextmanager
    def _outliving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno())
            os.close(nowhere)
