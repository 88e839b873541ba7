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

import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from orchestrator.agentkit.agent import Outputs
from orchestrator.engine.artifacts.unpack import ArchiveLimits

#: Seconds that taking the snapshot, and making the patch, may take.
PATCH_S: Final = 60.0
#: A tree with more makes no patch; larger files are no part of one.
MAX_FILES: Final = 100_000
MAX_TREE_BYTES: Final = 1 << 30
MAX_PATCHED_BYTES: Final = 32 << 20
#: The part of an archive that one call reads.
PIECE_BYTES: Final = 8 << 20
#: The folder for files of the agent that belong to the run, as in Harbor.
TRACES: Final = "/logs/agent"
#: The groups of files in the order in which they get room.
GROUPS: Final = ("trajectory", "traces", "artifacts")
#: The group of the scorers' files in `/logs/verifier`.
VERIFIER: Final = "verifier"
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


def packing(outputs: Outputs, limits: ArchiveLimits, *, scratch: str, directory: str, home: str) -> str:
    """Script that packs the agent's files.

    It prints `piece NAME`, in the scratch folder's `gather`, and `note WORDS`.
    """
    traces = _traces_folder(home)
    wanted = {
        "trajectory": (home, outputs.trajectory),
        "traces": (traces, [traces]),
        "artifacts": (home, outputs.artifacts),
    }
    packs = [
        (group, base, *(each if each.startswith("/") else f"{home}/{each.removeprefix('~/')}" for each in patterns))
        for group, (base, patterns) in wanted.items()
        if patterns
    ]
    return _packing(packs, GATHER, limits, scratch=scratch, directory=directory, home=home)


def packing_verifier(limits: ArchiveLimits, *, scratch: str, directory: str, home: str) -> str:
    """Script that packs the scorers' files in `/logs/verifier`; as `packing`, in the scratch folder's `verifier`."""
    folder = f"{_traces_folder(home).removesuffix('agent')}{VERIFIER}"
    packs = [(VERIFIER, folder, folder)]
    return _packing(packs, VERIFIER, limits, scratch=scratch, directory=directory, home=home)


def _packing(packs: Sequence[Sequence[str]], step: str, limits: ArchiveLimits, **places: str) -> str:
    numbers = {"file": limits.file, "room": limits.room, "files": limits.files, "piece": PIECE_BYTES}
    numbers |= {"most_large": _MAX_BEGINNINGS, "patience": _PROGRAM_S}
    calls = "".join(f"pack {shlex.join(pack)}\n" for pack in packs)
    return _common(**places) + _assigned({"step": step, **numbers}) + _program("pack.sh") + calls + "exit 0\n"


def _common(*, scratch: str, directory: str, home: str) -> str:
    """The beginning of each script; `directory` is the working directory, `scratch` ours."""
    places: dict[str, str | int] = {"scratch": scratch, "directory": directory.rstrip("/") or "/", "home": home}
    numbers = {"most_files": MAX_FILES, "most_bytes": MAX_TREE_BYTES, "largest": MAX_PATCHED_BYTES}
    return _assigned(places | {"traces": _traces_folder(home)} | numbers) + _program("common.sh")


def _assigned(values: Mapping[str, str | int]) -> str:
    return "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in values.items())


@cache
def _program(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _traces_folder(home: str) -> str:
    """The folder for traces as commands see it: without isolation a devbox's folders are not where they seem."""
    root, _, _ = home.rpartition("/home/user")
    return f"{root}{TRACES}"
