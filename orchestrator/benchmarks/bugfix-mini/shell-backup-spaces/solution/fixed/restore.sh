#!/bin/bash
# restore.sh VAULT NAME TARGET
set -u
. "$(dirname -- "$0")/../lib/common.sh"

[ $# -eq 3 ] || die "usage: restore.sh VAULT NAME TARGET"
absolute files "$1/$2/files"
absolute target "$3"
[ -d "$files" ] || die "no backup $2"
mkdir -p -- "$target"
cd -- "$files" || die "cannot enter $files"
while IFS= read -r -d '' path; do
    path=${path#./}
    case $path in
        */*) mkdir -p -- "$target/${path%/*}" ;;
    esac
    cp -p -- "$path" "$target/$path" || die "cannot restore $path"
done < <(find . -type f -print0)
printf '%s restored\n' "$2"
