#!/bin/bash
# Packs files into archives in pieces. Prints `piece NAME`, `note WORDS` and `uncrossed WORDS`. Calls of its functions follow.
# Given: what common.sh is given, step file room files piece most_large patience leave
# shellcheck disable=SC2154
out=$scratch/$step
rm -rf "$out"
mkdir -p "$out"
shopt -s globstar nullglob
IFS=
limited=()
command -v timeout >/dev/null && limited=(timeout -k 1 "$patience")
found() { # those of the paths that have the size $1
    for ((at = 0; at < ${#paths[@]}; at += 500)); do
        "${limited[@]}" find -H "${paths[@]:at:500}" \
            \( -path "$scratch" -o -path "$scratch/*" "${leave[@]}" \) -prune -o -type f -size "$1" -print0
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
crossed() { # what crosses to a separate scoring, as it is, if $1 lists it and it has no more than $2 bytes
    [ -e "$1/crossing.json" ] || return
    cd / && {
        tar -cf - --mtime=@0 --owner=0 --group=0 -C "$1" crossing.json && # the paths that cross may be links, and what they lead to crosses
            "${limited[@]}" tar -chf - --numeric-owner --no-recursion --null -T "$1/crossing.tops" &&
            "${limited[@]}" tar -cf - --numeric-owner --no-recursion --null -T "$1/crossing.list"
    } | head -c $(($2 + 1)) | split -b "$piece" -a 3 - "$out/crossed."
    status=${PIPESTATUS[0]}
    if [ "$(cat "$out"/crossed.* | wc -c)" -gt "$2" ]; then
        echo "uncrossed it has more than $(($2 >> 20)) MiB"
    elif [ "$status" != 0 ]; then
        echo "uncrossed not all of it can be read"
    else
        for each in "$out"/crossed.*; do echo "piece ${each##*/}"; done
    fi
}
pack() { # as group $1 the files that the patterns behind $2 name: as they are called from folder $2, or from the root
    group=$1 base=$2 count=0 paths=()
    for pattern in "${@:3}"; do
        # shellcheck disable=SC2206 # IFS is empty, and patterns are to become paths
        paths+=($pattern)
    done
    [ ${#paths[@]} -gt 0 ] || return
    while IFS= read -r -d '' path; do
        if [ $((count += 1)) -gt "$files" ]; then
            echo "note $group: there are more than $files files"
            break
        fi
        case $path in
        "$base"/*) printf './%s\0' "${path#"$base"/}" >>"$out/near" ;;
        *) printf './%s\0' "${path#/}" >>"$out/far" ;;
        esac
    done < <(found -$((file / 512 + 1)))
    archive "$group" near "$base"
    archive "$group" far /
    count=0
    while IFS= read -r -d '' path; do
        echo "note $group: ${path//$'\n'/?}: too large, its beginning is here"
        copy=$out/large/${path#"$base"/}.beginning
        mkdir -p "${copy%/*}" && "${limited[@]}" head -c "$file" "$path" >"$copy"
        printf './%s\0' "${copy#"$out"/large/}" >>"$out/cut"
        [ $((count += 1)) -lt "$most_large" ] || break
    done < <(found +$((file / 512)))
    archive "$group" cut "$out/large"
    rm -rf "$out/large"
}
