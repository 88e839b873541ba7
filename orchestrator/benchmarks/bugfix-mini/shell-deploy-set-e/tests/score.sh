#!/bin/bash
# Deploys good and bad releases into folders of its own. 20 points for each kind of failure that is handled as the ticket says,
# times the share of what worked before and still does. The deploy script's output goes to files.
app=$PWD
box=$(mktemp -d)
trap 'rm -rf "$box"' EXIT
points=0 kept=0 kept_of=0 sites=0 intact=

# release VERSION: the files of a release in $box/src.
release() {
    rm -rf "$box/src"
    mkdir -p "$box/src/hooks" "$box/src/bin"
    echo "$1" > "$box/src/VERSION"
    echo "echo $1" > "$box/src/bin/app"
    local hook
    for hook in check migrate; do
        echo "echo \"output of $hook $1\"; echo \"$hook \$DEPLOY_VERSION\" >> \"\$DEPLOY_ROOT/ran\"" > "$box/src/hooks/$hook"
    done
}

# pack VERSION: makes the archive of $box/src.
pack() {
    (cd "$box/src" && find . -type f ! -name MANIFEST -exec sha256sum {} + > MANIFEST)
    tar -czf "$box/app-$1.tar.gz" -C "$box/src" .
}

deploy() {
    bash "$app/deploy.sh" "$box/app-$1.tar.gz" "$site" > "$box/out" 2> "$box/err" < /dev/null
}

fresh_site() {
    site=$box/site$((++sites))
    intact=
}

# A site with release 1.0.0 that is live: the last one, if the case before left it as it was.
site_with_1() {
    if [ -n "$intact" ]; then
        : > "$site/ran"
    else
        fresh_site
        cp "$box/good-1.0.0.tar.gz" "$box/app-1.0.0.tar.gz"
        deploy 1.0.0
    fi
}

live() {
    basename "$(readlink -f "$site/current")"
}

# refused STEP RAN…: deploying 2.0.0 fails in STEP, and only the hooks RAN were started.
refused() {
    local step=$1
    shift
    intact=
    deploy 2.0.0 && return 1
    [ "$(tail -n 1 "$box/err")" = "deploy: failed in $step" ] || return 1
    [ "$(live)" = 1.0.0 ] && [ -f "$site/current/bin/app" ] || return 1
    [ ! -e "$site/releases/2.0.0" ] || return 1
    [ "$(grep 2.0.0 "$site/ran")" = "$(printf '%s\n' "$@")" ] || return 1
    intact=yes
}

damaged_archive() {
    site_with_1
    release 2.0.0
    pack 2.0.0
    head -c 150 "$box/app-2.0.0.tar.gz" > "$box/cut" && mv "$box/cut" "$box/app-2.0.0.tar.gz"
    refused unpack || return 1
    rm "$box/app-2.0.0.tar.gz"
    refused unpack
}

wrong_version() {
    site_with_1
    release 2.0.0
    rm "$box/src/VERSION"
    pack 2.0.0
    refused verify || return 1
    release 2.0.0
    echo 2.0.1 > "$box/src/VERSION"
    pack 2.0.0
    refused verify
}

wrong_checksum() {
    site_with_1
    release 2.0.0
    pack 2.0.0
    echo changed >> "$box/src/bin/app"
    tar -czf "$box/app-2.0.0.tar.gz" -C "$box/src" .
    refused verify
}

failed_check() {
    site_with_1
    release 2.0.0
    echo 'exit 3' >> "$box/src/hooks/check"
    pack 2.0.0
    refused check "check 2.0.0" || return 1
    grep -q 'output of check 2.0.0' "$site/deploy.log" && grep -q 'output of check 2.0.0' "$box/out" || return 1
    intact=
    release 2.0.0
    pack 2.0.0
    deploy 2.0.0 && [ "$(live)" = 2.0.0 ]
}

failed_migration() {
    site_with_1
    release 2.0.0
    echo 'exit 1' >> "$box/src/hooks/migrate"
    pack 2.0.0
    refused migrate "check 2.0.0" "migrate 2.0.0" || return 1
    grep -q 'output of migrate 2.0.0' "$site/deploy.log" || return 1
    fresh_site
    deploy 2.0.0 && return 1
    [ ! -e "$site/current" ] && [ ! -L "$site/current" ] && [ ! -e "$site/releases/2.0.0" ]
}

good_deployments() {
    fresh_site
    site_with_1 || return 1
    [ "$(tail -n 1 "$box/out")" = "deploy: 1.0.0 is live (first release)" ] && [ "$(live)" = 1.0.0 ] || return 1
    release 1.1.0
    pack 1.1.0
    deploy 1.1.0 || return 1
    [ "$(tail -n 1 "$box/out")" = "deploy: 1.1.0 is live (was 1.0.0)" ] && [ "$(live)" = 1.1.0 ] || return 1
    [ "$(cat "$site/ran")" = "$(printf '%s\n' 'check 1.0.0' 'migrate 1.0.0' 'check 1.1.0' 'migrate 1.1.0')" ] || return 1
    grep -q 'output of check 1.1.0' "$site/deploy.log" && grep -q 'output of migrate 1.0.0' "$site/deploy.log"
}

three_are_kept() {
    fresh_site
    local version
    for version in 1.9.0 1.10.0 1.2.0 2.0.0; do
        release "$version"
        rm -rf "$box/src/hooks"
        pack "$version"
        deploy "$version" || return 1
    done
    [ "$(live)" = 2.0.0 ] && [ "$(ls "$site/releases" | sort -V | tr '\n' ' ')" = "1.9.0 1.10.0 2.0.0 " ]
}

present_version() {
    fresh_site
    site_with_1 || return 1
    deploy 1.0.0 && return 1
    [ "$(live)" = 1.0.0 ] && [ -f "$site/releases/1.0.0/bin/app" ] && [ "$(wc -l < "$site/ran")" -eq 2 ]
}

release 1.0.0
pack 1.0.0
mv "$box/app-1.0.0.tar.gz" "$box/good-1.0.0.tar.gz"
for case in damaged_archive wrong_version wrong_checksum failed_check failed_migration; do
    if "$case"; then points=$((points + 20)) && echo "$case: ok"; else echo "$case: failed"; fi
done
for case in good_deployments three_are_kept present_version; do
    kept_of=$((kept_of + 1))
    if "$case"; then kept=$((kept + 1)) && echo "$case: ok"; else echo "$case: failed"; fi
done
points=$((points * kept / kept_of))
printf 'score=%d.%02d\n' $((points / 100)) $((points % 100))
