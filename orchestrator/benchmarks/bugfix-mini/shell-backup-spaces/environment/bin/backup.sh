#!/bin/bash
# backup.sh SOURCE VAULT NAME
set -u
. $(dirname $0)/../lib/common.sh

[ $# -eq 3 ] || die "usage: backup.sh SOURCE VAULT NAME"
[ -d $1 ] || die "no such folder: $1"
source=$(absolute $1)
backup=$(absolute $2)/$3
[ ! -e $backup ] || die "$3 exists already"

mkdir -p $backup/files
: > $backup/MANIFEST
cd $source || die "cannot enter $source"
count=0
for path in $(find . -type f | sed 's|^\./||' | LC_ALL=C sort); do
    if ignored $path .backupignore; then
        continue
    fi
    mkdir -p $backup/files/$(dirname $path)
    cp -p $path $backup/files/$path || die "cannot copy $path"
    sha256sum $path >> $backup/MANIFEST
    count=$((count + 1))
done
echo "$count files backed up"
