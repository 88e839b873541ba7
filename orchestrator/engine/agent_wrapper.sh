#!/bin/bash
# shellcheck disable=SC1091,SC2094
# Runs ./command once: its standard input is the file $2, its time limit is $1 seconds. Records the end in ./status.
cd "${0%/*}" || exit 125
here=$PWD path=$PATH
login=(-l)
if [ -d /.sweep/tools/bin ]; then # of an image: its programs may be others, and its start-up files undo its variables
    PATH=/.sweep/tools/bin:$PATH
    login=()
fi
timeout=$(command -v timeout)
if ! mkdir marker 2>/dev/null; then
    until [ -e status ]; do
        if [ -e marker/pid ] && ! kill -0 "$(cat marker/pid)" 2>/dev/null && [ ! -e status ]; then exit 125; fi
        sleep 0.2
    done
    read -r status <status
    [ "$status" = timed-out ] && exit 124
    exit "$status"
fi
echo $$ >marker/pid
leftovers() { # every process that carries our mark, or that the agent orphaned to our own parent
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        [ "$pid" = $$ ] && continue
        if tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qxF "SWEEP_ATTEMPT=$here"; then
            echo "$pid"
        elif [ "$PPID" != 1 ] && grep -qx "PPid:[[:space:]]*$PPID" "$process/status" 2>/dev/null; then
            echo "$pid"
        fi
    done
}
started=$SECONDS
(
    PATH=$path
    if [ -e env ]; then . ./env; rm -f env; fi
    cd "$3" || exit 125
    SWEEP_ATTEMPT=$here exec "$timeout" -k 5 "$1" "$BASH" "${login[@]}" "$here/command" <"$2" 2>&1
)
status=$?
if [ $((SECONDS - started)) -ge "${1%.*}" ] && { [ $status = 124 ] || [ $status = 137 ]; }; then
    for _ in 1 2 3 4 5; do
        pids=$(leftovers)
        [ -z "$pids" ] && break
        # shellcheck disable=SC2086 # one word each
        kill -KILL $pids 2>/dev/null
        sleep 0.1
    done
    echo timed-out >status.new && mv status.new status
    exit 124
fi
echo $status >status.new && mv status.new status
exit $status
