# Shared by the scripts in bin/.

die() {
    printf '%s: %s\n' "$(basename -- "$0")" "$*" >&2
    exit 1
}

# Puts the path, in a form that stays right after a change of directory, into the named variable. Not printed: $(...)
# would drop line breaks at its end.
absolute() {
    case $2 in
        /*) printf -v "$1" '%s' "$2" ;;
        *) printf -v "$1" '%s/%s' "$PWD" "$2" ;;
    esac
}

# Succeeds if the path matches a pattern of the ignore file.
ignored() {
    local path=$1 ignore_file=$2 pattern
    [ -f "$ignore_file" ] || return 1
    while IFS= read -r pattern || [ -n "$pattern" ]; do
        case $pattern in
            '' | '#'*) continue ;;
        esac
        # shellcheck disable=SC2254
        case $path in
            $pattern) return 0 ;;
        esac
    done < "$ignore_file"
    return 1
}
