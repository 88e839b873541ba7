"""Our shell programs for a devbox: they make the agent's patch and pack its files.

Snapshot and patch are made in the devbox, because what is there may be large. Git does it where the devbox has it, also
where the working directory is no repository: with a git folder, an index and objects of its own in the scratch folder,
so that the scenario's repository is only ever read, and what the agent commits there changes nothing. Files are listed
one by one and nested repositories walked into, because git by itself stops at one. Without git it is a copy and `diff`.

Where a service of ours has settled the devbox, nothing of the agent runs any more and its files are read-only. The
service says which files may have changed, and has their content from before; git compares these and no others. What a
`.gitignore` names is judged by that file as it was before the agent began: an agent that adds to it hides nothing.

Files are packed into archives, not copied as trees: foreign names, times and links are handled in one place, where
they are unpacked. A group has up to three: files below its own folder, files elsewhere, and the
beginnings of those that are too large.
"""

import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from orchestrator.agentkit.agent import Outputs
from orchestrator.core.records import Artifact
from orchestrator.engine.artifacts.unpack import ArchiveLimits

#: Seconds that taking the snapshot, and making the patch, may take.
PATCH_S: Final = 60.0
#: A tree with more makes no patch; larger files are no part of one.
MAX_FILES: Final = 100_000
MAX_TREE_BYTES: Final = 1 << 30
MAX_PATCHED_BYTES: Final = 32 << 20
#: What crosses to a separate scoring is kept if it is no larger.
MAX_CROSSED_BYTES: Final = 256 << 20
#: The part of an archive that one call reads.
PIECE_BYTES: Final = 8 << 20
#: The folder for files of the agent that belong to the run, as in Harbor.
TRACES: Final = "/logs/agent"
#: The folder whose files are artifacts without being named.
PUBLISHED: Final = "/logs/artifacts"
#: The groups of files in the order in which they get room.
GROUPS: Final = ("trajectory", "traces", "artifacts")
#: The group of the scorers' files in `/logs/verifier`.
VERIFIER: Final = "verifier"
#: The pieces of what crosses to a separate scoring.
CROSSED: Final = "crossed"
#: The scratch folder's folder of pieces.
GATHER: Final = "gather"
#: Seconds that a program may take in a devbox that has `timeout`: a file may have become a pipe meanwhile.
_PROGRAM_S: Final = 60
#: Files that are too large and whose beginnings are packed.
_MAX_BEGINNINGS: Final = 4


def snapshot(**places: str) -> str:
    """Script that notes the working directory's files and makes the folder for traces; `places` as in `_common`."""
    return _common(**places) + _program("snapshot.sh")


def patching(limit: int, **places: str) -> str:
    """Script that makes the patch, of at most one byte more than `limit`; `places` as in `_common`.

    It prints `piece NAME`, in the scratch folder's `patch`, or `no-patch REASON`.
    """
    return _common(**places) + _assigned({"file": limit, "piece": PIECE_BYTES}) + _program("patch.sh")


def settled_patching(limit: int, *, evidence: str, prepared: str, scratch: str, directory: str) -> str:
    """Script that makes the patch of a settled devbox; for `evidence` and `prepared` see `records.Settlement`.

    It prints what `patching` prints; `cut WORDS` for a missing part, and `left WORDS` for one that does not matter.
    """
    places: dict[str, str | int] = {
        "evidence": evidence,
        "prepared": prepared,
        "scratch": scratch,
        "directory": directory.rstrip("/") or "/",
    }
    return _assigned(places | {"file": limit, "piece": PIECE_BYTES}) + _program("settled_patch.sh")


def packing(
    outputs: Outputs,
    artifacts: Sequence[Artifact],
    limits: ArchiveLimits,
    *,
    scratch: str,
    directory: str,
    home: str,
    evidence: str = "",
) -> str:
    """Script that packs the agent's files, and the scenario's artifacts; from `evidence`, what crosses to its scorers.

    It prints `piece NAME`, in the scratch folder's `gather`, and `note WORDS`; `uncrossed WORDS` if what crosses is not
    packed.
    """
    traces = _rooted(home, TRACES)
    sources = {each: _rooted(home, posixpath.normpath(each.source)) for each in artifacts if each.source[0] == "/"}
    sources |= {
        each: posixpath.join(directory, posixpath.normpath(each.source)) for each in artifacts if each not in sources
    }
    published = _rooted(home, PUBLISHED)
    kept = [*outputs.artifacts, *map(_literal, sources.values()), f"{published}/*", f"{published}/.[!.]*"]
    wanted = {
        "trajectory": (home, outputs.trajectory),
        "traces": (traces, [traces]),
        "artifacts": (home, kept),
    }
    leave = [
        f"{_literal(source)}/{middle}{pattern}"
        for each, source in sources.items()
        for pattern in each.exclude
        for middle in ("", "*/")
    ]
    packs = [
        (group, base, *(each if each.startswith("/") else f"{home}/{each.removeprefix('~/')}" for each in patterns))
        for group, (base, patterns) in wanted.items()
        if patterns
    ]
    first = f"crossed {shlex.quote(evidence)} {MAX_CROSSED_BYTES}\n" if evidence else ""
    return _packing(packs, GATHER, limits, leave, first, scratch=scratch, directory=directory, home=home)


def _literal(path: str) -> str:
    """A path as a pattern that matches nothing else."""
    return re.sub(r"[*?\[\\]", lambda found: "[\\\\]" if found[0] == "\\" else f"[{found[0]}]", path)


def packing_verifier(limits: ArchiveLimits, *, scratch: str, directory: str, home: str) -> str:
    """Script that packs the scorers' files in `/logs/verifier`; as `packing`, in the scratch folder's `verifier`."""
    folder = _rooted(home, f"/logs/{VERIFIER}")
    packs = [(VERIFIER, folder, folder)]
    return _packing(packs, VERIFIER, limits, (), scratch=scratch, directory=directory, home=home)


def _packing(
    packs: Sequence[Sequence[str]],
    step: str,
    limits: ArchiveLimits,
    leave: Sequence[str],
    first: str = "",
    **places: str,
) -> str:
    numbers = {"file": limits.file, "room": limits.room, "files": limits.files, "piece": PIECE_BYTES}
    numbers |= {"most_large": _MAX_BEGINNINGS, "patience": _PROGRAM_S}
    calls = first + "".join(f"pack {shlex.join(pack)}\n" for pack in packs)
    left = f"leave=({' '.join(f'-o -path {shlex.quote(pattern)}' for pattern in leave)})\n"
    return f"{_common(**places)}{_assigned({'step': step, **numbers})}{left}{_program('pack.sh')}{calls}exit 0\n"


def _common(*, scratch: str, directory: str, home: str) -> str:
    """The beginning of each script; `directory` is the working directory, `scratch` ours."""
    places: dict[str, str | int] = {"scratch": scratch, "directory": directory.rstrip("/") or "/", "home": home}
    numbers = {"most_files": MAX_FILES, "most_bytes": MAX_TREE_BYTES, "largest": MAX_PATCHED_BYTES}
    return _assigned(places | {"traces": _rooted(home, TRACES)} | numbers) + _program("common.sh")


def _assigned(values: Mapping[str, str | int]) -> str:
    return "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in values.items())


@cache
def _program(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _rooted(home: str, path: str) -> str:
    """A path as commands see it: without isolation a devbox's folders are not where they seem."""
    root, _, _ = home.rpartition("/home/user")
    return f"{root}{path}"
