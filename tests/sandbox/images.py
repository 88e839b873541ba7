"""Unpacked images for tests, made of programs of this machine."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from orchestrator.service.sandbox.closure import PROGRAM
from orchestrator.service.sandbox.provider import ImageRoot

#: What tests run in boxes; Python is the box's own.
TOOLS: Final = (
    *("bash", "sh", "awk", "basename", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "diff", "dirname"),
    *("du", "env", "expr", "false", "find", "getconf", "grep", "gzip", "head", "id", "kill", "ln", "ls", "mkdir"),
    *("mkfifo", "mknod", "mktemp", "mount", "mv", "nproc", "od", "printf", "pwd", "readlink", "rm", "rmdir", "sed"),
    *("seq", "setsid", "sha256sum", "sleep", "sort", "stat", "tail", "tar", "tee", "test", "timeout", "touch", "tr"),
    *("true", "truncate", "umount", "uname", "uniq", "unshare", "wc", "whoami", "xargs"),
)
PASSWD: Final = "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n"
_LIBRARY: Final = re.compile(r"(/\S+) \(0x")


def obstacle() -> str:
    """Return why this machine cannot boot images; empty if it can."""
    return "" if os.geteuid() == 0 else "so far only root's services boot images"


def make_image(place: Path) -> ImageRoot:
    """Make an image of two layers in the folder `place`: a small Debian-like system, and a change to it."""
    base, change = place / "base", place / "change"
    for folder in ("etc", "usr/bin", "usr/lib", "root", "tmp", "var/www", "opt/old"):
        (base / folder).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (base / name).symlink_to("usr/lib64" if name == "lib64" else "usr/bin" if name != "lib" else "usr/lib")
    (base / "usr/lib64").mkdir()
    for name in TOOLS:
        program = shutil.which(name, path="/usr/bin:/bin")
        if program is None:
            pytest.skip(f"this machine lacks {name}, which the image for tests is made with")
        shutil.copy(program, base / "usr/bin" / name)
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        for library in map(Path, _LIBRARY.findall(said)):
            target = base / Path("usr", *library.parts[2 if library.parts[1] == "usr" else 1 :])
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(library, target)
    (base / "usr/bin/python3").symlink_to(PROGRAM)
    (base / "etc/passwd").write_text(PASSWD)
    (base / "etc/os-release").write_text("ID=trial\n")
    (base / "opt/old/file").write_text("old\n")
    (base / "opt/kept").write_text("base\n")
    (base / "var/www/page").write_text("page\n")
    os.chown(base / "var/www/page", 33, 33)

    (change / "opt").mkdir(parents=True)
    (change / "opt/kept").write_text("change\n")
    os.mknod(change / "opt/old", 0o600 | 0o020000, 0)  # how overlayfs marks what a layer removes
    return ImageRoot(layers=(base, change))
