# Counts requests and bytes of each path: "requests TAB bytes TAB path" for each.

/^#/ || NF == 0 { next }

{
    path = $6
    sub(/\?.*/, "", path)
    requests[path]++
    bytes[path] += $5 == "-" ? 0 : $5
}

END {
    for (path in requests)
        printf "%d\t%.0f\t%s\n", requests[path], bytes[path], path
}
