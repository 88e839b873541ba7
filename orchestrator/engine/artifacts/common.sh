#!/bin/bash
# Functions that snapshot, patch and pack share; they are sent in front of each.
# Given: scratch directory home traces most_files most_bytes largest
# shellcheck disable=SC2154
PATH=/.sweep/tools/bin:/usr/local/bin:/usr/bin:/bin:$PATH # a devbox of an image has programs of ours
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
    [ "$(tr -cd '\0' <"$1" | wc -c)" -gt "$most_files" ] ||
        xargs -0 -r stat -c %s <"$1" | awk -v most="$most_bytes" '{ sum += $1 } END { exit !(sum > most) }'
}
