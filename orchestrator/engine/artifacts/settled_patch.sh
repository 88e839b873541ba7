#!/bin/bash
# Makes the patch of a devbox that its service has settled. Prints `piece NAME`, or `no-patch REASON`; `cut` and `left`.
# Given: scratch directory evidence prepared file piece
# shellcheck disable=SC2154,SC2015
PATH=/usr/local/bin:/usr/bin:/bin
[ ! -d /.sweep/tools/bin ] || PATH=/.sweep/tools/bin # the others are those of an image, and the agent's to change
exec 2>/dev/null </dev/null
exec 9>"$scratch/lock" && flock -w 20 9
made=$scratch/made
git_() { # below the folder $1
    GIT_DIR=$made/git GIT_WORK_TREE=$1 GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 \
        timeout 50 git -c core.compression=0 -c core.fsync=none -c core.fileMode=true -c core.quotePath=false \
        -c gc.auto=0 "${@:2}"
}
dotted() { # a name may begin with a dash
    while IFS= read -r -d '' name; do printf './%s\0' "$name"; done
}
readable() { # of the files on standard input, those that can be read
    dotted | xargs -0 -r -n 500 sh -c 'find "$@" -maxdepth 0 \( -type l -o -type f -readable \) -print0' sh |
        sed -z 's|^\./||'
}
lines() { tr '\0\n' '\n?' | head -n 1000; }
indexed() { # the files of list $2 below folder $1, added to the index; for an empty list there need be no folder
    [ -s "$2" ] || return 0
    cd "$1" && dotted <"$2" | git_ "$1" update-index -z --add --replace --stdin
}
copied() { # the files on standard input, from folder $1 to folder $2
    cd "$1" && dotted | xargs -0 -r cp -P --parents -t "$2"
}
ignored() { # new files that the .gitignore of before names, and that the agent did not stage all the same
    [ -d "$evidence/ignores" ] || return 0
    comm -z -23 \
        <(cd "$evidence/ignores" && git_ "$PWD" check-ignore -z --no-index --stdin <"$evidence/new.list" | sort -z) \
        <(cd "$directory" && [ -f .git/index ] && [ ! -L .git/index ] &&
            GIT_INDEX_FILE=$PWD/.git/index git_ "$PWD" ls-files -z | sort -z)
}
difference() { # to standard output, or why there is none to $1
    [ -e "$evidence/after.list" ] || { echo "nobody noted how the devbox was before the agent began" >"$1"; return; }
    is_git=$(command -v git)
    if [ "$is_git" ]; then
        mkdir -p "$made/git/objects" "$made/git/refs" "$made/git/info" # all that `git init` makes and git needs
        echo "ref: refs/heads/none" >"$made/git/HEAD"
        printf '* -text -ident -filter -working-tree-encoding !diff\n' >"$made/git/info/attributes"
        (ignored) >"$made/ignored"
    fi
    sort -z "$evidence/after.list" | comm -z -23 - "$made/ignored" >"$made/wanted"
    (cd "$directory" && readable <"$made/wanted") | sort -z >"$made/after"
    comm -z -23 "$made/wanted" "$made/after" >"$made/unreadable"
    {
        [ ! -s "$made/unreadable" ] || lines <"$made/unreadable" | sed 's/^/cut /; s/$/: cannot be read/'
        [ ! -s "$made/ignored" ] || lines <"$made/ignored" | while IFS= read -r name; do
            case /$name in # what tools drop by themselves is no reason to look
            */__pycache__/* | *.pyc | */node_modules/* | */.*_cache/* | */.tox/* | */.venv/* | */.cache/*) word="left" ;;
            *) word="cut" ;;
            esac
            echo "$word $name: .gitignore names it, and the agent did not stage it"
        done
        [ ! -s "$evidence/left-out" ] || sed 's/^/cut /' "$evidence/left-out"
    } >"$made/told"
    if [ "$is_git" ]; then
        export GIT_INDEX_FILE=$made/index.before
        (indexed "$prepared$directory" "$evidence/prepared.list") &&
            (indexed "$evidence/kept" "$evidence/kept.list") && git_ / write-tree >"$made/tree.before" ||
            { echo "git could not read how the working directory was" >"$1"; return; }
        export GIT_INDEX_FILE=$made/index.after
        (indexed "$directory" "$made/after") || { echo "git could not read the working directory" >"$1"; return; }
        (cd / && git_ / ls-files -z) | sort -z | comm -z -23 "$made/after" - >"$made/refused"
        [ ! -s "$made/refused" ] || lines <"$made/refused" |
            sed 's/^/cut /; s/$/: git keeps no file of that name/' >>"$made/told"
        read -r before <"$made/tree.before"
        git_ / diff --cached --binary --no-color --no-ext-diff --no-textconv --no-renames "$before"
    elif command -v diff >/dev/null; then
        mkdir "$made/a" "$made/b"
        (copied "$prepared$directory" "$made/a" <"$evidence/prepared.list")
        (copied "$evidence/kept" "$made/a" <"$evidence/kept.list")
        (copied "$directory" "$made/b" <"$made/after")
        cd "$made" && diff -ruN a b
    else
        echo "there is neither git nor diff" >"$1"
    fi
}
shopt -s nullglob
out=$scratch/patch
rm -rf "$out" "$made"
mkdir -p "$out" "$made"
: >"$made/ignored"
difference "$out/no-patch" | head -c $((file + 1)) | split -b "$piece" -a 3 - "$out/patch."
head -c 500000 "$made/told"
if [ -e "$out/no-patch" ]; then
    echo "no-patch $(cat "$out/no-patch")"
else
    [ -e "$out/patch.aaa" ] || : >"$out/patch.aaa" # nothing was changed
    for each in "$out"/patch.*; do echo "piece ${each##*/}"; done
fi
exit 0
