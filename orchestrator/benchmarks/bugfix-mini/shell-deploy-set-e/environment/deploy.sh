#!/usr/bin/env bash
# Brings a release live. Usage: deploy.sh NAME-VERSION.tar.gz ROOT
set -e

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

prepare() {
    unpack
    verify
    run_hook check
    run_hook migrate
}

before=$(live_version)
if prepare; then
    switch
    prune
    if [ -n "$before" ]; then
        say "$version is live (was $before)"
    else
        say "$version is live (first release)"
    fi
else
    echo "deploy: failed" >&2
    exit 1
fi
