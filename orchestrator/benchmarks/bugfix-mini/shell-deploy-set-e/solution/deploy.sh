#!/usr/bin/env bash
# Brings a release live. Usage: deploy.sh NAME-VERSION.tar.gz ROOT
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib/log.sh"
. "$here/lib/steps.sh"

if [ $# -ne 2 ]; then
    echo "usage: deploy.sh NAME-VERSION.tar.gz ROOT" >&2
    exit 64
fi

archive=$1
mkdir -p "$2/releases"
root=$(cd "$2" && pwd)
version=${archive##*/}
version=${version%.tar.gz}
version=${version##*-}
release=$root/releases/$version

if [ -e "$release" ]; then
    echo "deploy: $version is already there" >&2
    exit 1
fi

# The steps are plain commands: in the condition of an `if`, `set -e` would not end them.
step=
give_up() {
    local status=$?
    [ -n "$step" ] || exit "$status"
    rm -rf "$release"
    echo "deploy: failed in $step" >&2
    exit "$status"
}
trap give_up EXIT

before=$(live_version)
step=unpack
unpack
step=verify
verify
step=check
run_hook check
step=migrate
run_hook migrate
step=

switch
prune
if [ -n "$before" ]; then
    say "$version is live (was $before)"
else
    say "$version is live (first release)"
fi
