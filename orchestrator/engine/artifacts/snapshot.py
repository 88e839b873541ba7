"""What the agent changed: the working directory as it was before the agent began, and the difference afterwards.

Both are made in the devbox, because what is there may be large. Git does it where the devbox has it, also where the
working directory is no repository: with a git folder, an index and objects of its own in the scratch folder, so that
the scenario's repository is only ever read, and what the agent commits there changes nothing. Files are listed one by
one and nested repositories walked into, because git by itself stops at one. Without git it is a copy and `diff`.
"""

import shlex
from typing import Final

#: Seconds that taking the snapshot, and making the patch, may take.
PATIENCE: Final = 60.0
#: A tree with more is left alone; larger files are no part of a patch.
MOST_FILES: Final = 100_000
MOST_BYTES: Final = 1 << 30
LARGEST_FILE: Final = 32 << 20
#: Bytes that one call brings home.
PIECE: Final = 8 << 20
#: Where an agent leaves what is to come home with the run, as Harbor has it.
TRACES: Final = "/logs/agent"

_COMMON: Final = r"""
PATH=/usr/local/bin:/usr/bin:/bin:$PATH
exec 2>/dev/null </dev/null
exec 9>"$scratch/lock" && flock -w 20 9 # not every endpoint takes a second order for the first
snapshot=$scratch/snapshot
ours=()
for folder in "$scratch" "$home/.agent"; do
    case $folder in "$directory"/*) ours+=("${folder#"$directory"}") ;; esac
done
readable=(-readable)
find . -maxdepth 0 -readable >/dev/null || readable=()
git_() {
    GIT_DIR=$snapshot/git GIT_WORK_TREE=$directory GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 \
        git -c core.compression=0 -c core.fsync=none -c core.fileMode=true -c core.quotePath=false -c gc.auto=0 "$@"
}
files() { # of what is listed on standard input, whatever is to be in a patch; folders are walked
    xargs -0 -r -n 500 sh -c 'find "$@" -name .git -prune -o \( -type l -o -type f '"${readable[*]}"' \) -size -'$((
        largest / 512 + 1
    ))' -print0' sh
}
dotted() { # a name may begin with a dash
    while IFS= read -r -d '' name; do printf './%s\0' "$name"; done
}
is_too_large() {
    [ "$(tr -cd '\0' <"$1" | wc -c)" -gt $most_files ] ||
        xargs -0 -r stat -c %s <"$1" | awk -v most=$most_bytes '{ sum += $1 } END { exit !(sum > most) }'
}
"""

_SNAPSHOT: Final = r"""
for done in tree a why-not; do [ -e "$snapshot/$done" ] && exit 0; done # later the agent may be at work
rm -rf "$snapshot"
mkdir -p "$snapshot" "$traces" && cd "$directory" || exit 1
give_up() { rm -rf "$snapshot"; mkdir -p "$snapshot"; echo "$1" >"$snapshot/why-not"; exit 0; }
if command -v git >/dev/null; then
    git_ init -q --template= || give_up "git made no folder of its own in the devbox"
    mkdir -p "$snapshot/git/info"
    printf '* -text -ident -filter -working-tree-encoding !diff\n' >"$snapshot/git/info/attributes"
    printf '%s\n' "${ours[@]}" >"$snapshot/git/info/exclude"
    { git ls-files -z; git_ ls-files -zo --exclude-standard; } | dotted | files >"$snapshot/list"
    is_too_large "$snapshot/list" && give_up "the working directory is too large"
    git_ update-index -z --add --replace --stdin <"$snapshot/list" &&
        git_ write-tree >"$snapshot/tree.new" || give_up "git could not read the working directory"
    mv "$snapshot/tree.new" "$snapshot/tree"
elif command -v diff >/dev/null; then
    find . \( -name .git -o -path "./${scratch#"$directory/"}" -o -path "./${home#"$directory/"}/.agent" \) -prune \
        -o -type f -size -$((largest / 512 + 1)) -print0 >"$snapshot/list"
    is_too_large "$snapshot/list" && give_up "the working directory is too large"
    mkdir "$snapshot/a.new"
    xargs -0 -r sh -c 'for each; do
        mkdir -p "$0/${each%/*}" && cp -p "$each" "$0/$each"
    done' "$snapshot/a.new" <"$snapshot/list"
    mv "$snapshot/a.new" "$snapshot/a"
else
    give_up "the devbox has neither git nor diff"
fi
rm -f "$snapshot/list"
"""

_PATCH: Final = r"""
patch() { # the difference to standard output, or why there is none to $1
    cd "$directory" || { echo "the working directory is gone" >"$1"; return; }
    if [ -e "$snapshot/tree" ]; then
        export GIT_INDEX_FILE=$snapshot/index
        cp -p "$snapshot/git/index" "$GIT_INDEX_FILE" # by its time git knows what may have changed in the same second
        git_ ls-files -zco --exclude-standard | dotted | files >"$snapshot/list"
        if is_too_large "$snapshot/list"; then echo "the working directory is too large now" >"$1"; return; fi
        { git_ ls-files -zd; cat "$snapshot/list"; } | git_ update-index -z --add --remove --replace --stdin &&
            git_ write-tree >"$snapshot/after" ||
            { echo "git could not read the working directory any more" >"$1"; return; }
        unset GIT_INDEX_FILE
        git_ diff --binary --no-color --no-ext-diff --no-textconv --no-renames \
            "$(cat "$snapshot/tree")" "$(cat "$snapshot/after")"
    elif [ -e "$snapshot/a" ]; then
        cd "$snapshot" && ln -sfn "$directory" b
        diff -ruN -x .git -x .sweep -x .agent a b
    elif [ -e "$snapshot/why-not" ]; then
        cat "$snapshot/why-not" >"$1"
    else
        echo "there is no snapshot of the time before the agent began" >"$1"
    fi
}
shopt -s nullglob
out=$scratch/patch
rm -rf "$out"
mkdir -p "$out"
patch "$out/no-patch" | head -c $((file + 1)) | split -b "$piece" -a 3 - "$out/patch."
if [ -e "$out/no-patch" ]; then
    echo "no-patch $(cat "$out/no-patch")"
else
    [ -e "$out/patch.aaa" ] || : >"$out/patch.aaa" # nothing was changed
    for each in "$out"/patch.*; do echo "piece ${each##*/}"; done
fi
exit 0
"""


def variables(*, scratch: str, directory: str, home: str) -> str:
    """What the scripts need to know, and what they share. `directory` is the working directory."""
    words = {"scratch": scratch, "directory": directory.rstrip("/") or "/", "home": home, "traces": traces_folder(home)}
    numbers = {"most_files": MOST_FILES, "most_bytes": MOST_BYTES, "largest": LARGEST_FILE}
    quoted = {name: shlex.quote(str(value)) for name, value in (words | numbers).items()}
    return "".join(f"{name}={value}\n" for name, value in quoted.items()) + _COMMON


def snapshot(**places: str) -> str:
    """The script that takes the snapshot, and makes the folder for traces; see `variables`."""
    return variables(**places) + _SNAPSHOT


def patching(limit: int, **places: str) -> str:
    """The script that makes the patch, of at most one byte more than `limit`.

    It tells `piece NAME` in the scratch folder's `patch`, or `no-patch REASON`.
    """
    return variables(**places) + f"file={limit} piece={PIECE}\n" + _PATCH


def traces_folder(home: str) -> str:
    """The folder for traces as commands see it: without isolation a devbox's folders are not where they seem."""
    root, _, _ = home.rpartition("/home/user")
    return f"{root}{TRACES}"
