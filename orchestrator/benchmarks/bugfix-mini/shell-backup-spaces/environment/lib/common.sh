# Shared by the scripts in bin/.

die() {
    echo "$(basename $0): $*" >&2
    exit 1
}

# Prints the path in a form that stays right after a change of directory.
absolute() {
    case $1 in
        /*) echo $1 ;;
        *) echo $PWD/$1 ;;
    esac
}

# Succeeds if the path matches a pattern of the ignore file.
ignored() {
    local path=$1 ignore_file=$2 pattern
    [ -f $ignore_file ] || return 1
    for pattern in $(grep -v '^#' $ignore_file); do
        case $path in
            $pattern) return 0 ;;
        esac
    done
    return 1
}
