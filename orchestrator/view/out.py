"""Where people read: a console whose reader may go away, as `| head -1` does.

What rich does then, SystemExit, would tear the event loop down with everything in flight; an error ends it in order.
"""

from contextlib import suppress

from rich.console import Console


class Out(Console):
    """Raises BrokenPipeError when nobody reads any more; standard output leads nowhere from then on."""

    def on_broken_pipe(self) -> None:
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise BrokenPipeError
