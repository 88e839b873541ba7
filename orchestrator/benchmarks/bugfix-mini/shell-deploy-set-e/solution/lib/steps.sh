# The steps of a deployment. They use: archive, version, root, release.

unpack() {
    mkdir -p "$release"
    tar -xzf "$archive" -C "$release" 2>&1 | keep
}

verify() {
    local packed
    packed=$(cat "$release/VERSION")
    if [ "$packed" != "$version" ]; then
        echo "the archive has version $packed" | keep
        return 1
    fi
    (cd "$release" && sha256sum --quiet -c MANIFEST) 2>&1 | keep
}

run_hook() {
    [ -f "$release/hooks/$1" ] || return 0
    (cd "$release" && DEPLOY_ROOT=$root DEPLOY_VERSION=$version bash "hooks/$1") 2>&1 | keep
}

# Prints the version that is live, or nothing.
live_version() {
    [ ! -L "$root/current" ] || basename "$(readlink "$root/current")"
}

switch() {
    ln -s "releases/$version" "$root/current.new"
    mv -T "$root/current.new" "$root/current"
}

# Removes all but this release and the two newest of the others.
prune() {
    ls "$root/releases" | { grep -Fvx "$version" || true; } | sort -V | head -n -2 | while read -r old; do
        rm -rf "${root:?}/releases/$old"
    done
}
