"""Processes of this machine, read from /proc."""

import os
from pathlib import Path

from orchestrator.common.locks import birth


def carrying(word: str) -> dict[int, str]:
    """Pid and command line of each living process with `word` in its arguments or environment; not ours."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            words = read(folder / "cmdline")
            if word.encode() in words + read(folder / "environ"):
                found[int(folder.name)] = words.replace(b"\0", b" ").decode(errors="replace")
    return found


def read(path: Path) -> bytes:
    """Content of a file of a process; empty if the process is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def descendants(pid: int) -> set[tuple[int, str]]:
    """Pid and birth of each living process that this one has started, directly or not, and that was not orphaned."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (status := read(folder / "stat")):
            parents[int(folder.name)] = int(status.rpartition(b")")[2].split()[1])
    found, above = set[tuple[int, str]](), {pid}
    while above := {child for child, parent in parents.items() if parent in above}:
        found |= {(child, born) for child in above if (born := birth(child))}
    return found


def is_alive(pid: int) -> bool:
    return bool(birth(pid))


def open_files() -> int:
    """Number of our own open files."""
    return len(list(Path("/proc/self/fd").iterdir()))


def living_children() -> list[str]:
    """Children of ours, zombies included."""
    lists = [file.read_text() for file in Path("/proc/self/task").glob("*/children")]
    return sorted(" ".join(lists).split())
