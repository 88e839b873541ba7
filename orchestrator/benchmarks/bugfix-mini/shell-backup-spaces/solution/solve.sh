#!/bin/bash
set -eu
cp /solution/fixed/common.sh lib/common.sh
for script in backup verify restore prune; do
    cp "/solution/fixed/$script.sh" "bin/$script.sh"
done
