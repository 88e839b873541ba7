#!/usr/bin/env bash
# Packs example/ as app-VERSION.tar.gz into a folder.
set -euo pipefail
version=$1 folder=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R "$here/example/." "$work"
echo "$version" > "$work/VERSION"
(cd "$work" && find . -type f ! -name MANIFEST -exec sha256sum {} + > MANIFEST)
tar -czf "$folder/app-$version.tar.gz" -C "$work" .
