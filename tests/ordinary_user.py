"""An ordinary user for tests that run as root: programs as somebody who has no right but his own files.

He is made in a mount namespace of their own, and nothing of him is left: his line in /etc/passwd, his ids in
/etc/subuid, and a way to the Python and the sources of the tests, which may be below a folder that is closed to him.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

USER: Final = 54_321
NAME: Final = "ordinary"
FIRST_ID: Final = 700_000_000
SOURCES: Final = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class OrdinaryUser:
    """A user with the folder `home`, who is lent ids or not."""

    home: Path
    is_lent_ids: bool

    @classmethod
    @contextmanager
    def make(cls, *, is_lent_ids: bool) -> "Iterator[OrdinaryUser]":
        if os.geteuid() != 0:
            pytest.skip("only root can become another user")
        if missing := [name for name in ("unshare", "mount", "setpriv") if shutil.which(name) is None]:
            pytest.skip(f"this machine lacks {missing[0]}")
        if is_lent_ids and shutil.which("newuidmap") is None:
            pytest.skip("this machine lacks newuidmap (package uidmap)")
        with TemporaryDirectory(prefix="sweep-ordinary-") as place:
            Path(place).chmod(0o755)
            home = Path(place, "home")
            home.mkdir()
            os.chown(home, USER, USER)
            yield cls(home, is_lent_ids)

    def run(self, argv: Sequence[str], *, timeout: float, before: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program as this user, in his home; `before` are commands that root runs first, with the same mounts."""
        lines = ["set -e", "mount --make-rprivate /", before, f"cd {self.home}"]
        for name, line in self._entries().items():
            changed = self.home.parent / name
            changed.write_text(Path("/etc", name).read_text() + line if Path("/etc", name).exists() else line)
            Path("/etc", name).touch()
            lines.append(f"mount --bind {changed} /etc/{name}")
        lines += self._ways()
        if Path("/dev/net/tun").exists():  # open to everybody, as on most machines
            lines.append("[ -e ../tun ] || mknod -m 666 ../tun c 10 200; mount --bind ../tun /dev/net/tun")
        lines += [f'exec setpriv --reuid {USER} --regid {USER} --clear-groups -- "$@"']
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        environment = {**kept, "HOME": str(self.home), "TMPDIR": str(self.home), "PYTHONDONTWRITEBYTECODE": "1"}
        command = ["unshare", "--mount", "sh", "-c", "\n".join(lines), "sh", *argv]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)

    def _entries(self) -> dict[str, str]:
        lent = f"{NAME}:{FIRST_ID}:65536\n" if self.is_lent_ids else ""
        return {
            "passwd": f"{NAME}:x:{USER}:{USER}::{self.home}:/bin/sh\n",
            "group": f"{NAME}:x:{USER}:\n",
            "subuid": lent,
            "subgid": lent,
        }

    def _ways(self) -> Iterator[str]:
        """Yield commands that show what he needs below folders that are closed to him."""
        needed = dict.fromkeys((SOURCES, Path(sys.prefix), Path(sys.base_prefix)))
        for number, place in enumerate(needed):
            aside = self.home.parent / f"way-{number}"
            aside.mkdir(exist_ok=True)
            yield f"mount --rbind {place} {aside}"
        closed = {each for place in needed for each in place.parents if not each.stat().st_mode & 0o001}
        for top in sorted(each for each in closed if closed.isdisjoint(each.parents)):
            yield f"mount -t tmpfs -o mode=755 none {top}"
        for number, place in enumerate(needed):
            if closed & set(place.parents):
                yield f"mkdir -p {place}; mount --rbind {self.home.parent}/way-{number} {place}"
