#!/bin/bash
# Notes how the working directory is before the agent begins.
# Given: what common.sh is given
# shellcheck disable=SC2154,SC2015,SC2016
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
