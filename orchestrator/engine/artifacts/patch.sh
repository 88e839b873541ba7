#!/bin/bash
# Makes the patch in the agent's own devbox. Prints `piece NAME`, or `no-patch REASON`.
# Given: what common.sh is given, file piece
# shellcheck disable=SC2154,SC2015
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
