#!/bin/bash
# The database the search works on.
set -euo pipefail
rm -f books.db
python3 -B -m shelf load books.csv
