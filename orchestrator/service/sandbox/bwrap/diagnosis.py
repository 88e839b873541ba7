"""What bubblewrap's refusals mean, and what the user can do.

Its secret: the places where Linux forbids unprivileged namespaces. bubblewrap names the system call that failed; which
of the machine's rules made it fail is read from /proc.
"""

from pathlib import Path

from orchestrator.core.errors import SandboxUnavailable

ALTERNATIVE = "or choose `--isolation none`, which runs the code without a sandbox"
#: A setting of the kernel, the value that forbids sandboxes, and what makes it allow them.
RULES = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=65536"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (or an AppArmor profile for bwrap with `userns,`)",
    ),
)
CONTAINER_FLAGS = (
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
)
CONTAINER_SIGNS = (Path("/.dockerenv"), Path("/run/.containerenv"))


def explain(words: str, *, settings: Path = Path("/proc/sys"), container: bool | None = None) -> SandboxUnavailable:
    """The error for a trial sandbox that failed saying `words`."""
    said = words.strip() or "it ended without a word"
    inside = any(sign.exists() for sign in CONTAINER_SIGNS) if container is None else container
    return SandboxUnavailable(f"this machine does not permit sandboxes ({said}): {_fix(said, settings, inside=inside)}")


def _fix(said: str, settings: Path, *, inside: bool) -> str:
    for name, forbidding, command in RULES:
        if _read(settings / name) == forbidding:
            return f"as root, `{command}`; {ALTERNATIVE}"
    if "source path" in said:
        return f"put the state folder where other users can reach it, or start as an ordinary user; {ALTERNATIVE}"
    if inside:
        return f"start the container with `{CONTAINER_FLAGS}`; {ALTERNATIVE}"
    return f"allow unprivileged user namespaces to bwrap; {ALTERNATIVE}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
