# Where output goes.

say() {
    echo "deploy: $*"
}

# Passes its input on, and keeps a copy in the log.
keep() {
    tee -a "$root/deploy.log"
}
