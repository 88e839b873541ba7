#!/bin/bash
# prune.sh VAULT KEEP
set -u
. "$(dirname -- "$0")/../lib/common.sh"

[ $# -eq 2 ] || die "usage: prune.sh VAULT KEEP"
absolute vault "$1"
cd -- "$vault" || die "no such vault: $1"
backups=()
while IFS= read -r -d '' name; do
    backups+=("${name#./}")
done < <(find . -mindepth 1 -maxdepth 1 -type d -name '[!.]*' -print0 | LC_ALL=C sort -z)
excess=$((${#backups[@]} - $2))
for ((index = 0; index < excess; index++)); do
    name=${backups[index]}
    [ -f "$name/MANIFEST" ] && rm -rf -- "$name" && printf 'removed %s\n' "$name"
done
exit 0
