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


def is_alive(pid: int) -> bool:
    return bool(birth(pid))


def open_files() -> int:
    """Number of our own open files."""
    return len(list(Path("/proc/self/fd").iterdir()))


def living_children() -> list[str]:
    """Children of ours, zombies included."""
    lists = [file.read_text() for file in Path("/proc/self/task").glob("*/children")]
    return sorted(" ".join(lists).split())
