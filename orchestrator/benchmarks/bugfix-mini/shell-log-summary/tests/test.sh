#!/bin/bash
# The reward is the share of the five faults that are mended; 0 if something that worked no longer does.
app=$PWD
box=$(mktemp -d)
trap 'rm -rf "$box"' EXIT
mkdir -p /logs/verifier
echo 0 > /logs/verifier/reward.txt

# requests FILE PATH COUNT [BYTES]: appends requests to a log.
requests() {
    local number
    for ((number = 0; number < $3; number++)); do
        echo "2024-05-01T10:00:00Z 10.0.0.7 GET 200 ${4:-10} $2"
    done >> "$box/$1"
}

# shows OPTIONS… -- LINE…: what the summary prints is these lines (spaces stand for tabs).
shows() {
    local options=()
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    (cd "$box" && bash "$app/summary.sh" "${options[@]}") > "$box/out" 2> "$box/err" < /dev/null
    [ "$(cat "$box/out")" = "$(printf '%s\n' "$@" | tr ' ' '\t')" ]
}

counts_are_numbers() {
    requests n.log /nine 9
    requests n.log /twelve 12
    requests n.log /hundred 100
    shows n.log -- "100 1000 /hundred" "12 120 /twelve" "9 90 /nine" && shows -n 2 n.log -- "100 1000 /hundred" "12 120 /twelve"
}

ties_are_in_order() {
    requests o.log /about 2 7
    requests o.log /Zoo 2 100
    requests o.log /a/b 2 30
    requests o.log /a-b 2 9
    requests o.log /b 1
    local expected=("2 200 /Zoo" "2 18 /a-b" "2 60 /a/b" "2 14 /about" "1 10 /b")
    shows o.log -- "${expected[@]}" && LC_ALL=en_US.UTF-8 shows o.log -- "${expected[@]}"
}

ties_are_not_cut() {
    requests t.log /a 3
    requests t.log /b 2
    requests t.log /c 2
    requests t.log /d 2
    requests t.log /e 1
    shows -n 2 t.log -- "3 30 /a" "2 20 /b" "2 20 /c" "2 20 /d" && shows -n 1 t.log -- "3 30 /a" || return 1
    shows -n 4 t.log -- "3 30 /a" "2 20 /b" "2 20 /c" "2 20 /d" && [ "$(bash "$app/summary.sh" "$box/t.log" | wc -l)" -eq 5 ]
}

carriage_returns() {
    requests unix.log /a 3
    requests unix.log /b 1
    { echo "# windows" && cat "$box/unix.log" && echo; } | sed 's/$/\r/' > "$box/win.log"
    shows unix.log win.log -- "6 60 /a" "2 20 /b" && shows win.log -- "3 30 /a" "1 10 /b" && ! grep -q $'\r' "$box/out"
}

unfinished_last_lines() {
    requests one.log /a 3
    requests two.log /b 2
    requests two.log /a 2
    local file
    for file in one two; do
        printf %s "$(cat "$box/$file.log")" > "$box/$file.cut"
    done
    shows one.cut two.cut -- "5 50 /a" "2 20 /b" && shows two.cut one.cut one.cut -- "8 80 /a" "2 20 /b"
}

different_counts() {
    requests d.log /a 1
    requests d.log "/b?x=1" 2
    requests d.log "/b?y" 1 -
    requests d.log /c 2 3000000000
    echo >> "$box/d.log"
    echo "# GET /a" >> "$box/d.log"
    shows d.log -- "3 20 /b" "2 6000000000 /c" "1 10 /a" && shows -n 1 d.log -- "3 20 /b"
}

two_files() {
    requests f1.log /a 1
    requests f2.log /b 2
    requests f2.log /a 2
    shows f1.log f2.log -- "3 30 /a" "2 20 /b" && shows f1.log "$box/f1.log" -- "2 20 /a"
}

only_ten_without_an_option() {
    local number
    for ((number = 1; number <= 12; number++)); do
        requests ten.log "/$number" 1 "$number"
        [ "$number" -gt 10 ] || requests ten.log "/$number" 1 0
    done
    [ "$(bash "$app/summary.sh" "$box/ten.log" | grep -c $'^2\t')" -eq 10 ] && [ "$(bash "$app/summary.sh" "$box/ten.log" | wc -l)" -eq 10 ]
}

unreadable() {
    requests r.log /a 1
    bash "$app/summary.sh" "$box/r.log" "$box/none.log" > "$box/out" 2> "$box/err"
    [ $? -eq 1 ] && [ ! -s "$box/out" ] && [ -s "$box/err" ]
}

mended=0 broken=0
for case in counts_are_numbers ties_are_in_order ties_are_not_cut carriage_returns unfinished_last_lines; do
    if "$case"; then mended=$((mended + 1)) && echo "$case: ok"; else echo "$case: failed"; fi
done
for case in different_counts two_files only_ten_without_an_option unreadable; do
    if "$case"; then echo "$case: ok"; else broken=$((broken + 1)) && echo "$case: failed"; fi
done
if [ "$broken" -eq 0 ]; then
    case $mended in
        5) echo 1.0 ;;
        *) echo "0.$((mended * 2))" ;;
    esac > /logs/verifier/reward.txt
fi
