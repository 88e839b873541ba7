"""`sweep` on a disk that takes its time: `SYNC_SECONDS_FILE=FILE python tests/crash/slow_disk.py run …`.

Each sync takes as many seconds more as the file says just then; so it can be changed while the process lives. A file
that says `5 once` is gone when the sync begins that it was meant for.

SQLite does not sync through Python: for the service there is a library to be preloaded, where this machine can compile
it.
"""

import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

VARIABLE: Final = "SYNC_SECONDS_FILE"


def slow_down(told: Path) -> None:
    """Make every sync of this process last as long as the file tells."""
    for name in ("fsync", "fdatasync"):
        setattr(os, name, _slow(getattr(os, name), told))


def _slow(real: Callable[[Any], None], told: Path) -> Callable[[Any], None]:
    @functools.wraps(real)
    def sync(file: Any) -> None:
        time.sleep(_seconds(told))
        real(file)

    return sync


def _seconds(told: Path) -> float:
    with suppress(OSError, ValueError):  # told nothing, or just being told, or another sync was meant
        seconds, _, once = told.read_text().partition(" ")
        if once:
            told.unlink()
        return float(seconds)
    return 0.0


def tell(told: Path, seconds: float, *, once: bool = False) -> None:
    """Let syncs take so many seconds more from now on, or only the next one."""
    told.write_text(f"{seconds:g} once" if once else f"{seconds:g}")


def preload(folder: Path) -> dict[str, str]:
    """The environment that slows SQLite's syncs down; empty on a machine without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return {}
    library = folder / "slow_sync.so"
    source = Path(__file__).with_name("slow_sync.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


def main() -> None:
    from orchestrator import cli

    slow_down(Path(os.environ[VARIABLE]))
    sys.argv = ["sweep", *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    main()
