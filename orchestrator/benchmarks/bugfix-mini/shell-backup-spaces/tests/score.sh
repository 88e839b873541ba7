#!/bin/bash
# Prints score=<0..1>: an eighth for each kind of name that survives backup, verify, restore and prune. The scripts' own
# output goes to a file, so nothing they print can be taken for the score. Plain names are the entry ticket.
set -u
work=$(mktemp -d) || exit 1
trap 'chmod -R u+rwx "$work"; rm -rf "$work"' EXIT
bin=$PWD/bin

tool() {
    local script=$1
    shift
    timeout 10 bash "$bin/$script.sh" "$@" > "$log" 2>&1 < /dev/null
}

put() {
    case $1 in
        */*) mkdir -p -- "${1%/*}" ;;
    esac
    printf '%s\n' "content of $1" > "$1"
}

same_tree() {
    diff -r -- "$1" "$2" > /dev/null
}

last_line_is() {
    [ "$(tail -n 1 "$log")" = "$1" ]
}

# round_trip SOURCE VAULT NAME TARGET COUNT FILE...: back up, verify, restore; then each FILE is lost or changed in
# turn, and verify has to notice.
round_trip() {
    local source=$1 vault=$2 name=$3 target=$4 count=$5 gone=0 file
    shift 5
    tool backup "$source" "$vault" "$name" && last_line_is "$count files backed up" || return 1
    same_tree "$source" "$vault/$name/files" || return 1
    [ "$(wc -l < "$vault/$name/MANIFEST")" -eq "$count" ] || return 1
    tool verify "$vault" "$name" || return 1
    tool restore "$vault" "$name" "$target" || return 1
    same_tree "$source" "$target" || return 1
    for file in "$@"; do
        file=$vault/$name/files/$file
        mv -- "$file" "$kept"
        if ((gone++ % 2)); then echo changed > "$file"; fi
        if tool verify "$vault" "$name"; then return 1; fi
        mv -- "$kept" "$file"
    done
    tool verify "$vault" "$name"
}

plain_names() {
    put src/a.txt; put src/deep/er/b.txt; put src/.hidden; put src/deep/c.tmp; put src/deep/d.tmp
    mkdir other; touch -d '2024-01-02 03:04:05' src/a.txt; chmod 640 src/a.txt
    ln -s a.txt src/link
    tool backup src vault monday && last_line_is "5 files backed up" || return 1
    [ ! -e vault/monday/files/link ] && [ -f vault/monday/files/.hidden ] || return 1
    [ "$(stat -c '%Y %a' src/a.txt)" = "$(stat -c '%Y %a' vault/monday/files/a.txt)" ] || return 1
    tool verify vault monday || return 1
    if tool backup src vault monday; then return 1; fi
    if tool backup missing vault tuesday; then return 1; fi
    tool restore vault monday "$PWD/other" || return 1
    [ "$(stat -c '%Y %a' src/a.txt)" = "$(stat -c '%Y %a' other/a.txt)" ] || return 1
    cmp -s src/deep/er/b.txt other/deep/er/b.txt || return 1
    printf '# drafts\n\n*.tmp\n' > src/.backupignore
    tool backup "$PWD/src" "$PWD/vault" tuesday && last_line_is "4 files backed up" || return 1
    [ ! -e vault/tuesday/files/deep/d.tmp ] && [ ! -e vault/tuesday/files/deep/c.tmp ] || return 1
    tool backup src vault wednesday && mkdir vault/aaa && put vault/note.txt || return 1
    tool prune vault 2 && [ ! -e vault/monday ] && [ -d vault/tuesday ] && [ -d vault/wednesday ] || return 1
    [ -d vault/aaa ] && [ -f vault/note.txt ]
}

spaces() {
    put 'src/meeting notes.txt'; put 'src/a  b/ c /d e '; put 'src/ lead'; put src/plain
    round_trip src vault monday restored 4 'meeting notes.txt' 'a  b/ c /d e ' ' lead'
}

dashes() {
    put src/-n; put src/-rf/--help; put 'src/--version'; put src/sub/-x
    round_trip src vault monday restored 4 -n -rf/--help
}

patterns() {
    put 'src/*'; put src/one; put 'src/[ab]/c?'; put src/a/c1; put 'src/back\slash\n'; put 'src/d\'
    round_trip src vault monday restored 6 '[ab]/c?' '*' 'd\'
}

line_breaks() {
    put $'src/two\nlines'; put $'src/folder\nname/b'; put $'src/end\n'; put $'src/\nstart'; put src/two
    round_trip src vault monday restored 5 $'two\nlines' $'end\n' $'folder\nname/b'
}

places() {
    put 'my docs/a b'; put 'my docs/c'; put "$PWD/their * docs/x"; mkdir 'into [here]'
    round_trip 'my docs' 'the vault' 'before the move' 'into [here]' 2 'a b' c || return 1
    round_trip "$PWD/their * docs" "$PWD/the vault" '*' "$PWD/new  place" 1 x || return 1
    [ -f 'the vault/before the move/MANIFEST' ] && ! tool backup 'my docs' 'the vault' 'before the move' || return 1
    put './-s/f'; round_trip -s ./-v -n ./-t 1 f
}

ignore_file() {
    put 'src/Old drafts/one'; put 'src/Old drafts/deep/two'; put src/Old; put src/drafts/kept
    put src/a.tmp; put src/b.tmp; put src/deep/c.tmp; put 'src/the #1 list'; put src/x.bak
    printf '# leave out\n\nOld drafts/*\n*.tmp\n*.b[a]k' > src/.backupignore
    tool backup src vault monday && last_line_is "4 files backed up" || return 1
    (cd vault/monday/files && find . -type f | LC_ALL=C sort) > found
    diff - found > /dev/null <<< $'./.backupignore\n./Old\n./drafts/kept\n./the #1 list'
}

pruning() {
    local name
    for name in '2024-05-01 move' '2024-05-02' '2024-05-03  two' move 'z*' -last; do
        mkdir -p "vault here/$name/files" && : > "vault here/$name/MANIFEST"
    done
    tool prune 'vault here' 4 || return 1
    [ "$(ls 'vault here' | LC_ALL=C sort)" = $'2024-05-02\n2024-05-03  two\nmove\nz*' ] || return 1
    tool prune "$PWD/vault here" 9 && [ "$(ls 'vault here' | wc -l)" -eq 4 ] || return 1
    tool prune 'vault here' 1 && [ "$(ls 'vault here')" = 'z*' ]
}

pruning_line_breaks() {
    local name
    for name in 1 $'2\n3' 3 4 $'5\n'; do
        mkdir -p "vault/$name/files" && : > "vault/$name/MANIFEST"
    done
    tool prune vault 3 || return 1
    [ ! -e vault/1 ] && [ ! -e $'vault/2\n3' ] && [ -d vault/3 ] && [ -d vault/4 ] && [ -d $'vault/5\n' ]
}

# Each kind has a folder, a log and a process of its own.
run() {
    log=$work/$1.log
    kept=$work/$1.kept
    mkdir -p "$work/$1" && cd "$work/$1" && "$1" && : > "$work/$1.passed"
}

kinds=(spaces dashes patterns line_breaks places ignore_file pruning pruning_line_breaks)
for kind in plain_names "${kinds[@]}"; do
    run "$kind" &
done
wait
passed=0
for kind in "${kinds[@]}"; do
    if [ -e "$work/$kind.passed" ]; then
        passed=$((passed + 1))
        echo "passed: $kind"
    else
        echo "failed: $kind"
    fi
done
if [ ! -e "$work/plain_names.passed" ]; then
    echo "failed: plain names, so nothing counts"
    passed=0
fi
parts=$((passed * 1000 / ${#kinds[@]}))
printf 'score=%d.%03d\n' $((parts / 1000)) $((parts % 1000))
