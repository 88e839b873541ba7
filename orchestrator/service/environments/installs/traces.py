"""Tokens that an install has written into what it made are struck out: everybody who has the agent could read them.

npm and pip write where a package came from, and some write the login with it. A token is overwritten in place, letter
by letter, so that no file changes its length. Blocking; call from a worker thread.
"""

import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog

_STRUCK: Final = b"*"


def strike_out(tree: Path, secrets: Sequence[bytes]) -> None:
    """Overwrite the secrets in all files of a tree that nobody else writes in. Raises OSError."""
    if not secrets:
        return
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            place = Path(folder, name)
            mode = place.lstat().st_mode
            if stat.S_ISLNK(mode) and any(secret in os.fsencode(place.readlink()) for secret in secrets):
                place.unlink()
            elif stat.S_ISREG(mode) and place.stat().st_size:
                _strike_out_of(place, mode, secrets)


def _strike_out_of(file: Path, mode: int, secrets: Sequence[bytes]) -> None:
    file.chmod(mode | 0o600)
    try:
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as data:
            for secret in secrets:
                for place in _places(data, secret):
                    data[place : place + len(secret)] = _STRUCK * len(secret)
                    structlog.get_logger().warning("install.token_struck_out", file=str(file), at=place)
    finally:
        file.chmod(stat.S_IMODE(mode))


def _places(data: mmap.mmap, secret: bytes) -> Iterator[int]:
    place = data.find(secret)
    while place >= 0:
        yield place
        place = data.find(secret, place + len(secret))
