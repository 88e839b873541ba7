"""The script that packs in a devbox what is to come home, into pieces of a size that one call can bring.

Groups, each in up to three archives: files below the group's own folder, files elsewhere, and the beginnings of those
that are too large. What the agent left comes before scoring; what scorers left, a group of its own, comes after. They
are archives and not copies of trees, because names, times and links of others need an
answer in one place, which is where they are unpacked.
"""

import shlex
from collections.abc import Sequence
from typing import Final

from orchestrator.agentkit.agent import Outputs
from orchestrator.engine.artifacts.snapshot import PIECE, traces_folder, variables
from orchestrator.engine.artifacts.unpack import Limits

#: In this order: who comes first has more room.
GROUPS: Final = ("trajectory", "traces", "artifacts")
#: What scorers left in `/logs/verifier`.
VERIFIER: Final = "verifier"
#: The scratch folder's folders of pieces.
GATHER: Final = "gather"
#: Seconds that a program may take in the devbox, where there is what ends it: a file may have become a pipe meanwhile.
_PATIENCE: Final = 60

_PACK: Final = r"""
out=$scratch/$step
rm -rf "$out"
mkdir -p "$out"
shopt -s globstar nullglob
IFS=
limited=()
command -v timeout >/dev/null && limited=(timeout -k 1 "$patience")
found() { # the files of size $1 that the patterns behind it name
    for pattern in "${@:2}"; do
        for path in $pattern; do
            "${limited[@]}" find -H "$path" \
                \( -path "$scratch" -o -path "$scratch/*" \) -prune -o -type f -size "$1" -print0
        done
    done | sort -zu
}
archive() { # the files of list $2 of group $1, as they are called from $3, in pieces; says which, and shrinks the room
    [ -s "$out/$2" ] || return
    "${limited[@]}" tar -chf - -C "$3" --null -T "$out/$2" | head -c "$room" | split -b "$piece" -a 3 - "$out/$1.$2."
    [ "${PIPESTATUS[0]}" = 0 ] || echo "note $1: not all of it could be packed"
    rm -f "$out/$2"
    for each in "$out/$1.$2".*; do
        echo "piece ${each##*/}"
        room=$((room - $(wc -c <"$each")))
    done
}
pack() { # as group $1 the files that the patterns behind $2 name: as they are called from folder $2, or from the root
    group=$1 base=$2 count=0
    while IFS= read -r -d '' path; do
        if [ $((count += 1)) -gt "$files" ]; then
            echo "note $group: there are more than $files files"
            break
        fi
        case $path in
        "$base"/*) printf './%s\0' "${path#"$base"/}" >>"$out/near" ;;
        *) printf './%s\0' "${path#/}" >>"$out/far" ;;
        esac
    done < <(found -$((file / 512 + 1)) "${@:3}")
    archive "$group" near "$base"
    archive "$group" far /
    count=0
    while IFS= read -r -d '' path; do
        echo "note $group: ${path//$'\n'/?}: too large, its beginning is here"
        copy=$out/large/${path#"$base"/}.beginning
        mkdir -p "${copy%/*}" && "${limited[@]}" head -c "$file" "$path" >"$copy"
        printf './%s\0' "${copy#"$out"/large/}" >>"$out/cut"
        [ $((count += 1)) -lt "$most_large" ] || break
    done < <(found +$((file / 512)) "${@:3}")
    archive "$group" cut "$out/large"
    rm -rf "$out/large"
}
"""
#: Of more files that are too large there is no room for beginnings.
_MOST_LARGE: Final = 4


def packing(leavings: Outputs, limits: Limits, *, scratch: str, directory: str, home: str) -> str:
    """The script for what the agent left; see `snapshot.variables`.

    Tells `piece NAME`, in the scratch folder's `gather`, and `note WORDS`.
    """
    traces = traces_folder(home)
    wanted = {
        "trajectory": (home, _absolute(leavings.trajectory, home)),
        "traces": (traces, [traces]),
        "artifacts": (home, _absolute(leavings.artifacts, home)),
    }
    packs = [("pack", group, wanted[group][0], *wanted[group][1]) for group in GROUPS if wanted[group][1]]
    return _script(packs, GATHER, limits, scratch=scratch, directory=directory, home=home)


def packing_verifier(limits: Limits, *, scratch: str, directory: str, home: str) -> str:
    """The script for all that scorers left in `/logs/verifier`; as `packing`, in the scratch folder's `verifier`."""
    folder = f"{traces_folder(home).removesuffix('agent')}{VERIFIER}"
    packs = [("pack", VERIFIER, folder, folder)]
    return _script(packs, VERIFIER, limits, scratch=scratch, directory=directory, home=home)


def _script(packs: Sequence[Sequence[str]], step: str, limits: Limits, **places: str) -> str:
    numbers = {"file": limits.file, "room": limits.room, "files": limits.files, "piece": PIECE}
    numbers |= {"most_large": _MOST_LARGE, "patience": _PATIENCE}
    return "\n".join(
        [
            variables(**places),
            " ".join([f"step={step}", *(f"{name}={value}" for name, value in numbers.items())]),
            _PACK,
            *map(shlex.join, packs),
            "exit 0\n",
        ]
    )


def _absolute(patterns: Sequence[str], home: str) -> list[str]:
    return [each if each.startswith("/") else f"{home}/{each.removeprefix('~/')}" for each in patterns]
