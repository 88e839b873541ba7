"""Folders that every box of this machine reads and none may change: /etc, the agent, and an empty one to cover others.

Its secret: one folder for each, made once and bound whole. bubblewrap reads the table of mounts anew after each mount,
so two dozen small binds from the host's /etc cost more than all the rest of its start (17 of 25 ms). A copy may become
stale; it is made when the service starts, and its content (the linker's cache, certificates) changes rarely.
"""

import os
import py_compile
import shutil
from contextlib import suppress
from pathlib import Path

from orchestrator.service.sandbox.base_provider import AGENT
from orchestrator.service.sandbox.provider import HOME
from orchestrator.service.sandbox.safe_fs import Copier, remove

USER, UID, HOSTNAME = "user", 1000, "devbox"
#: Files that programs need to find each other and speak TLS; no /etc/profile, for a login shell would set another PATH.
COPIED = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "nsswitch.conf", "protocols", "services"),
    *("alternatives", "ssl/certs", "ssl/openssl.cnf", "ca-certificates", "ca-certificates.conf", "crypto-policies"),
    *("pki/ca-trust/extracted", "pki/tls/cert.pem", "pki/tls/certs", "pki/tls/openssl.cnf"),
    *("localtime", "timezone", "os-release", "debian_version", "bash.bashrc", "inputrc", "terminfo", "mime.types"),
    *("fonts", "java-*", "magic", "perl", "python3", "xml"),
)
#: Folders of hundreds of links, bound from the host instead of copied.
BOUND = ("alternatives", "ssl/certs")
WRITTEN = {
    "passwd": f"root:x:0:0:root:/root:/bin/bash\n{USER}:x:{UID}:{UID}:{USER}:{HOME}:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": f"root:x:0:\n{USER}:x:{UID}:\nnogroup:x:65534:\n",
    "hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost {HOSTNAME}\n",
    "hostname": f"{HOSTNAME}\n",
    "resolv.conf": "",
}


def furnish(place: Path, interpreter: str) -> None:
    """Make etc, agent and nothing in the folder `place`; the boxes' Python is at `interpreter`. Raises OSError."""
    for folder in (place / "etc", place / "agent", place / "nothing"):
        remove(folder)
        folder.mkdir()
        folder.chmod(0o755)
    for name in bound():
        (place / "etc" / name).mkdir(parents=True)
        (place / "etc" / name).parent.chmod(0o755)
    for pattern in COPIED:
        for source in Path("/etc").glob(pattern):
            with suppress(OSError):  # the box does without a file that we may not read
                _copy(source, place / "etc" / source.relative_to("/etc"))
    for name, text in WRITTEN.items():
        (place / "etc" / name).write_text(text)
        (place / "etc" / name).chmod(0o644)
    # Compiled, it starts 6 ms sooner; and under another name than Python's, it is not hit by `pkill python`.
    py_compile.compile(
        os.fspath(AGENT),
        cfile=os.fspath(place / "agent/agent.pyc"),
        doraise=True,
        optimize=2,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    (place / "agent/agent.pyc").chmod(0o644)
    (place / "agent/agent").symlink_to(interpreter)


def bound() -> list[str]:
    """Names in /etc that need a mount of their own."""
    return [name for name in BOUND if Path("/etc", name).is_dir() and not Path("/etc", name).is_symlink()]


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    for folder in reversed(target.parents):
        if not folder.exists():
            folder.mkdir()
            folder.chmod(0o755)
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        target.mkdir()
        target.chmod(0o755)
        Copier().copy(source, target)
    else:
        shutil.copy(source, target)
