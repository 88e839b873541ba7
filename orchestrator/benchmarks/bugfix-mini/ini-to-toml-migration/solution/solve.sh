#!/bin/bash
set -eu
for file in ini toml __main__; do
    cp "/solution/fixed/$file.py" "confkit/$file.py"
done
