#!/usr/bin/env bash
# The busiest paths of some access logs. Usage: summary.sh [-n N] FILE...
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
count=10

usage() {
    echo "usage: summary.sh [-n N] FILE..." >&2
    exit 64
}

while getopts n: option; do
    case $option in
        n) count=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || usage

for file in "$@"; do
    if [ ! -r "$file" ] || [ -d "$file" ]; then
        echo "summary: cannot read $file" >&2
        exit 1
    fi
done

cat -- "$@" | awk -f "$here/lib/count.awk" | sort -r | head -n "$count"
