"""The run folder: the journal, which is the only truth, the files derived from it, and the manifest.

One thread writes. Events that queue up while it syncs share the next sync; `append` returns when its events are on
disk. The folder is locked for as long as a journal is open, so there is one writer. A line counts only with its
newline: the rest of a line after a crash is cut before the first append, and damage anywhere else is an error that says
where, never a guess. A disk that refuses is waited for; a file that another process changed is not written any more.
Why not a database: one appended line is the smallest thing that can be durable, and people can read it.

Reads after an append see a fold that includes it: an event is in the ledger before it is sent to the disk, and one that
the ledger refuses is never written. So the ledger may be ahead of the disk; a caller that needs the disk waits.

    journal     the journal: read, recovered, and written by a thread
    results_file results.jsonl, derived from the journal
    checkpoint  a saved fold, so that a long journal need not be read again
    append_file a file that only grows, recovery from a failed write, and the ballast for a full disk
    files       names, the lock, writes that survive a crash or a full disk
    manifest    the settings and the identity of a sweep
    sweep_index the sweeps of a runs folder, and the folder to run: one to resume, or a new one
    repair      a damaged journal without its damaged lines
"""
