#!/bin/bash
# prune.sh VAULT KEEP
set -u
. $(dirname $0)/../lib/common.sh

[ $# -eq 2 ] || die "usage: prune.sh VAULT KEEP"
cd $1 || die "no such vault: $1"
backups=$(ls -d */ | sed 's|/$||' | LC_ALL=C sort)
total=$(echo "$backups" | wc -l)
for name in $(echo "$backups" | head -n $((total > $2 ? total - $2 : 0))); do
    [ -f $name/MANIFEST ] && rm -rf $name && echo "removed $name"
done
exit 0
