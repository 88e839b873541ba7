#!/bin/bash
# restore.sh VAULT NAME TARGET
set -u
. $(dirname $0)/../lib/common.sh

[ $# -eq 3 ] || die "usage: restore.sh VAULT NAME TARGET"
files=$(absolute $1)/$2/files
target=$(absolute $3)
[ -d $files ] || die "no backup $2"
mkdir -p $target
cd $files || die "cannot enter $files"
for path in $(find . -type f | sed 's|^\./||'); do
    mkdir -p $target/$(dirname $path)
    cp -p $path $target/$path || die "cannot restore $path"
done
echo "$2 restored"
