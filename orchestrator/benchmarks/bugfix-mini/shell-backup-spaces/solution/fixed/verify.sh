#!/bin/bash
# verify.sh VAULT NAME
set -u
. "$(dirname -- "$0")/../lib/common.sh"

[ $# -eq 2 ] || die "usage: verify.sh VAULT NAME"
absolute backup "$1/$2"
[ -f "$backup/MANIFEST" ] || die "no backup $2"
cd -- "$backup/files" || die "cannot enter $backup/files"
# An empty list is no error for a backup, but one for sha256sum.
if [ -s ../MANIFEST ]; then
    sha256sum --check --quiet --strict ../MANIFEST || die "$2 differs"
fi
printf '%s is intact\n' "$2"
