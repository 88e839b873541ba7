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

# awk opens the files itself, so that a last line without a newline ends there. Names are made paths: a name with "=" is an
# assignment to awk.
export LC_ALL=C
files=()
for file in "$@"; do
    case $file in
        /*) files+=("$file") ;;
        *) files+=("./$file") ;;
    esac
done
awk -f "$here/lib/count.awk" "${files[@]}" | sort -t $'\t' -k1,1nr -k3 |
    awk -F '\t' -v count="$count" 'NR > count && $1 != last { exit } { last = $1; print }'
