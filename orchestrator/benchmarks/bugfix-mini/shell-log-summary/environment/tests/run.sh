#!/usr/bin/env bash
# The present test: three paths with different counts.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for path in /a /b /b /c?x=1 /c?x=2 /c; do
    echo "2024-05-01T10:00:00Z 10.0.0.7 GET 200 10 $path" >> "$log"
done
if [ "$(bash "$here/summary.sh" -n 2 "$log")" = "$(printf '3\t30\t/c\n2\t20\t/b')" ]; then
    echo ok
else
    echo failed
    exit 1
fi
