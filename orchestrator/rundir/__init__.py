"""The run folder: the journal, which is the truth, what is derived from it, and the manifest.

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
    append_file a file that only grows, and what becomes of a write that failed
    ballast     room held in reserve for a full disk
    results     results.jsonl out of the journal
    checkpoint  what spares reading a long journal again
    run_files   these, in step
    writer      the thread
    journal     `Journal`: all of it as the event loop sees it
"""
