#!/bin/bash
# verify.sh VAULT NAME
set -u
. $(dirname $0)/../lib/common.sh

[ $# -eq 2 ] || die "usage: verify.sh VAULT NAME"
backup=$(absolute $1)/$2
[ -f $backup/MANIFEST ] || die "no backup $2"
cd $backup/files || die "cannot enter $backup/files"
while read sum path; do
    actual=$(sha256sum $path | cut -d ' ' -f 1)
    [ "$actual" = "$sum" ] || die "$path differs"
done < $backup/MANIFEST
echo "$2 is intact"
