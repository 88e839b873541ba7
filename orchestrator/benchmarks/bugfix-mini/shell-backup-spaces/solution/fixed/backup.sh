#!/bin/bash
# backup.sh SOURCE VAULT NAME
set -u
. "$(dirname -- "$0")/../lib/common.sh"

[ $# -eq 3 ] || die "usage: backup.sh SOURCE VAULT NAME"
[ -d "$1" ] || die "no such folder: $1"
absolute source "$1"
absolute backup "$2/$3"
[ ! -e "$backup" ] || die "$3 exists already"

mkdir -p -- "$backup/files" || die "cannot make $backup"
: > "$backup/MANIFEST"
cd -- "$source" || die "cannot enter $source"
count=0
while IFS= read -r -d '' path; do
    path=${path#./}
    if ignored "$path" .backupignore; then
        continue
    fi
    case $path in
        */*) mkdir -p -- "$backup/files/${path%/*}" ;;
    esac
    cp -p -- "$path" "$backup/files/$path" || die "cannot copy $path"
    sha256sum -- "$path" >> "$backup/MANIFEST"
    count=$((count + 1))
done < <(find . -type f -print0 | LC_ALL=C sort -z)
echo "$count files backed up"
