"""`sweep report`: a sweep's report as one HTML file, or as Markdown; and the same at every end of a sweep."""

import threading
from pathlib import Path
from typing import Final

import anyio
import structlog

from orchestrator.core.errors import WorldError
from orchestrator.rundir.files import REPORT, write_atomically, write_where_told
from orchestrator.rundir.recorded import RecordedSweep, reading
from orchestrator.view.console import put, say

#: The time for a report at the end of a sweep; one that takes longer is left to `sweep report`.
AT_END_S: Final = 20.0


def run(folder: Path, *, is_markdown: bool, target: Path | None) -> None:
    """Write the report of a run folder. Raises UsageError, JournalError, and WorldError if it cannot be written."""
    from orchestrator.view.web.static_report import as_html, as_markdown

    with reading(folder):
        sweep = RecordedSweep(folder)
        text = as_markdown(sweep) if is_markdown else as_html(sweep)
    if target is None and is_markdown:
        put(text)
        return
    path = target or folder / REPORT
    try:
        write_where_told(path, text.encode(errors="replace"))
    except OSError as error:
        raise WorldError(f"{path} cannot be written: {error.strerror or error}.") from None
    say(f"{path}: {len(text.encode(errors='replace')) / 1e6:.1f} MB.", to_stderr=True)


async def write_at_end(folder: Path) -> None:
    """Write the report of a sweep that has ended. Bounded; what goes wrong is in its log, and nowhere else.

    A thread of its own does it, which nothing waits for longer: a disk that hangs holds no process.
    """
    done, loop_token = anyio.Event(), anyio.lowlevel.current_token()

    def write() -> None:
        try:
            from orchestrator.view.web.static_report import as_html

            write_atomically(folder / REPORT, as_html(RecordedSweep(folder)).encode(errors="replace"))
        except Exception as error:  # noqa: BLE001 - the sweep is over, and this is a picture of it
            structlog.get_logger().warning("report.not_written", reason=repr(error))
        try:
            anyio.from_thread.run_sync(done.set, token=loop_token)
        except RuntimeError:  # the loop has ended meanwhile
            return

    with anyio.move_on_after(AT_END_S, shield=True):
        threading.Thread(target=write, name="report", daemon=True).start()
        await done.wait()
