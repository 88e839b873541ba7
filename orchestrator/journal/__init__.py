"""The run folder's two files: the journal, which is the truth, and results.jsonl, which is derived from it.

One thread writes. Events that queue up while it syncs share the next sync; `append` returns when its events are on
disk. The folder is locked for as long as a journal is open, so there is one writer. A line counts only with its
newline: what a crash left of a last line is cut before the first append, and damage anywhere else is an error that says
where, never a guess. A disk that refuses is waited for; a file that somebody else changed is not written any more. Why
not a database: one appended line is the smallest thing that can be durable, and people can read it.

What is read after an append is a fold that includes it: an event is in the ledger before it is on its way to the disk,
and one that the ledger refuses is never written. So the ledger may be ahead of the disk; whoever needs the disk waits.

    files       names, the lock, writes that a crash cannot halve
    clock       the time of events
    reading     the events of a journal, line by line
    tail        a file that only grows, and what becomes of a write that failed
    ballast     room held in reserve for a full disk
    results     results.jsonl out of the journal
    checkpoint  what spares reading a long journal again
    store       these, in step
    writer      the thread
    opening     `Journal`: all of it as the event loop sees it
"""

from orchestrator.journal.ballast import BALLAST
from orchestrator.journal.checkpoint import CHECKPOINT
from orchestrator.journal.clock import now
from orchestrator.journal.files import (
    JOURNAL,
    LOCK,
    MANIFEST,
    RESULTS,
    locked,
    read_manifest,
    sync_folder,
    write_atomically,
)
from orchestrator.journal.opening import Journal
from orchestrator.journal.reading import fold_events, read_events
from orchestrator.journal.results import result_line, unknown_results
from orchestrator.journal.writer import Habits

__all__ = [
    "BALLAST",
    "CHECKPOINT",
    "JOURNAL",
    "LOCK",
    "MANIFEST",
    "RESULTS",
    "Habits",
    "Journal",
    "fold_events",
    "locked",
    "now",
    "read_events",
    "read_manifest",
    "result_line",
    "sync_folder",
    "unknown_results",
    "write_atomically",
]
